"""The UDP kind of listener: a datagram makes one of the same bytes, or none.

UDP has no connection, so there is no worker: an `Answerer` stands beside the acceptors. It reads a bounded number of datagrams in
a turn of the loop, and answers each from the address that was asked (IP_PKTINFO of ip(7), IPV6_PKTINFO of RFC 3542).
`Datagrams` decides which ones get an answer.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from echod.server import kernel, tcp
from echod.server.datagrams import ECHOED
from echod.server.endpoint import Endpoint, Listener

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from echod.config.settings import Settings
    from echod.server.acceptor import Parts, State
    from echod.server.datagrams import Datagrams

KIND = "udp"
BATCH = 8
"""Datagrams dropped before the loop goes on, which takes 30 µs. An echo over TCP waits no longer than that."""
ANSWER = 4
"""Datagrams dropped in the time that one answer takes."""
DROPPED = 32
PAUSE = 0.001
"""Seconds without reading after so many were dropped: a flood beyond the rates does not take the loop from connections, but
waits in the kernel's queue, or is dropped there."""
ERROR_PAUSE = 0.1
"""Seconds without reading after an error of the system."""
LAST_TURNS = 256
"""Batches that a retired socket still reads, if it goes on getting datagrams."""

_IP_PKTINFO = 8  # <linux/in.h>; in the socket module since Python 3.14
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_PKTINFO = struct.Struct("=I4s4s")
"""struct in_pktinfo: the interface, the address to answer from, and the destination in the header."""
_PKTINFO6 = struct.Struct("=16sI")
"""struct in6_pktinfo: the destination, and the interface."""
_ANCILLARY = 256
"""Bytes for both, and for what a service manager may have asked for besides, such as time stamps."""
_LINK_LOCAL = bytes.fromhex("fe80")
_LINK_LOCAL_MASK = 0xC0
_MULTICAST = 0xFF
_MULTICAST_IPV4 = 224  # and above, also the broadcast address of any network
_NONE = bytes(4)

_Cmsg = tuple[int, int, bytes]


def endpoints(settings: Settings) -> list[Endpoint]:
    """Return what the settings want of this kind."""
    return [Endpoint(KIND, host, settings.udp.port or 0) for host in settings.listen.host]


def bind(
    endpoints: Sequence[Endpoint],
    *,
    backlog: int,
    reuse_port: bool,
    receive_buffer: int | None,  # noqa: ARG001 - of connections
    free_bind: bool,
    beside: Sequence[Listener],
) -> list[Listener]:
    """Bind every endpoint, or none; see `tcp.bind`."""
    beside = [each for each in beside if each.endpoint.kind == KIND]
    bound = tcp.bind(
        endpoints, backlog=backlog, reuse_port=reuse_port, free_bind=free_bind, beside=beside, datagrams=True
    )
    for listener in bound:
        _set_options(listener.sock)
    return bound


def adopt(sock: socket.socket) -> Listener:
    """Take a socket that was handed over."""
    sock.setblocking(False)  # noqa: FBT003 - it has no other form
    _set_options(sock)
    endpoint = Endpoint(KIND, *sock.getsockname()[:2])
    return Listener(endpoint, sock, str(endpoint), None, inherited=True)


def _set_options(sock: socket.socket) -> None:
    """Ask for the destination of each datagram. Where the kernel does not tell it, it chooses where an answer comes from."""
    options = [(socket.IPPROTO_IP, _IP_PKTINFO, 1), (socket.IPPROTO_IP, _IP_RECVERR, 0)]
    if sock.family == socket.AF_INET6:
        options += [(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1), (socket.IPPROTO_IPV6, _IPV6_RECVERR, 0)]
    for level, name, value in options:
        with contextlib.suppress(OSError):
            sock.setsockopt(level, name, value)


def tune(listener: Listener, settings: Settings) -> None:
    """Do nothing: what may change is in `Datagrams`."""


def acceptor(parts: Parts, listener: Listener, *, waits: bool) -> Answerer:
    """Return what answers on this listener."""
    return Answerer(parts.loop, parts.datagrams(), listener, waits=waits)


