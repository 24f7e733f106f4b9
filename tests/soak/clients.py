"""The clients of the soak: every kind of them, by readiness; each keeps book of what happened to it.

Knows nothing of the daemon's books.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
from collections import Counter
from typing import Literal, NamedTuple

from tests.support.harness import DEADLINE, LOCAL, reset

Outcome = Literal["eof", "reset", "idle_timeout", "write_timeout", "refused", "unknown", "failed"]
"""The daemon's reasons as a client sees them; "unknown" if it could be in or refused."""
Ends = Literal["close", "half-close", "reset", "reset at once", "reset unread", "idle", "deaf"]
"""What a client does when it has sent all: the last two leave the end to the daemon."""

TIMEOUT = 4
"""Seconds, idle and write, of the daemon."""
DENIED = "127.0.9."
TICK = 0.1
_PERIOD = 1 << 20
_CHUNK = 1 << 16
_PATTERN = random.Random(862).randbytes(_PERIOD) * 2
_VIEW = memoryview(_PATTERN)
_HUNG_UP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_IP_BIND_ADDRESS_NO_PORT = 24  # <linux/in.h>; Python 3.11 has no name for it


class Kind(NamedTuple):
    """A kind of client, and how many of them there are in one crowd."""

    name: str
    at_once: int
    per_second: float | None
    """New ones; `None` is as fast as they can."""
    ends: Ends
    least: int
    most: int
    """Bytes of a message."""
    messages: int = 1
    paced: bool = False
    """A message each `TICK`, and not when the last one has come back."""
    stays: float = 0.0
    """Seconds between the last echo and the end."""
    waves: bool = False
    """They come all at one time."""
    source: str = ""
    """Begin of the address; "" is any."""


KINDS = (
    Kind("churner", 20, None, "close", 1, 1000),
    Kind("talker", 10, 10, "close", 1, 65_536, messages=50, paced=True),
    Kind("byte by byte", 5, 5, "close", 1, 1, messages=30, paced=True),
    Kind("large transfer", 2, 0.5, "half-close", 1 << 24, 1 << 24),
    Kind("half-closer", 6, 10, "half-close", 1, 200_000),
    Kind("resetter", 3, 50, "reset", 1, 5000),
    Kind("resets at once", 3, 50, "reset at once", 1, 1),
    Kind("resets unread", 2, 10, "reset unread", 100_000, 400_000),
    Kind("idle", 8, 4, "idle", 1, 100),
    Kind("reads nothing", 3, 1, "deaf", 1 << 23, 1 << 23),
    Kind("denied", 2, 20, "close", 1, 100, source=DENIED),
    Kind("hoard of one", 30, 10, "idle", 1, 100, source="127.0.0.66"),
    Kind("burst", 90, 18, "close", 1, 1000, stays=0.3, waves=True),
)
"""Of two crowds: more than the pool in a burst, and more from one source than `per_source` at any time."""


class Books:
    """What became of clients."""

    def __init__(self) -> None:
        self.ended: Counter[tuple[str, Outcome]] = Counter()  # by kind
        self.sent: Counter[Outcome] = Counter()  # bytes
        self.got: Counter[Outcome] = Counter()
        self.failures: list[str] = []

    def book(self, kind: str, outcome: Outcome, sent: int = 0, got: int = 0) -> None:
        """Enter one client."""
        self.ended[kind, outcome] += 1
        self.sent[outcome] += sent
        self.got[outcome] += got

    def add(self, other: Books) -> None:
        """Enter all of another's."""
        self.ended += other.ended
        self.sent += other.sent
        self.got += other.got
        self.failures += other.failures

    def count(self, *outcomes: Outcome) -> int:
        """Return how many have ended so."""
        return sum(number for (_, outcome), number in self.ended.items() if outcome in outcomes)

    @property
    def served(self) -> int:
        """How many were certainly not refused."""
        return self.ended.total() - self.count("refused", "unknown", "failed")


