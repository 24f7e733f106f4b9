"""Messages and their echoes on one connection.

A stream has no boundaries: echoes come in the order of the messages, in pieces of any size. So whatever comes is compared with
the oldest message that has no echo yet.

A message is finished once: echoed, lost or wrong. An echo that comes after its message was given up is late, and no loss is
taken back.
"""

from __future__ import annotations

import itertools
import select
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from echod.client.difference import Difference, describe
from echod.client.opening import Opened, Opening

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from echod.client.datagrams import Datagrams
    from echod.client.paths import Address, Route
    from echod.client.poller import Poller

    Link: TypeAlias = "Stream | Datagrams"

_READ = 1 << 18
_FOLLOWING = 16
"""Messages in which bytes are looked for that came too early: those of the one before are missing."""


class Failure(NamedTuple):
    """Why a message has no echo, or why a connection ended."""

    reason: str
    """One word for programs: timeout, connect, eof, reset, error, out_of_step."""
    text: str


_CLOSED = Failure("eof", "the server closed the connection")
_CLOSED_BY_US = Failure("closed", "closed")
_OUT_OF_STEP = Failure("out_of_step", "given up, because bytes were wrong")


class Message:
    """Bytes that are to come back. Moments are those of `time.monotonic`."""

    __slots__ = ("data", "due", "number", "outcome", "sent", "size")

    def __init__(self, number: int, size: int, due: float) -> None:
        self.number = number
        self.size = size
        self.due = due
        self.data = b""
        self.sent = 0.0
        """When the kernel got the first byte; 0 before."""
        self.outcome = ""
        """"echoed", "lost" or "wrong" once it is finished."""


class Observer(Protocol):
    """Who is told what becomes of messages and connections."""

    def opened(self, stream: Link) -> None:
        """Take note of an established connection."""

    def echoed(self, stream: Link, message: Message, now: float) -> None:
        """Take note of a right echo."""

    def late(self, stream: Link, message: Message, now: float) -> None:
        """Take note of a right echo whose message was finished before: given up, or over UDP echoed already."""

    def lost(self, stream: Link, message: Message, failure: Failure) -> None:
        """Take note of a message without an echo."""

    def wrong(self, stream: Link, message: Message, difference: Difference, before: str) -> None:
        """Take note of an echo that is not what was sent. `before` is what was said of it, or ""."""

    def ended(self, stream: Link, failure: Failure) -> None:
        """Take note of the end of an established connection that we did not close."""


