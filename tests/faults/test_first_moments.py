"""Signals that arrive before the daemon serves, also as PID 1, to which the kernel gives no signal without a handler."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, Signals
from typing import TYPE_CHECKING

import pytest

from tests.support.harness import DEADLINE, Echod, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow

NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
BLOCKED = ("env", "--block-signal=TERM,INT,HUP")
MOMENTS = [number * 0.025 for number in range(13)]
"""Seconds, up to 300 ms. A start takes 200 to 250 ms where these tests are made."""


@pytest.fixture(autouse=True)
def _allowed() -> None:
    if not shutil.which("unshare") or subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to make a PID namespace (unshare --pid)")


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class First(Echod):
    """A daemon that is PID 1 of a namespace of its own."""

    @property
    def pid(self) -> int:
        until(lambda: children(self.process.pid) or self.process.poll() is not None, what="the process")
        return children(self.process.pid)[0]

    def signal(self, number: Signals) -> None:
        os.kill(self.pid, number)

    def has_begun(self) -> bool:
        """Say whether it has a handler for TERM, which is our first instruction. One for INT is Python's."""
        return self._has_term("SigCgt")

    def loses_no_term(self) -> bool:
        """Say whether TERM is blocked, as `BLOCKED` does it, or handled already. unshare(1) blocks it too, for a moment."""
        is_unshare = Path(f"/proc/{self.pid}/comm").read_text() == "unshare\n"
        return not is_unshare and (self._has_term("SigBlk") or self.has_begun())

    def _has_term(self, mask: str) -> bool:
        """Say whether TERM is in a mask of signals, as proc(5) has it."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith(mask)]
        return bool(int(line.split()[1], 16) >> (SIGTERM - 1) & 1)


@contextlib.contextmanager
def started(directory: Path, *prefix: str, config: str = "") -> Iterator[First]:
    """Start one, and do not wait until it serves."""
    daemon = First(config, directory=directory, prefix=(*NAMESPACE, *prefix))
    try:
        daemon.read_log()
        yield daemon
    finally:
        daemon.kill()


def ends_well(daemon: First) -> bool:
    return daemon.wait() == 0 and daemon.errors() == ""


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_the_first_process_stops_whenever_it_is_told_to(tmp_path: Path, number: Signals, moment: float) -> None:
    """From its first instruction on; otherwise `docker stop` waits for ten seconds and kills it."""
    with started(tmp_path) as daemon:
        until(daemon.has_begun, what="the first instruction", interval=0)
        time.sleep(moment)
        daemon.signal(number)
        assert ends_well(daemon)


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_first_process_loses_no_signal_that_was_blocked_before(tmp_path: Path, moment: float) -> None:
    """Not even while Python itself starts."""
    with started(tmp_path, *BLOCKED) as daemon:
        until(daemon.loses_no_term, what="the signals blocked", interval=0)
        time.sleep(moment)
        daemon.signal(SIGTERM)
        assert ends_well(daemon)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_reload_that_comes_too_early_is_done_later(tmp_path: Path, moment: float) -> None:
    """The file changes, perhaps just after it was read; it is in force once the daemon serves."""
    with started(tmp_path, *BLOCKED, config="[pool]\nsize = 3") as daemon:
        until(daemon.has_begun, what="the first instruction", interval=0)
        time.sleep(moment)
        daemon.file.write_text("[pool]\nsize = 5")
        daemon.signal(SIGHUP)
        answer = daemon.wait_for("config.reloaded")
        assert [line["event"] for line in daemon.lines].index("daemon.started") < daemon.lines.index(answer)
        size = daemon.wait_for("daemon.started")["pool"]["size"]
        assert answer["new"].get("pool.size", size) == 5
        daemon.signal(SIGTERM)
        assert ends_well(daemon)


@pytest.mark.parametrize("delay", [0, 0.5])
def test_the_first_process_leaves_no_zombie(tmp_path: Path, delay: float) -> None:
    """Neither of those that ended before its first instruction, nor of those that end later."""
    orphans = f'(sleep {delay} & sleep {delay} &); [ {delay} != 0 ] || sleep 0.2; exec "$0" "$@"'
    with started(tmp_path, "sh", "-c", orphans) as daemon:
        daemon.wait_for("daemon.started")
        until(lambda: children(daemon.pid) == [], what="nobody left", deadline=DEADLINE)
        daemon.signal(SIGTERM)
        assert ends_well(daemon)


def test_the_process_is_called_echod(tmp_path: Path) -> None:
    """Also if its path has a space, or it runs as a module: then the kernel calls it by its interpreter."""
    with started(tmp_path) as daemon:
        daemon.wait_for("daemon.started")
        names = {path.read_text() for path in Path(f"/proc/{daemon.pid}/task").glob("*/comm")}
        assert names == {"echod\n"}
        daemon.signal(SIGTERM)
        assert ends_well(daemon)