class Answerer:
    """Answers the datagrams of one socket. For `Listeners`, it is what an `Acceptor` is for connections."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, datagrams: Datagrams, listener: Listener, *, waits: bool
    ) -> None:
        self._loop = loop
        self._datagrams = datagrams
        self.listener = listener
        self.waits = waits  # for workers: it needs none
        self.paused_seconds = 0.0
        self._inherited_drops = kernel.drops(listener.sock) or 0
        self._reading = False
        self._retired: Callable[[Answerer], None] | None = None
        self._turns_left = 0  # of a retired one
        self._dropped = 0  # since the last pause
        self._pause: asyncio.TimerHandle | None = None
        self._failed = False  # which is why it pauses
        datagrams.add(self)

    @property
    def state(self) -> State:
        """What would happen to a datagram that comes now."""
        if self._retired:
            return "retired"
        if not self.listener.is_reachable:
            return "missing"
        return "paused" if self._pause and self._failed else "answering"

    @property
    def kernel_drops(self) -> int | None:
        """How many datagrams have found the queue full since this process has the socket."""
        drops = kernel.drops(self.listener.sock)
        return None if drops is None else (drops - self._inherited_drops) % (1 << 32)

    def resume(self) -> None:
        """Answer from now on; does nothing if it already does, or during a pause."""
        if not self._reading and self._pause is None:
            self._loop.add_reader(self.listener.sock, self._read_batch)
            self._reading = True

    def retire(self, done: Callable[[Answerer], None]) -> None:
        """Answer the datagrams that wait, then close the socket and call `done`."""
        if not self._retired:
            self._turns_left = LAST_TURNS
        self._retired = done
        if not self._end_if_retired():
            self.resume()

    def revive(self) -> None:
        """Undo `retire`: a later reload wants this endpoint again."""
        self._retired = None

    def close(self) -> None:
        """Answer what waits, up to a few, and close the socket. Of an inherited one, the next process answers."""
        if not self.listener.inherited and self._pause is None:
            self._read_some(ANSWER * BATCH)
        self._end()
        self._datagrams.flush()

    def _end_if_retired(self) -> bool:
        if not self._retired or (self._turns_left and kernel.has_waiting(self.listener.sock)):
            return False
        self._end()
        self._retired(self)
        return True

    def _end(self) -> None:
        self._suspend()
        if self._pause:
            self._pause.cancel()
        self._datagrams.forget(self)
        self.listener.close()

    def _suspend(self) -> None:
        if self._reading:
            self._loop.remove_reader(self.listener.sock)
            self._reading = False

    def _rest(self, seconds: float, *, failed: bool = False) -> None:
        """Read nothing for this long."""
        self._suspend()
        self._failed = failed
        self._dropped = 0
        self._pause = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self.paused_seconds += ERROR_PAUSE * self._failed
        self.resume()

    def _read_batch(self) -> None:
        self._dropped += self._read_some()
        if self._retired:
            self._turns_left -= 1
            if self._end_if_retired():
                return
        if self._dropped >= DROPPED and self._pause is None:
            self._rest(PAUSE)

    def _read_some(self, left: int = BATCH) -> int:
        """Answer or drop datagrams for the time in which `left` are dropped; return how many were dropped."""
        books, sock, now = self._datagrams, self.listener.sock, time.monotonic()
        dropped = 0
        while left > 0:
            try:
                data, ancillary, flags, address = sock.recvmsg(books.max_size, _ANCILLARY)
            except (BlockingIOError, InterruptedError):
                break
            except (OSError, MemoryError):  # the socket stays readable, and the loop would spin
                self._rest(ERROR_PAUSE, failed=True)
                break
            books.bytes_received += len(data)
            is_unicast, answer_from = _asked(ancillary)
            fits = not flags & socket.MSG_TRUNC
            result = books.refusal(address, now, fits=fits, is_unicast=is_unicast)
            if result is None:
                result = self._answer(data, answer_from, address)
            books.results[result] += 1
            if result is ECHOED:
                left -= ANSWER
            else:
                left -= 1
                dropped += 1
        else:
            books.log_drops()  # the queue may have been full
        if dropped:
            books.log_drops()
        return dropped

    def _answer(self, data: bytes, answer_from: list[_Cmsg], address: tuple[Any, ...]) -> str:
        try:
            self.listener.sock.sendmsg([data], answer_from, 0, address)
        except OSError:  # no route, no room in the queue, a broadcast address, an address that has gone
            return "failed"
        self._datagrams.bytes_sent += len(data)
        return ECHOED


def _asked(ancillary: list[_Cmsg]) -> tuple[bool, list[_Cmsg]]:
    """Return whether a datagram was sent to one address, and what lets the answer come from that.

    An IPv4 datagram to a dual-stack socket has both forms; that of IPv4 tells more. The interface is not copied: the way back may
    be another one. Only a link-local address is one of its interface.
    """
    is_unicast, answer_from = True, []
    for level, kind, value in ancillary:
        if (level, kind, len(value)) == (socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO.size):
            _, local, destination = _PKTINFO.unpack(value)
            # For a broadcast or multicast destination, the kernel has chosen another address to answer from. It has chosen none
            # for a datagram that came before the option was set. An answer from the broadcast address of a network then fails.
            is_unicast = local == destination or (local == _NONE and destination[0] < _MULTICAST_IPV4)
            return is_unicast, [(level, kind, _PKTINFO.pack(0, destination, _NONE))]
        if (level, kind, len(value)) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.size):
            destination, interface = _PKTINFO6.unpack(value)
            is_local = destination[0] == _LINK_LOCAL[0] and destination[1] & _LINK_LOCAL_MASK == _LINK_LOCAL[1]
            is_unicast = destination[0] != _MULTICAST
            answer_from = [(level, kind, _PKTINFO6.pack(destination, interface if is_local else 0))]
    return is_unicast, answer_from
