"""Messages and their echoes over UDP: each may be lost, come twice, or come after a later one.

The first bytes of a message are its number, after some that are random for each run. So an echo finds its message in any order,
and datagrams of an earlier run are nobody's. A smaller message needs a socket of its own, by which its echo finds it. Datagrams
are not fragmented on the way (ip(7), IP_MTU_DISCOVER): one that is larger than the path allows is lost, or refused by this kernel.

Only an echo shows that a server is there. Until the first one, there are two ways to the next address. If the kernel reports an
error, the messages under way are sent there. If a message is given up, those that follow go there, from another socket.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from echod.client.difference import Difference, describe
from echod.client.streams import Failure, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from echod.client.opening import Opened
    from echod.client.paths import Address
    from echod.client.poller import Poller
    from echod.client.streams import Message, Observer

HEAD = 8
"""Bytes of the smallest message that may share its socket with others."""
_HEAD = struct.Struct("!4sI")
_NUMBERS = 1 << 32
_READ = 1 << 16
_REMEMBERED = 1 << 18
"""Bytes of finished messages that are remembered, so that an echo which comes late or twice is compared."""
_MTU_DISCOVER: dict[int, tuple[int, int]] = {
    socket.AF_INET: (socket.IPPROTO_IP, 10),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 23),
}  # <linux/in.h>
_ALWAYS = 2  # IP_PMTUDISC_DO


class Datagrams:
    """A UDP socket, in the place of a connection: `Stream` has the same methods. Nothing is ever on its way to be opened."""

    opened: Opened | None = None
    is_opening = False

    def __init__(
        self, poller: Poller, observer: Observer, addresses: Sequence[Address], payload: Callable[[int], bytes]
    ) -> None:
        self._poller = poller
        self._observer = observer
        self._payload = payload
        self.began = time.monotonic()
        self.end: Failure | None = Failure("connect", "")
        self.echoes = self.retrans = 0
        self._run = os.urandom(4)
        self._unanswered: OrderedDict[int, Message] = OrderedDict()
        self._finished: OrderedDict[int, Message] = OrderedDict()
        self._forgotten = -1
        """The highest number of the finished messages that are not remembered."""
        self.address = addresses[0]
        """The one that answered, or that is tried."""
        self._addresses = addresses
        self._left = deque(addresses)
        self.is_retired = False
        """Whether it sends nothing more and only waits for late echoes, because none has come from its address."""
        self._open_next()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._unanswered

    def step(self) -> None:
        """Do nothing: there is no opening."""

    def put(self, message: Message) -> None:
        """Send a message."""
        if self.end:
            self._lose(message, self.end)
            return
        if number := self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # of a message before
            self._fail(number)
        head = _HEAD.pack(self._run, message.number % _NUMBERS)
        message.data = (head + self._payload(max(0, message.size - HEAD)))[: message.size]
        self._unanswered[message.number % _NUMBERS] = message
        self._send(message)

    def _send(self, message: Message) -> None:
        message.sent = time.monotonic()
        self._poller.stay_awake(message.sent)
        try:
            self._sock.send(message.data)
        except OSError as error:
            self._lose(message, Failure("error", text_of(error)))

    def give_up(self, message: Message, seconds: float) -> None:
        """Finish a message that has waited for so long. Its echo may still come, and is late then."""
        self.is_retired = not self.echoes and len(self._addresses) > 1
        self._lose(message, Failure("timeout", f"no echo within {seconds:g} s"))

    def close(self) -> None:
        """Close the socket. What is under way is not finished by that."""
        if not self.end:
            self.end = Failure("closed", "closed")
            self._release()

    def _release(self) -> None:
        self._poller.remove(self._sock.fileno())
        self._sock.close()

    def _open_next(self) -> bool:
        """Leave the address for the next one that can be opened; return whether there is one."""
        while self._left:
            address = self._left.popleft()
            try:
                sock = _connected(address)
            except OSError as error:
                if self.end:
                    self.address, self.end = address, Failure("connect", text_of(error))
                continue
            if not self.end:
                self._release()
            self.address, self.end, self._sock = address, None, sock
            self._poller.add(sock.fileno(), select.EPOLLIN, lambda _: self._read())
            return True
        return False

    def _move_on(self) -> bool:
        """Unless an echo has come, send what is under way to the next address; return whether there is one."""
        if self.echoes:
            return False
        if not self._open_next():
            self._left.extend(each for each in self._addresses if each != self.address)  # for messages that follow
            return False
        for message in list(self._unanswered.values()):
            self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # clears the error of the message before
            self._send(message)
        return True

    def _read(self) -> None:
        while not self.end:
            try:
                data = self._sock.recv(_READ)
            except BlockingIOError:
                return
            except OSError as error:
                self._fail(error.errno or 0)
                continue
            self._compare(data, time.monotonic())

    def _fail(self, number: int) -> None:
        """Take note of what the kernel has heard by ICMP (udp(7)). It does not tell of which message."""
        waiting = list(self._unanswered.values())
        if not waiting or self._move_on():
            return
        if number == errno.EMSGSIZE:
            waiting.sort(key=lambda message: -message.size)
        refused = Failure("refused", "nobody listens at this port (ICMP)")
        other = Failure("error", f"{os.strerror(number).lower()} (ICMP)")
        self._lose(waiting[0], refused if number == errno.ECONNREFUSED else other)

    def _compare(self, data: bytes, now: float) -> None:
        run, number = _HEAD.unpack(data[:HEAD].ljust(HEAD, b"\0"))
        message = self._unanswered.get(number) or self._finished.get(number) if run == self._run else None
        if message is None and run == self._run and number <= self._forgotten:
            return  # too late to be compared
        if message is None and self._unanswered:
            message = next(iter(self._unanswered.values()))  # its number may be what is wrong
        if message is None:
            return
        if data == message.data:
            self._succeed(message, now)
            return
        difference = describe(b"", message.data, b"", data)
        if difference is None:
            size = min(len(data), message.size)
            difference = Difference(size, f"{len(data)} bytes came back, not {message.size}", in_step=True)
        before = self._finish(message, "wrong")
        self._observer.wrong(self, message, difference, before)

    def _succeed(self, message: Message, now: float) -> None:
        if message.outcome:
            self._observer.late(self, message, now)
            return
        self._finish(message, "echoed")
        self.echoes += 1
        self._observer.echoed(self, message, now)

    def _lose(self, message: Message, failure: Failure) -> None:
        self._finish(message, "lost")
        self._observer.lost(self, message, failure)

    def _finish(self, message: Message, outcome: str) -> str:
        before, message.outcome = message.outcome, outcome
        number = message.number % _NUMBERS
        self._unanswered.pop(number, None)
        self._finished[number] = message
        while len(self._finished) * message.size > _REMEMBERED:
            self._forgotten = max(self._forgotten, self._finished.popitem(last=False)[0])
        return before


def _connected(address: Address) -> socket.socket:
    """Return a socket that sends to this address. Raises `OSError`: there is no route, or the kernel lacks the family."""
    sock = socket.socket(address.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(*_MTU_DISCOVER[address.family], _ALWAYS)
        sock.connect(address.sockaddr)
    except OSError:
        sock.close()
        raise
    return sock
