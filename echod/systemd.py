"""The process as a service of systemd: notifications, the watchdog, sockets handed over, and the journal.

The protocols are those of sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3) and sd-daemon(3). Without systemd, nothing
here has an effect.
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
"""The first descriptor that is handed over (SD_LISTEN_FDS_START)."""
_MOST_UNSENT = 8
_STATUS_EVERY = 1.0  # seconds
_STOP_GOES_ON = 15.0
"""Seconds by which each `look` extends the time to stop: enough for the next one and the log's last lines, if it is busy."""
_PINGS = 3
"""Pings in the time of WATCHDOG_USEC. sd_watchdog_enabled(3) asks for two; the third allows for a late timer."""
_JOURNAL = "/run/systemd/journal/stdout"
_JOURNAL_BUFFER = 8 << 20  # bytes, as systemd asks for; the kernel caps it at net.core.wmem_max
_PRIORITIES = {"error": "<3>", "warning": "<4>", "answer": "<6>"}
_OTHER = "<5>"
"""Notice, also for the lower levels. With LogLevelMax=notice the journal then holds echod's own lines, but not what systemd
logs at info about the unit, nor the answers of commands such as ExecReload=, which are not JSON. Each of echod's lines has its
exact level as a field."""


class Inherited(NamedTuple):
    """A socket that systemd hands over, and its name there (FileDescriptorName=)."""

    fd: int
    name: str


class Service:
    """The connection to systemd. It takes the variables that are for this process alone out of the environment.

    Raises `Refusal` if they make no sense. No method blocks or raises, whatever state systemd is in. `mistaken` says why
    there are sockets that this process does not take; otherwise it is empty.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = os.fsencode(environ.pop("NOTIFY_SOCKET", ""))
        self._ping_every = _ping_every(environ)
        self.inherited, self.mistaken = _inherited(environ)
        self._address = b"\0" + address[1:] if address.startswith(b"@") else address
        # Open from the start: without a free descriptor, the process couldn't ping, and the watchdog would end it.
        self._socket = _datagram_socket() if address else None
        self._unsent: deque[bytes] = deque(maxlen=_MOST_UNSENT)  # state changes, oldest first
        self._last_status = ""
        self._next_status = 0.0
        self._stopping = False

    def ready(self, status: Callable[[], str]) -> None:
        """Report that a start or a reload is complete. Ignored after `stopping`, when a reload is abandoned."""
        if not self._stopping:
            self._report(status, "READY=1")

    def reloading(self) -> None:
        """Report that a reload begins. `ready` ends it, whether it succeeds or not. Ignored after `stopping`, as that is."""
        if not self._stopping:
            self._report(None, "RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: Callable[[], str]) -> None:
        """Report that the service stops, or goes on to. It may take any time: each `look` extends the time to stop."""
        self._stopping = True
        self._report(status, "STOPPING=1", _extension())

    def look(self, status: Callable[[], str]) -> None:
        """Report a new status, at most once a second. To be called regularly."""
        self._send_unsent()
        now = time.monotonic()
        if self._socket is None or self._unsent or now < self._next_status:
            return
        self._next_status = now + _STATUS_EVERY
        news = [*self._status_if_new(status), *([_extension()] if self._stopping else [])]
        if news and not self._send("\n".join(news).encode()):
            self._last_status = ""  # repeat it next time

    def ping(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ping the watchdog, if there is one, from a timer of the loop: if the loop hangs, the pings end."""
        if self._ping_every is not None:
            self._send(b"WATCHDOG=1")
            loop.call_later(self._ping_every, lambda: self.ping(loop))

    def _report(self, status: Callable[[], str] | None, *assignments: str) -> None:
        """Report a change of state. It must not be lost, so each `look` tries again until it is sent."""
        if self._socket:
            self._unsent.append("\n".join([*assignments, *(self._status_if_new(status) if status else [])]).encode())
            self._send_unsent()

    def _status_if_new(self, status: Callable[[], str]) -> list[str]:
        before, self._last_status = self._last_status, status()
        return [] if self._last_status == before else [f"STATUS={self._last_status}"]

    def _send_unsent(self) -> None:
        while self._unsent and self._send(self._unsent[0]):
            self._unsent.popleft()

    def _send(self, message: bytes) -> bool:
        """Send a datagram, and return whether that succeeded."""
        if self._socket is None:
            return False
        try:
            self._socket.sendto(message, self._address)
        except OSError:  # the socket of systemd is full or gone; the daemon serves on
            return False
        return True


def _datagram_socket() -> socket.socket | None:
    with contextlib.suppress(OSError):  # RestrictAddressFamilies= without AF_UNIX
        return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    return None


def _extension() -> str:
    return f"EXTEND_TIMEOUT_USEC={_STOP_GOES_ON * 1e6:.0f}"


def _ping_every(environ: MutableMapping[str, str]) -> float | None:
    """Return the seconds between two pings, or `None` if this process has no watchdog."""
    microseconds, process = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(os.getpid()))
    if process != str(os.getpid()) or not _is_number(microseconds) or not int(microseconds):
        return None
    return int(microseconds) / 1e6 / _PINGS


def _inherited(environ: MutableMapping[str, str]) -> tuple[list[Inherited], str]:
    """Return the sockets for this process, as sd_listen_fds_with_names(3) does, and why it does not take those of another."""
    process, number, names = (environ.pop(name, None) for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if number is None:
        return [], ""
    if process != str(os.getpid()):  # that of a parent; by now, the descriptors may be anything
        whose = f"process {process}" if process else "no process"
        hint = "a wrapper has to start echod with exec"
        return [], f"LISTEN_FDS: the sockets are meant for {whose} (LISTEN_PID), not for {os.getpid()}: {hint}"
    if not _is_number(number):
        raise Refusal(f"echod: LISTEN_FDS: must be a number, got {number!r}")
    fds = range(_FIRST, _FIRST + int(number))
    for fd in fds:
        try:
            os.set_inheritable(fd, False)  # noqa: FBT003 - takes no keyword
        except OSError as error:
            raise Refusal(f"echod: LISTEN_FDS: says {number}, but descriptor {fd}: {error.strerror}") from None
    named = ["unknown"] * len(fds) if names is None else names.split(":") if fds else []
    if len(named) != len(fds):
        raise Refusal(f"echod: LISTEN_FDNAMES: must have a name for each of {number} sockets, got {names!r}")
    return [Inherited(fd, name) for fd, name in zip(fds, named, strict=True)], ""


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20  # noqa: PLR2004 - the digits of 64 bits


def is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Return whether the descriptor is the stream named by $JOURNAL_STREAM (systemd.exec(5)).

    It isn't enough that the variable is set: children of a service inherit it, even if their output goes elsewhere.
    """
    status = os.fstat(fd)
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def journal_stream(path: str = _JOURNAL) -> int:
    """Return the descriptor of a new stream to the journal, as sd_journal_stream_fd(3) does. Raises `OSError`.

    The journal finds out by itself which unit the process belongs to. A line without a priority gets "err", as in the unit.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.shutdown(socket.SHUT_RD)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _JOURNAL_BUFFER)
        # One a line: identifier, unit (only root may name one), priority of lines without one, whether lines begin with
        # their priority, and whether to forward them to syslog, to the kernel's log and to the console.
        sock.sendall(b"echod\n\n3\n1\n0\n0\n0\n")
        return sock.detach()


def prefixed(level: str, text: str) -> str:
    """Begin each line with its priority (sd-daemon(3)), which the journal removes again."""
    priority = _PRIORITIES.get(level, _OTHER)
    return "\n".join(priority + line for line in text.split("\n"))