class Client:
    """One connection. What it sends is a part of an endless pattern, so that each byte of the echo is known."""

    def __init__(self, kind: Kind, some: random.Random, port: int, now: float) -> None:
        self.kind = kind
        self.outcome: Outcome | None = None
        self.failure = ""
        self.sent = self.got = 0  # bytes
        self._some = some
        self._offset = some.randrange(_PERIOD)
        self._due = 0  # bytes of all messages that it has begun
        self._left = kind.messages  # not begun
        self._moved = now
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        if kind.ends == "deaf":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        self._begin()
        self.sock.bind((self._address(), 0))
        self.sock.connect_ex((LOCAL, port))

    def _address(self) -> str:
        some, source = self._some, self.kind.source
        if not source:
            return f"127.{some.randrange(16, 250)}.{some.randrange(256)}.{some.randrange(1, 255)}"
        return f"{source}{some.randrange(1, 255)}" if source.endswith(".") else source

    def _begin(self) -> None:
        self._left -= 1
        self._due += self._some.randint(self.kind.least, self.kind.most)

    def act(self, events: int, now: float) -> None:
        """Do what can be done."""
        before = self.sent + self.got
        try:
            if self.kind.ends == "reset at once":
                self._reset("unknown")
            elif self.kind.ends == "deaf" and self.got:
                if events & _HUNG_UP:
                    raise ConnectionResetError  # as reading would
                self._push()
            else:
                if events & ~select.EPOLLOUT:  # first: it may be the last that can be read
                    self._pull(events, now)
                if not self.outcome:
                    self._push()
        except ConnectionRefusedError as error:
            self._fail(str(error))
        except OSError as error:
            self._cut(now, str(error))
        if self.sent + self.got > before:
            self._moved = now

    def tick(self, now: float) -> None:
        """Do what is to be done by the clock."""
        quiet = now - self._moved
        if quiet > DEADLINE:
            self._fail(f"nothing for {quiet:.0f} s")
        elif self.got < self._due:
            pass
        elif self._left:
            self._begin()
            self.act(select.EPOLLOUT, now)
        elif self.kind.ends == "close" and quiet >= self.kind.stays:
            self._end("eof")

    def _push(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.sent < self._due:
                begin = (self._offset + self.sent) % _PERIOD
                self.sent += self.sock.send(_VIEW[begin : begin + min(self._due - self.sent, _PERIOD)])
                if self.sent == self._due and self.kind.ends == "half-close" and not self._left:
                    self.sock.shutdown(socket.SHUT_WR)

    def _pull(self, events: int, now: float) -> None:
        while True:
            try:
                data = self.sock.recv(_CHUNK)
            except BlockingIOError:
                return
            if not data:
                self._cut(now, "EOF")
                return
            if not _PATTERN.startswith(data, (self._offset + self.got) % _PERIOD):
                self._fail(f"byte {self.got} or one of the next {len(data)} is wrong")
                return
            self.got += len(data)
            if self.got > self.sent or self.kind.source == DENIED:
                self._fail("more came back than it could")
            elif self.kind.ends == "reset unread":
                self._reset("reset")
            elif self.got == self._due:
                self._heard_all()
            if self.outcome or self.kind.ends == "deaf":
                return
            if len(data) < _CHUNK and not events & _HUNG_UP:  # that was all (epoll(7)); the end would be an event
                return

    def _heard_all(self) -> None:
        if self._left:
            if not self.kind.paced:
                self._begin()
                self._push()
        elif self.kind.ends == "close" and not self.kind.stays:
            self._end("eof")
        elif self.kind.ends == "reset":
            self._reset("reset")

    def _cut(self, now: float, how: str) -> None:
        """The daemon has ended it: was it to?"""
        late = now - self._moved > TIMEOUT / 2  # it may also be we who got no processor
        if not self.got:
            with contextlib.suppress(OSError):  # what came before a reset can still be read
                self.got = len(self.sock.recv(_CHUNK))
        if not self.got:
            self._end("unknown" if late else "refused")
        elif self.kind.ends == "deaf":
            self._end("write_timeout")
        elif self.kind.ends == "half-close" and self.got == self._due:
            self._end("eof")
        elif late:
            self._end("idle_timeout" if self.got == self.sent else "unknown")
        else:
            self._fail(f"{how} after {self.got} of {self._due} bytes, {now - self._moved:.1f} s after the last")

    def _end(self, outcome: Outcome) -> None:
        self.sock.close()
        self.outcome = outcome

    def _reset(self, outcome: Outcome) -> None:
        reset(self.sock)
        self.outcome = outcome

    def _fail(self, how: str) -> None:
        self.failure = f"{self.kind.name}: {how}"
        self._end("failed")
