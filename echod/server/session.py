"""TLS between uvloop's transport and a worker: the protocol of the one, and the transport of the other.

uvloop's own TLS loses bytes at a half-close and can't send FIN alone (MagicStack/uvloop#661), so this layer uses OpenSSL on
`ssl.MemoryBIO`. It keeps the rules that workers rely on: `pause_writing` comes within `write` exactly when the kernel has not
taken all, and while it is paused, nothing is decrypted. So a connection holds at most one read of ciphertext. What is read is
decrypted by pieces, so that OpenSSL takes little memory and little time at once (`Ciphertext`).

The layer ends a stream with close_notify and then FIN (RFC 8446, 6.1). A FIN of the peer without close_notify is `truncated`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

from echod import x509
from echod.server import kernel
from echod.server.ciphertext import Ciphertext

if TYPE_CHECKING:
    from echod.server.tls import Handshakes
    from echod.server.worker import Worker

SLICE = 4 << 10
"""Bytes of plaintext that are put into OpenSSL at one time, because a MemoryBIO never gives back memory."""
RECORD = 16 << 10
"""The most plaintext of one record (RFC 8446, 5.1). The ciphertext has up to 2 KiB more (RFC 5246, 6.2.3)."""
RECORDS = 16
"""Records that OpenSSL gets in one turn of the loop: as KeyUpdates, they take less than a millisecond."""
MOST_FUTILE = 80 << 10
"""Bytes of ciphertext after which a client is cut off that sends nothing but messages of TLS itself, such as KeyUpdate."""
LINGER = 1.0
"""Seconds for which a client that we refuse may go on sending: close(2) with unread input would send RST, and the alert that
says why would be lost."""

CLOSED = ("closed", "the client has closed the connection")
"""How a handshake ends that nobody has refused: the result, and why."""


class Session(asyncio.Protocol):
    """One connection with TLS. `Handshakes` opens it for its worker once the handshake is complete.

    The methods below `write` are those of an `asyncio.Transport` that a worker and its environment call.
    """

    def __init__(self, worker: Worker, context: ssl.SSLContext, handshakes: Handshakes) -> None:
        self.worker = worker
        self._handshakes = handshakes
        # Until the first step: a batch of accepts would take long with OpenSSL.
        self._context: ssl.SSLContext | None = context
        self._incoming: ssl.MemoryBIO
        self._outgoing: ssl.MemoryBIO
        self.tls: ssl.SSLObject
        self._protocol: asyncio.Protocol = worker
        self._transport: asyncio.Transport
        self._held = Ciphertext()  # what was read, and not put into OpenSSL yet
        self._futile = 0  # bytes of ciphertext since the last plaintext
        self._reading = True  # as far as the protocol is concerned
        self._ended = False  # FIN has come while something was held
        self._finished = False  # our FIN has been sent, and perhaps not the client's
        self._is_over = False  # nothing is decrypted any more: what comes in is dropped
        self._last = 0  # bytes of plaintext in the last write
        self._written = 0  # bytes of ciphertext given to the transport
        self._echoed = 0  # of these, those until the end of the last write
        self._forgotten = 0  # of the last write, what the kernel never took
        self._failure: ssl.SSLError | None = None
        self.is_open = False
        # How it ends if that is before it is open: the result, and why. `None`: no byte has come.
        self.refusal: tuple[str, str] | None = None
        self.timer: asyncio.TimerHandle | None = None

    # The protocol of uvloop's transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # it serves streams only
        """Begin to wait for the client's part of the handshake."""
        self._transport = transport
        self.worker.transport = self  # type: ignore[assignment] # it has the methods that are called
        try:
            transport.set_write_buffer_limits(high=0)
        except BaseException:  # otherwise uvloop keeps the descriptor open and calls nothing more
            self.abort()
            raise
        self._handshakes.watch(self)
        if self.worker.reason:  # ended between accept and now
            self.abort()

    def data_received(self, data: bytes) -> None:  # noqa: D102 - asyncio.Protocol documents it
        if self._is_over:
            return
        if not self.is_open:
            self.refusal = CLOSED
            if self._held:
                self._transport.pause_reading()  # until the step that is queued
            else:
                self._handshakes.queue(self)
            self._held.add(data)
        elif self._held.is_record(data):  # as most often
            self._incoming.write(data)
            self._pass_on(len(data))
        else:
            self._held.add(data)
            self._decrypt()

    def eof_received(self) -> bool:
        """End the stream: the client has sent FIN, without close_notify. Return whether the transport stays open."""
        if self._held and not self._is_over:
            self._ended = True  # what has come before it is to be handled first
            return True
        if self.is_open and not self._is_over:
            self.worker.reason = self.worker.reason or "truncated"
            self._end()
        return False

    def pause_writing(self) -> None:  # noqa: D102
        self._protocol.pause_writing()

    def resume_writing(self) -> None:  # noqa: D102
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        if self.timer:
            self.timer.cancel()
        self._held.clear()
        if self._last and (info := kernel.info(self.worker.sock)):
            # The transport forgets what it could not write; the kernel remembers what it was given.
            self._forgotten = min(self._last, max(0, self._echoed - info.written))
        self._is_over = True
        self._protocol.connection_lost(self._failure or exc)

    # The handshake

    def step(self) -> bool:
        """Do what the client's messages allow; say whether the handshake is complete."""
        if self._context:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self.tls = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)
            self._context = None
        done, left = False, RECORDS
        try:
            while not done and left and not self._is_over:
                piece, records = self._held.take(1)  # what comes after the handshake stays there
                left -= records
                self._incoming.write(piece)
                try:
                    self.tls.do_handshake()
                    done = True
                except ssl.SSLWantReadError:
                    if not self._held:
                        break
        except ssl.SSLError as error:
            self._refuse(error)
        self._flush()
        if self._held and not done:
            self._handshakes.queue(self)
        elif not done:
            self._read_on()
        return done

    def open(self) -> None:
        """Let the worker have the connection, and what the client has sent after the handshake."""
        self.is_open = True
        self.worker.connection_made(self)  # type: ignore[arg-type] # it has the methods that are called
        if self._incoming.pending and not self._is_over:  # it came in one piece with the rest of the last message
            self._pass_on(self._incoming.pending)
        self._continue()

    def expire(self) -> None:
        """End a handshake that has taken too long."""
        self.refusal = ("timeout", "timed out")
        self._transport.abort()

    def _refuse(self, error: ssl.SSLError) -> None:
        self.refusal = CLOSED if isinstance(error, ssl.SSLZeroReturnError) else ("failed", x509.reason(error))
        self._failure = error
        self._flush()
        self._linger()

    def _linger(self) -> None:
        """Send FIN after the alert, and drop what comes in, for the client to close first."""
        self._is_over = True
        self._held.clear()
        if self._ended:
            self._transport.close()
        elif not self._finished:
            self._finished = True
            self._transport.write_eof()
            self._transport.resume_reading()
            if self.timer:
                self.timer.cancel()
            self.timer = self._handshakes.loop.call_later(LINGER, self._transport.abort)

    # From the client

    def _decrypt(self) -> None:
        """Echo what is held, as far as the client takes the echo, and a bounded part in one turn of the loop."""
        left = RECORDS
        while self._held and self._reading and left:
            piece, records = self._held.take(left)
            left -= records
            self._incoming.write(piece)
            self._pass_on(len(piece))
        if self._held and self._reading:
            self._transport.pause_reading()
            self._handshakes.loop.call_soon(self._continue)
        elif self._held:
            self._held.shrink()  # it may stay like that for long

    def _continue(self) -> None:
        """Go on with what is held, and then read on. A handshake has its turns."""
        if not self.is_open or self._is_over or self._transport.is_closing() or not self._reading:
            return
        self._decrypt()
        if not self._held and self._reading:
            self._read_on()

    def _read_on(self) -> None:
        """Read, or handle the FIN that has come already."""
        if self._is_over or self._transport.is_closing():
            return
        if self._ended:
            self.eof_received()
            self._transport.close()
        else:
            self._transport.resume_reading()

    def _pass_on(self, size: int) -> None:
        """Decrypt what OpenSSL has got, `size` bytes more than before, for the protocol."""
        parts: list[bytes] = []
        is_end = False
        try:
            while True:
                part = self.tls.read(RECORD)
                if not part:
                    is_end = True
                    break
                parts.append(part)
                if not self._incoming.pending:
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # close_notify, after ours
            is_end = True
        except ssl.SSLError as error:
            self._fail(error)  # after its alert, OpenSSL encrypts nothing more: what has come with the fault is dropped
            return
        plain = parts[0] if len(parts) == 1 else b"".join(parts)
        if plain:
            self._futile = 0
            self._protocol.data_received(plain)
        else:
            self._futile += size
            self._flush()  # the answer to a KeyUpdate, which may be all that comes
        if is_end:
            self._close()
        elif self._futile > MOST_FUTILE:
            self._fail(ssl.SSLError(1, "too many messages without data"))

    def _close(self) -> None:
        """Answer close_notify: all of the echo is on its way, so close_notify and FIN follow it."""
        self._end()
        self._transport.close()

    def _fail(self, error: ssl.SSLError) -> None:
        """End a connection on which the client has broken the rules, with an alert."""
        self._failure = error
        self.worker.reason = self.worker.reason or "error"
        self._flush()
        self._linger()

    # To the client

    def write(self, data: bytes) -> None:
        """Encrypt, and write; as `asyncio.Transport.write` does it with a high-water mark of 0."""
        self._last = len(data)
        if len(data) <= SLICE:
            self.tls.write(data)
            cipher = self._outgoing.read()
        else:
            view, parts = memoryview(data), []
            for begin in range(0, len(data), SLICE):
                self.tls.write(view[begin : begin + SLICE])
                parts.append(self._outgoing.read())
            cipher = b"".join(parts)
        self._written += len(cipher)
        self._echoed = self._written
        self._transport.write(cipher)

    def _flush(self) -> None:
        """Write what OpenSSL has to say by itself."""
        cipher = self._outgoing.read()
        if cipher and not self._finished and not self._transport.is_closing():
            self._written += len(cipher)
            self._transport.write(cipher)

    def _end(self) -> None:
        """Send close_notify, once."""
        self._is_over = True
        self._held.clear()
        self._notify()

    def _notify(self) -> None:
        with contextlib.suppress(ssl.SSLError):  # the client's close_notify has not come yet, or never will
            self.tls.unwrap()
        self._flush()

    def set_write_buffer_limits(self, high: int) -> None:
        """Do nothing: the mark is 0."""

    def get_write_buffer_size(self) -> int:
        """Return how much of the last write the kernel has not taken: bytes of plaintext, or a few more."""
        return self._forgotten or min(self._last, self._transport.get_write_buffer_size())

    def pause_reading(self) -> None:  # noqa: D102
        self._reading = False
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on with what is held in the next turn, else read on now."""
        self._reading = True
        if self._held or self._ended:
            self._handshakes.loop.call_soon(self._continue)
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        """Give what is decrypted to another protocol than the worker."""
        self._protocol = protocol

    def is_closing(self) -> bool:  # noqa: D102
        return self._transport.is_closing()

    def write_eof(self) -> None:
        """Send close_notify and FIN after what is pending, and go on reading."""
        if not self.is_open:
            self.abort()
        elif not self._finished and not self._is_over:
            self._notify()
            self._finished = True
            self._transport.write_eof()

    def abort(self) -> None:
        """End the connection now: with close_notify, if nothing is pending before it."""
        if self.is_open and not self._is_over and not self._transport.get_write_buffer_size():
            self._end()
        self._is_over = True
        if not self.is_open:
            self.refusal = ("closed", self.worker.reason or "aborted")
        self._transport.abort()
