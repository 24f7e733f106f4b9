"""The accept loop: from a listening socket to a worker.

Knows nothing of settings and of how sockets get bound. It accepts by hand, because asyncio's servers take whatever the
kernel has: here a batch is bounded, and with "wait" nothing is accepted while no worker is free.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

from echod.pool import peer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine

    from structlog.typing import FilteringBoundLogger

    from echod.listener import Listener
    from echod.pool import Pool
    from echod.settings import WhenFull
    from echod.worker import Worker

BATCH = 64
"""Connections accepted before the loop goes on with those that are open."""

PAUSE = 0.1
"""Seconds without accepting after an error of the system."""

_GONE = frozenset(
    {
        # The connection failed before it was accepted (accept(2), "Error handling"): the next one may be good.
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    }
)


class Acceptor:
    """Gives the connections of one listener to the pool."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: FilteringBoundLogger,
        listener: Listener,
        pool: Pool,
        rejections: Rejections,
        *,
        when_full: WhenFull,
    ) -> None:
        self._loop = loop
        self._log = log
        self.listener = listener
        self._family = listener.sock.family  # an enum, looked up at each access
        self._pool = pool
        self._rejections = rejections
        self._waits = when_full == "wait"
        self._reading = False
        self._pause: asyncio.TimerHandle | None = None
        self._failures = 0  # of accept, in a row
        self._paused: tuple[float, str] | None = None  # since when, and the error's name

    def resume(self) -> None:
        """Accept from now on; does nothing if it already does, or during a pause after an error."""
        if not self._reading and self._pause is None:
            self._loop.add_reader(self.listener.sock, self._accept_batch)
            self._reading = True

    def close(self) -> None:
        """Take what the kernel has completed, as far as there are workers, and stop listening.

        Whoever is left in the backlog after that gets a reset from the kernel.
        """
        self._suspend()
        self._cancel_pause()
        for _ in range(self._pool.free):
            if not self._accept():
                break
        self._cancel_pause()
        self.listener.sock.close()

    def _suspend(self) -> None:
        if self._reading:
            self._loop.remove_reader(self.listener.sock)
            self._reading = False

    def _accept_batch(self) -> None:
        for _ in range(BATCH):
            if self._waits and not self._pool.free:
                self._suspend()
                return
            if not self._accept():
                return

    def _accept(self) -> bool:
        """Accept one connection; say whether there may be more."""
        try:
            # Without the wrapper of `accept()`, which looks up enums; the descriptor becomes a socket below.
            fd, address = self.listener.sock._accept()  # type: ignore[attr-defined] # noqa: SLF001
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._failures += 1
            if error.errno in _GONE and self._failures < BATCH:
                return True
            self._pause_after(error)
            return False
        self._failures = 0
        if self._paused:
            self._recovered(*self._paused)
        sock = socket.socket(self._family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fd)
        if self._pool.free:
            self._admit(sock, address[:2])
        else:
            self._reject(sock, address[:2])
        return True

    def _admit(self, sock: socket.socket, client: tuple[str, int]) -> None:
        worker = self._pool.take(sock, client, self.listener)
        # A task per connection would cost more than the rest of this function. The coroutine needs none: it waits
        # once, for connection_made, which uvloop has put into the loop's queue before it waits.
        opening = self._loop.connect_accepted_socket(lambda: worker, sock)
        try:
            opening.send(None)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost the worker and the descriptor
            sock.close()
            self._pool.release(worker, error)
            return
        self._loop.call_soon(self._opened, opening, worker)

    def _opened(self, opening: Coroutine[Any, Any, Any], worker: Worker) -> None:
        """Let the coroutine run to its end, which it has reached by now."""
        try:
            opening.send(None)
        except StopIteration:
            pass
        except Exception as error:  # noqa: BLE001 - likewise; the coroutine has closed the transport
            self._pool.release(worker, error)

    def _reject(self, sock: socket.socket, client: tuple[str, int]) -> None:
        with sock, contextlib.suppress(OSError):  # the client may have gone already
            # With FIN first, a client that has sent already reads EOF and not the reset that close(2) sends then.
            sock.shutdown(socket.SHUT_WR)
        self._rejections.log(client, self.listener.url, "pool_full")

    def _pause_after(self, error: OSError) -> None:
        """Stop accepting for a moment: the listener stays readable, and the loop would spin."""
        self._suspend()
        self._failures = 0
        self._pause = self._loop.call_later(PAUSE, self._end_pause)
        if self._paused is None:
            reason = errno.errorcode.get(error.errno or 0, str(error))
            self._paused = self._loop.time(), reason
            self._log.warning("accept.paused", listener=self.listener.url, reason=reason, seconds=PAUSE)

    def _end_pause(self) -> None:
        self._pause = None
        self.resume()

    def _cancel_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _recovered(self, since: float, reason: str) -> None:
        self._paused = None
        seconds = round(self._loop.time() - since, 6)
        self._log.info("accept.resumed", listener=self.listener.url, reason=reason, seconds=seconds)


class Rejections:
    """Logs refused connections, at most `LINES` within a second; the next line then says how many had none."""

    LINES = 10
    SECOND = 1.05  # and what the loop's clock, read once in its round, may be behind

    def __init__(self, loop: asyncio.AbstractEventLoop, log: FilteringBoundLogger) -> None:
        self._loop = loop
        self._log = log
        self._times: deque[float] = deque([float("-inf")] * self.LINES, maxlen=self.LINES)  # of the last lines
        self._suppressed = 0  # since the last line
        self._last: tuple[tuple[str, int], str, str]  # of those suppressed
        self._timer: asyncio.TimerHandle | None = None

    def log(self, client: tuple[str, int], listener: str, reason: str) -> None:
        """Log one refusal, or count it."""
        wait = self._times[0] + self.SECOND - self._loop.time()
        if wait <= 0:
            self._line(client, listener, reason)
            return
        self._suppressed += 1
        self._last = client, listener, reason
        if self._timer is None:
            self._timer = self._loop.call_later(wait, self.flush)

    def flush(self) -> None:
        """Give the last one that was suppressed its line, so that no count waits for a refusal that never comes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._suppressed:
            self._suppressed -= 1
            self._line(*self._last)

    def _line(self, client: tuple[str, int], listener: str, reason: str) -> None:
        fields = {"suppressed": self._suppressed} if self._suppressed else {}
        self._times.append(self._loop.time())
        self._suppressed = 0
        self._log.warning("connection.rejected", client=peer(client), listener=listener, reason=reason, **fields)
