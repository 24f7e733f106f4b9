"""Signals in any order and at any moment: the daemon goes on, or ends in good order."""

from __future__ import annotations

import itertools
import random
import signal
import time
from signal import SIGCONT, SIGHUP, SIGINT, SIGPIPE, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH
from typing import TYPE_CHECKING

import pytest

from tests.support.bystander import unharmed
from tests.support.harness import DEADLINE, Echod, read_exactly, until
from tests.support.log_document import check_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow

HARMLESS = (SIGHUP, SIGUSR1, SIGUSR2, SIGWINCH, SIGPIPE, SIGCONT)
FATAL = (SIGTERM, SIGINT)
LIVES = 10


def test_a_storm_of_signals_hurts_no_connection(echod: Daemon) -> None:
    """HUP, on a file that changes, is good or bad, and those that mean something to other daemons."""
    numbers = random.Random(7)
    with echod() as daemon, unharmed(daemon):
        for _ in range(300):
            idle = numbers.choice(["1m", "2m", "no time"])
            daemon.file.write_text(f'[timeouts]\nidle = "{idle}"')
            daemon.signal(numbers.choice(HARMLESS))
            time.sleep(numbers.random() * 0.01)  # the moments are what is tried
        until(lambda: {line["event"] for line in daemon.answers} == {"config.reloaded", "config.rejected"}, what="both")


def live(daemon: Echod, dice: random.Random) -> list[signal.Signals]:
    """Send signals, and then those that end it too, until it has ended; return them."""
    sent: list[signal.Signals] = []
    end = time.monotonic() + DEADLINE
    harmless = dice.randrange(10)
    while daemon.process.poll() is None:
        assert time.monotonic() < end, f"goes on after {sent}"
        fatal = len(sent) >= harmless and dice.random() < 0.5
        sent.append(dice.choice(FATAL if fatal else HARMLESS))
        daemon.signal(sent[-1])
        time.sleep(dice.random() ** 4 * 0.1)  # the moments are what is tried
    return sent


def test_whenever_signals_come_it_ends_well(tmp_path: Path) -> None:
    """The exit code is 0, or that of a signal that came before our first line; every line is whole, on stderr is none."""
    began = time.monotonic()
    with Echod(directory=tmp_path):
        start = time.monotonic() - began
    for seed in range(LIVES):
        dice = random.Random(seed)
        daemon = Echod("[timeouts]\ndrain = '100ms'", directory=tmp_path)
        try:
            daemon.read_log()
            if seed % 2:
                daemon.wait_for("listener.started")
            else:
                time.sleep(dice.random() * start)
            sent = live(daemon, dice)
            code = daemon.wait()
            story = f"seed {seed}: {code} after {sent}: {daemon.raw}"
            if daemon.lines:
                assert (code, daemon.lines[-1]["event"]) == (0, "daemon.stopped"), story
            else:
                assert code == 0 or -code in sent, story
            if code != -SIGINT:  # Python itself, before it runs our first line, has a traceback for that
                assert daemon.errors() == "", story
            for line in daemon.lines:
                check_line(line)
        finally:
            daemon.kill()


def test_term_in_the_midst_of_a_reload_ends_it(echod: Daemon) -> None:
    """The new settings do not come into force any more, and the stop does not wait for them."""
    networks = ", ".join(f'"10.{number >> 8}.{number & 255}.0/24"' for number in range(20_000))
    with echod("") as daemon:
        daemon.file.write_text(f"[access]\ndeny = [{networks}]")
        daemon.signal(SIGHUP)
        assert daemon.echo(b"meanwhile") == b"meanwhile"
        daemon.signal(SIGTERM)
        assert daemon.wait() == 0
        assert daemon.answers == []
        assert daemon.lines[-1]["event"] == "daemon.stopped"


def test_hup_in_a_drain_changes_nothing(echod: Daemon) -> None:
    """Whoever is still served stays so, and no new file is read."""
    with echod("") as daemon, daemon.connect() as sock:
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"x"
        daemon.signal(SIGTERM)
        daemon.wait_for("listener.stopped")
        daemon.file.write_text("[pool]\nsize = 2")
        for number in itertools.islice(itertools.cycle(HARMLESS), 60):
            daemon.signal(number)
            sock.sendall(b"y")
            assert read_exactly(sock, 1) == b"y"
        sock.close()
        assert daemon.wait() == 0
        assert daemon.answers == []