class Stream:
    """One connection, from its opening to its end."""

    def __init__(
        self,
        poller: Poller,
        observer: Observer,
        route: Route,
        addresses: Sequence[Address],
        payload: Callable[[int], bytes],
    ) -> None:
        self._poller = poller
        self._observer = observer
        self._payload = payload
        self.began = time.monotonic()
        self.opened: Opened | None = None
        self.address = addresses[0]
        """The one that answered, or the first that is tried."""
        self.end: Failure | None = None
        self.is_retired = False
        """Whether it is open only for late echoes, because one did not come in time."""
        self.echoes = 0
        self.retrans = 0
        """Segments sent again, as the kernel has last told."""
        self._unsent: deque[Message] = deque()
        self._unanswered: deque[Message] = deque()
        self._rest = memoryview(b"")  # of the newest in `_unanswered`
        self._buffer = bytearray()  # from the start of the oldest in `_unanswered`
        self._last: Message | None = None
        self._events = 0
        self._opening: Opening | None = Opening(route, addresses)
        self._fd = self._opening.fileno()
        poller.add(self._fd, select.EPOLLIN, lambda _: self.step())
        poller.stay_awake(self.began)
        self.step()

    @property
    def is_opening(self) -> bool:
        """Whether it needs `step` each few milliseconds."""
        return self._opening is not None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._unsent and not self._unanswered

    def step(self) -> None:
        """Go on with the opening."""
        assert self._opening  # noqa: S101 - for mypy
        try:
            opened = self._opening.step()
        except OSError as error:
            self._opening = None
            self._poller.forget(self._fd)
            self._finish(Failure("connect", text_of(error)))
            return
        if opened is None:
            return
        self._opening = None
        self._poller.forget(self._fd)
        self.opened, self.address = opened, opened.address
        self._fd = opened.sock.fileno()
        self._events = select.EPOLLIN
        self._poller.add(self._fd, self._events, self._ready)
        self._observer.opened(self)
        self._write()

    def put(self, message: Message) -> None:
        """Send a message as soon as the connection takes it."""
        if self.end:
            self._lose(message, self.end)
            return
        self._unsent.append(message)
        if self.opened:
            self._write()

    def give_up(self, message: Message, seconds: float) -> None:
        """Finish a message that has waited for so long, and retire. Its echo may still come, and is late then."""
        self.is_retired = True
        if self._unsent and message is self._unsent[0]:
            self._unsent.popleft()
            what = "room to send" if self.opened else self._opening.phase if self._opening else ""
            self._lose(message, Failure("timeout", f"no {what} within {seconds:g} s"))
            return
        text = f"no echo within {seconds:g} s"
        if message is self._unanswered[0] and self._buffer:
            if difference := self._difference():
                self._be_wrong(message, difference)
                return
            text = f"{len(self._buffer)} of {message.size} bytes came back within {seconds:g} s"
        self._lose(message, Failure("timeout", text))

    def close(self) -> None:
        """End the connection. What is under way is not finished by that."""
        if self._opening:
            self._poller.forget(self._fd)
            self._opening.close()
            self._opening = None
        elif self.opened and not self.end:
            self._poller.remove(self._fd)
            self.opened.channel.close()
        self.end = self.end or _CLOSED_BY_US

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._write()
        if not self.end and events & ~select.EPOLLOUT:
            self._read()

    def _write(self) -> None:
        assert self.opened  # noqa: S101 - for mypy
        send = self.opened.channel.send
        wanted = select.EPOLLIN
        while self._rest or self._unsent:
            if not self._rest:
                message = self._unsent.popleft()
                message.data = self._payload(message.size)
                self._rest = memoryview(message.data)
                message.sent = time.monotonic()
                self._unanswered.append(message)
                self._poller.stay_awake(message.sent)
            try:
                self._rest = self._rest[send(self._rest) :]
            except BlockingIOError:
                wanted |= select.EPOLLOUT
                break
            except OSError as error:
                failure = ending(error)
                self._read(failure)  # the last echo may have come before the end
                self._finish(failure)
                return
        if wanted != self._events:
            self._events = wanted
            self._poller.change(self._fd, wanted)

    def _read(self, failure: Failure | None = None) -> None:
        """Read what is there. If the stream ends, a failure that is known already is the reason."""
        assert self.opened  # noqa: S101 - for mypy
        channel = self.opened.channel
        more = True
        while more:
            try:
                data = channel.recv(_READ)
            except BlockingIOError:
                return
            except OSError as error:
                self._finish(ending(error))
                return
            if not data:
                self._finish(failure or _CLOSED)
                return
            self._compare(data, time.monotonic())
            more = not self.end and self.opened.secure is not None and self.opened.secure.pending()

    def _compare(self, data: bytes, now: float) -> None:
        waiting = self._unanswered
        if waiting and not self._buffer and data == waiting[0].data:
            self._succeed(now)
            return
        self._buffer += data
        while waiting and len(self._buffer) >= waiting[0].size:
            message = waiting[0]
            if self._buffer.startswith(message.data):
                del self._buffer[: message.size]
                self._succeed(now)
                continue
            difference = self._difference()
            assert difference  # noqa: S101 - for mypy
            self._be_wrong(message, difference)
            if not difference.in_step:
                self._finish(_OUT_OF_STEP)
                return
            del self._buffer[: message.size]
            self._last = waiting.popleft()
        if self._buffer and not waiting and not self.end:
            self._be_too_much(len(self._buffer))

    def _difference(self) -> Difference | None:
        """Compare what has come since the last whole echo with the oldest message."""
        before = self._last.data if self._last else b""
        after = b"".join(message.data for message in itertools.islice(self._unanswered, 1, _FOLLOWING))
        return describe(before, self._unanswered[0].data, after, self._buffer)

    def _succeed(self, now: float) -> None:
        message = self._last = self._unanswered.popleft()
        if message.outcome:
            self._observer.late(self, message, now)
        else:
            message.outcome = "echoed"
            self.echoes += 1
            self._observer.echoed(self, message, now)

    def _lose(self, message: Message, failure: Failure) -> None:
        message.outcome = "lost"
        self._observer.lost(self, message, failure)

    def _be_wrong(self, message: Message, difference: Difference) -> None:
        before, message.outcome = message.outcome, "wrong"
        self._observer.wrong(self, message, difference, before)

    def _be_too_much(self, size: int) -> None:
        """Make an end: bytes have come that nobody has sent. So the echo before them is not right after all."""
        text = "1 byte more than was sent" if size == 1 else f"{size} bytes more than were sent"
        if self._last:
            self._be_wrong(self._last, Difference(self._last.size, text, in_step=False))
        self._buffer.clear()
        self._finish(Failure("out_of_step", text))

    def _finish(self, failure: Failure) -> None:
        """Close, and finish what is under way."""
        if self.end:
            return
        self.close()
        self.end = failure
        if self._unanswered and self._buffer and not self._unanswered[0].outcome:
            message = self._unanswered[0]
            if difference := self._difference():
                self._be_wrong(message, difference)
            else:
                text = f"{len(self._buffer)} of {message.size} bytes came back, then: {failure.text}"
                self._lose(message, Failure(failure.reason, text))
        for message in [*self._unanswered, *self._unsent]:
            if not message.outcome:
                self._lose(message, failure)
        self._unanswered.clear()
        self._unsent.clear()
        if self.opened:
            self._observer.ended(self, failure)


def ending(error: OSError) -> Failure:
    """Return what an error of an established connection means."""
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return Failure("reset", "the server reset the connection")
    return Failure("error", text_of(error))


def text_of(error: OSError) -> str:
    """Return an error of the system in the form of our own texts."""
    return error.strerror.lower() if error.strerror else str(error)
