"""The terminal while a screen is drawn on it again and again: a real one, whose other side the tests have."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from echod.client import terminal
from echod.client.terminal import Terminal
from tests.support.harness import DEADLINE, until
from tests.support.in_process import descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


class Other:
    """The other side of a terminal."""

    def __init__(self) -> None:
        self.fd, self.end = pty.openpty()

    def terminal(self, keys: int | None = None) -> Terminal:
        return Terminal(self.write, self.end if keys is None else keys, self.end)

    def write(self, text: str) -> None:
        os.write(self.end, text.encode())

    def shows(self, text: str) -> bool:
        """Say whether this is what has been written to the terminal since. It takes the kernel a moment."""
        os.set_blocking(self.fd, False)
        written = ""

        def read() -> bool:
            nonlocal written
            with contextlib.suppress(BlockingIOError):
                written += os.read(self.fd, 1 << 16).decode().replace("\r\n", "\n")
            return len(written) >= len(text)

        until(read, what=text)
        return written == text

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("=HHHH", lines, columns, 0, 0))

    @property
    def mode(self) -> list[Any]:
        return termios.tcgetattr(self.end)

    def close(self) -> None:
        for fd in (self.fd, self.end):
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.fixture
def other() -> Iterator[Other]:
    other = Other()
    yield other
    other.close()


def handlers() -> list[Any]:
    return [
        signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP, signal.SIGWINCH)
    ]


@pytest.mark.parametrize(
    ("is_terminal", "term", "capable"),
    [(True, "xterm", True), (True, "dumb", False), (True, "", False), (False, "xterm", False)],
)
def test_a_terminal_is_capable_unless_it_is_dumb(
    other: Other,
    monkeypatch: pytest.MonkeyPatch,
    is_terminal: bool,  # noqa: FBT001 - as pytest passes it
    term: str,
    capable: bool,  # noqa: FBT001
) -> None:
    """A file is none at all."""
    monkeypatch.setenv("TERM", term)
    with (
        Path(os.devnull).open("w") as nothing,
        open(other.end if is_terminal else nothing.fileno(), "w", closefd=False) as output,
    ):
        monkeypatch.setattr(sys, "stdout", output)
        assert terminal.is_capable() == capable


def test_it_is_put_back_at_the_end(other: Other) -> None:
    """The screen, the cursor, the echo of keys, the handlers of signals; and no descriptor is left."""
    mode, before, count = other.mode, handlers(), descriptors()
    with other.terminal():
        assert other.shows(ENTER)
        assert not other.mode[3] & (termios.ICANON | termios.ECHO)
        assert other.mode[3] & termios.ISIG
    assert other.shows(LEAVE)
    assert (other.mode, handlers(), descriptors()) == (mode, before, count)
    assert signal.set_wakeup_fd(-1) == -1


def test_it_is_put_back_by_an_error(other: Other) -> None:
    """Whatever it is."""
    mode = other.mode
    with pytest.raises(ZeroDivisionError), other.terminal():
        raise ZeroDivisionError
    assert other.shows(ENTER + LEAVE)
    assert other.mode == mode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_it_is_put_back_by_a_signal(other: Other, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    """Which then ends the process as ever."""
    raised: list[tuple[int, Any, bool, list[Any]]] = []
    mode = other.mode
    with other.terminal():
        handler: Any = signal.getsignal(number)

        def raise_signal(each: int) -> None:
            raised.append((each, signal.getsignal(number), other.shows(ENTER + LEAVE), other.mode))

        monkeypatch.setattr(signal, "raise_signal", raise_signal)
        handler(number, None)
    assert raised == [(number, signal.SIG_DFL, True, mode)]


def test_it_is_put_back_while_the_command_is_suspended(other: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ctrl-Z. When the shell continues it, the screen is its own again."""
    stopped: list[tuple[int, bool, list[Any]]] = []
    mode = other.mode
    with other.terminal():
        handler: Any = signal.getsignal(signal.SIGTSTP)

        def raise_signal(each: int) -> None:
            stopped.append((each, other.shows(ENTER + LEAVE), other.mode))

        monkeypatch.setattr(signal, "raise_signal", raise_signal)
        handler(signal.SIGTSTP, None)
        assert other.shows(ENTER)
        assert not other.mode[3] & termios.ICANON
    assert stopped == [(signal.SIGSTOP, True, mode)]


def test_a_screen_is_cut_to_the_terminal(other: Other) -> None:
    """And what was there before is erased, without a flicker."""
    other.resize(2, 5)
    with other.terminal() as screen:
        assert screen.size == (2, 5)
        assert other.shows(ENTER)
        screen.draw(["123456", "12345", "gone"])
        assert other.shows("\x1b[H12345\x1b[K\n12345\x1b[K\x1b[J")


def test_a_terminal_that_does_not_know_its_size_has_the_usual_one(other: Other) -> None:
    """As some serial lines. So has one that has gone."""
    other.resize(0, 0)
    with other.terminal() as screen:
        assert screen.size == (24, 80)
        reader, writer = os.pipe()
        screen._output = writer
        assert screen.size == (24, 80)
        os.close(reader)
        os.close(writer)


def test_a_key_ends_the_wait(other: Other) -> None:
    """Without a newline."""
    with other.terminal() as screen:
        other.type("s")
        assert screen.wait(DEADLINE) == "s"
        assert screen.wait(0) == ""


def test_another_size_ends_the_wait(other: Other) -> None:
    """The screen is drawn again at once."""
    with other.terminal() as screen:
        signal.raise_signal(signal.SIGWINCH)
        began = time.monotonic()
        assert screen.wait(DEADLINE) == ""
        assert time.monotonic() - began < DEADLINE


def test_a_terminal_that_has_gone_ends_it(other: Other) -> None:
    """As when its window is closed: no error is added to that."""
    with other.terminal() as screen:
        os.close(other.fd)
        with pytest.raises(EOFError):
            screen.wait(DEADLINE)


def test_without_keys_it_only_shows(other: Other) -> None:
    """Standard input may be something else, even at its end."""
    with Path(os.devnull).open() as nothing:
        mode = other.mode
        with other.terminal(nothing.fileno()) as screen:
            assert other.mode == mode
            assert screen.wait(0) == ""
    assert other.shows(ENTER + LEAVE)
