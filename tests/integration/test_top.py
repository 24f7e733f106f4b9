"""`echod top` on a terminal of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.support.harness import DEADLINE, ECHOD, environment, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.harness import Echod

    Daemon = Callable[..., Echod]

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


class Top:
    """The command on a terminal. What it draws is read as it comes."""

    def __init__(self, path: Path, *flags: str, term: str = "xterm") -> None:
        self._ours, self._theirs = pty.openpty()
        self.resize(24, 80)
        self.mode = termios.tcgetattr(self._theirs)
        self.process = subprocess.Popen(
            [*ECHOD, "top", "--admin.socket", str(path), *flags],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env=environment(LINES="", COLUMNS="", TERM=term),
            start_new_session=True,
        )
        os.set_blocking(self._ours, False)
        self._data = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("=HHHH", lines, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def read(self) -> str:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._ours, 1 << 16):
                self._data += data
        return self._data.decode(errors="ignore").replace("\r\n", "\n")  # the end may be half of a character

    def forget(self) -> None:
        """Pass over what has been drawn until now."""
        self.read()
        self._data = b""

    def wait_for(self, text: str) -> list[str]:
        """Return the lines of the first new screen that has this text."""
        self.forget()
        until(lambda: self.process.poll() is not None or any(text in each for each in self.screens()), what=text)
        return next(each for each in self.screens() if text in each).split("\n")

    def screens(self) -> list[str]:
        """Return those that are complete, without escape sequences."""
        ended = [each for each in self.read().split("\x1b[H")[1:] if "\x1b[J" in each]
        return [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", each.partition("\x1b[J")[0]) for each in ended]

    def ended(self, code: int) -> str:
        """Wait for its end; return what it wrote at last."""
        assert self.process.wait(DEADLINE) == code
        assert termios.tcgetattr(self._theirs) == self.mode
        return self.read()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "echod.sock"


@pytest.fixture
def daemon(echod: Daemon, path: Path) -> Callable[[], Any]:
    return lambda: echod(flags=["--admin.socket", str(path)])


def test_it_shows_state_and_connections_until_q(daemon: Callable[[], Any], path: Path) -> None:
    """On the alternate screen. A key sorts, and the terminal is left as it was."""
    with daemon() as served, served.connect() as client, Top(path) as top:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        lines = top.wait_for("1 connection, sorted by bytes")
        assert lines[0].startswith("  echod      ")
        assert lines[-1].split()[:2] == ["1", f"127.0.0.1:{client.getsockname()[1]}"]
        top.type("s")
        top.wait_for("1 connection, sorted by state")
        top.type("q")
        assert top.ended(0).endswith(LEAVE)


@pytest.mark.slow
def test_it_fits_the_terminal_and_survives_a_restart(daemon: Callable[[], Any], path: Path) -> None:
    """Also when its size changes. While no daemon answers, it says so."""
    with contextlib.ExitStack() as stack, Top(path) as early:
        assert f"echod: no daemon answers at unix:{path}" in early.ended(os.EX_UNAVAILABLE)
        assert ENTER not in early.read()
        with daemon() as served:
            for _ in range(30):
                stack.enter_context(served.connect())
            served.wait_for("connection.opened", count=30)
            top = stack.enter_context(Top(path, "--source", "127.0.0.0/8"))
            lines = top.wait_for("30 connections from 127.0.0.0/8")
            assert len(lines) == 24
            assert max(map(len, lines)) <= 80
            top.resize(12, 40)
            top.process.send_signal(signal.SIGWINCH)
            lines = top.wait_for("30 connections")
            assert (len(lines), max(map(len, lines))) == (12, 40)
        assert top.wait_for("! echod: no daemon answers")[2].startswith("0 connections")
        with daemon():
            assert top.wait_for("running")[0].startswith("  echod")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_leaves_the_terminal_as_it_was(daemon: Callable[[], Any], path: Path, number: signal.Signals) -> None:
    """At once, also while a daemon that hangs is asked."""
    with daemon() as served, Top(path) as top:
        top.wait_for("running")
        with served.suspended():
            top.process.send_signal(number)
            assert top.ended(-number).endswith(LEAVE)


@pytest.mark.slow
def test_ctrl_z_gives_the_terminal_back_for_a_while(daemon: Callable[[], Any], path: Path) -> None:
    """Until the shell continues it."""
    with daemon(), Top(path) as top:
        top.wait_for("running")
        top.process.send_signal(signal.SIGTSTP)
        until(lambda: top.read().endswith(LEAVE), what="the end of the screen")
        stat = Path(f"/proc/{top.process.pid}/stat")
        until(lambda: stat.read_text().split()[2] == "T", what="a stop")
        top.forget()
        top.process.send_signal(signal.SIGCONT)
        top.wait_for("running")
        top.type("q")
        top.ended(0)


@pytest.mark.slow
def test_without_escape_sequences_screens_follow_each_other(daemon: Callable[[], Any], path: Path) -> None:
    """On a dumb terminal, and in a pipe, whose end is that of the command."""
    with daemon() as served, served.connect(), served.deadline():
        with Top(path, term="dumb") as top:
            until(lambda: top.read().count("sorted by bytes\n") >= 2, what="two screens")
            assert "\x1b" not in top.read()
        piped = subprocess.Popen(
            [*ECHOD, "top", "--admin.socket", str(path)], stdout=subprocess.PIPE, text=True, env=environment()
        )
        assert piped.stdout
        lines = [piped.stdout.readline() for _ in range(20)]
        assert sum(line.startswith("  echod ") for line in lines) > 1
        assert "\x1b" not in "".join(lines)
        piped.stdout.close()
        assert piped.wait(DEADLINE) == 128 + signal.SIGPIPE
