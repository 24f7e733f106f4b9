"""The process as a service of systemd: what the manager is told, its watchdog, the sockets it hands over, its journal.

Knows nothing of the daemon, and needs the standard library alone. Where no manager is, all of it does nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from echod.errors import Refusal

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, MutableMapping

_FIRST = 3
"""Of the descriptors that are handed over: SD_LISTEN_FDS_START."""
_MOST_UNSENT = 8
_STATUS_EVERY = 1.0  # seconds
_STOP_GOES_ON = 15.0
"""Seconds asked for with each look at a drain: until the next look, then for the log's last lines, on a busy machine."""
_PINGS = 3
"""For each WATCHDOG_USEC. sd_watchdog_enabled(3) asks for two; a third one leaves room for a timer that comes late."""
_PRIORITIES = {"error": "<3>", "warning": "<4>", "answer": "<6>"}
_OTHER = "<5>"
"""Notice, also for what is less. At the journal's "info" the manager says that it started and stopped the unit: with
LogLevelMax=notice these lines, which are no JSON, stay away, and so does what a command answers, such as ExecReload=;
ours don't. The exact level stands in our lines."""


class Inherited(NamedTuple):
    """A socket that the manager has handed over, and the name that it has there (FileDescriptorName=)."""

    fd: int
    name: str


class Service:
    """Takes out of the environment what systemd has put there for this process alone, and answers it.

    No method blocks or raises, whatever is at the other end. Raises `Refusal` if it was handed what can't be.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = os.fsencode(environ.pop("NOTIFY_SOCKET", ""))
        self._ping_every = _ping_every(environ)
        self.inherited = _inherited(environ)
        self._address = b"\0" + address[1:] if address.startswith(b"@") else address
        # Held from now on: with a socket for each message, who runs out of descriptors would be ended by the watchdog.
        self._socket = _datagram_socket() if address else None
        self._unsent: deque[bytes] = deque(maxlen=_MOST_UNSENT)  # of the turns in the service's life, in their order
        self._told = ""
        self._look_again = 0.0
        self._stopping = False

    def ready(self, status: Callable[[], str]) -> None:
        """Say that the service serves, after a start or a reload; but not after `stopping`, when a reload is broken off."""
        if not self._stopping:
            self._turn(status, "READY=1")

    def reloading(self) -> None:
        """Say that a reload begins; `ready` ends it, also if it was refused."""
        self._turn(None, "RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: Callable[[], str]) -> None:
        """Say that the service stops, however long it takes: each look asks for more time."""
        self._stopping = True
        self._turn(status, "STOPPING=1", _extension())

    def look(self, status: Callable[[], str]) -> None:
        """Keep the manager up to date. To be called every now and then; it says something once a second, if it is new."""
        self._send_unsent()
        now = time.monotonic()
        if self._socket is None or self._unsent or now < self._look_again:
            return
        self._look_again = now + _STATUS_EVERY
        news = [*self._new(status), *([_extension()] if self._stopping else [])]
        if news and not self._send("\n".join(news).encode()):
            self._told = ""  # it was not: say it again

    def ping(self, loop: asyncio.AbstractEventLoop) -> None:
        """Satisfy the watchdog, if there is one, for as long as the loop gets around to its timers."""
        if self._ping_every is not None:
            self._send(b"WATCHDOG=1")
            loop.call_later(self._ping_every, lambda: self.ping(loop))

    def _turn(self, status: Callable[[], str] | None, *assignments: str) -> None:
        """Say what must not be lost: it is sent again with each look until it is taken."""
        if self._socket:
            self._unsent.append("\n".join([*assignments, *(self._new(status) if status else [])]).encode())
            self._send_unsent()

    def _new(self, status: Callable[[], str]) -> list[str]:
        before, self._told = self._told, status()
        return [] if self._told == before else [f"STATUS={self._told}"]

    def _send_unsent(self) -> None:
        while self._unsent and self._send(self._unsent[0]):
            self._unsent.popleft()

    def _send(self, message: bytes) -> bool:
        """Send a datagram; say whether it went."""
        if self._socket is None:
            return False
        try:
            self._socket.sendto(message, self._address)
        except OSError:  # full, gone, or never there: the daemon serves on
            return False
        return True


def _datagram_socket() -> socket.socket | None:
    with contextlib.suppress(OSError):  # RestrictAddressFamilies= without AF_UNIX
        return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    return None


def _extension() -> str:
    return f"EXTEND_TIMEOUT_USEC={_STOP_GOES_ON * 1e6:.0f}"


def _ping_every(environ: MutableMapping[str, str]) -> float | None:
    """Return the seconds between two pings, or None without a watchdog for this process."""
    microseconds, process = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(os.getpid()))
    if process != str(os.getpid()) or not _is_number(microseconds) or not int(microseconds):
        return None
    return int(microseconds) / 1e6 / _PINGS


def _inherited(environ: MutableMapping[str, str]) -> list[Inherited]:
    """Return the sockets that are meant for this process, as sd_listen_fds_with_names(3) does."""
    process, number, names = (environ.pop(name, None) for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if process != str(os.getpid()) or number is None:
        return []  # left over from a parent that was meant
    if not _is_number(number):
        raise Refusal(f"echod: LISTEN_FDS: must be a number, got {number!r}")
    fds = range(_FIRST, _FIRST + int(number))
    for fd in fds:
        try:
            os.set_inheritable(fd, False)  # noqa: FBT003 - it has no other form
        except OSError as error:
            raise Refusal(f"echod: LISTEN_FDS: says {number}, but descriptor {fd}: {error.strerror}") from None
    named = ["unknown"] * len(fds) if names is None else names.split(":") if fds else []
    if len(named) != len(fds):
        raise Refusal(f"echod: LISTEN_FDNAMES: must have a name for each of {number} sockets, got {names!r}")
    return [Inherited(fd, name) for fd, name in zip(fds, named, strict=True)]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20  # noqa: PLR2004 - 64 bits have no more digits


def is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Whether the descriptor is the stream that $JOURNAL_STREAM names (systemd.exec(5)).

    That it is set says little: whoever is started from a service, with its output elsewhere, has it too.
    """
    status = os.fstat(fd)
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def prefixed(level: str, text: str) -> str:
    """Begin each line with its priority, as sd-daemon(3) has it; the journal takes that off again."""
    priority = _PRIORITIES.get(level, _OTHER)
    return "\n".join(priority + line for line in text.split("\n"))
