"""What happens to the process before anything large is imported. That it works is in tests/faults/test_first_moments.py."""

from __future__ import annotations

import builtins
import os
import signal
import sys
from typing import Any

import pytest

from echod import __main__ as entry
from echod import cli, probes


class Process:
    """Instead of this one: what has been set, and children that have ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, pid: int, zombies: int, running: bool) -> None:
        self.handlers: dict[int, Any] = {}
        self.blocked: set[int] = set()
        self.zombies = zombies
        self.running = running
        monkeypatch.setattr(os, "getpid", lambda: pid)
        monkeypatch.setattr(os, "waitpid", self._wait)
        monkeypatch.setattr(signal, "signal", self.handlers.__setitem__)
        monkeypatch.setattr(signal, "pthread_sigmask", self._mask)
        monkeypatch.setattr(cli, "main", lambda: None)

    def _wait(self, *_: int) -> tuple[int, int]:
        if self.zombies:
            self.zombies -= 1
            return 7, 0
        if self.running:
            return 0, 0
        raise ChildProcessError

    def _mask(self, how: int, numbers: set[int]) -> None:
        self.blocked = self.blocked | set(numbers) if how == signal.SIG_BLOCK else self.blocked - set(numbers)


def begin(
    monkeypatch: pytest.MonkeyPatch, *words: str, pid: int = 4711, zombies: int = 0, running: bool = False
) -> Process:
    monkeypatch.setattr(sys, "argv", ["echod", *words])
    process = Process(monkeypatch, pid=pid, zombies=zombies, running=running)
    process.blocked = {signal.SIGTERM}  # as by env(1)
    entry.main()
    return process


def no_proc(*_: object, **__: object) -> Any:
    raise FileNotFoundError


def test_a_daemon_notes_signals_from_the_first_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """HUP is kept for later, and TERM and INT have a handler."""
    monkeypatch.setattr(builtins, "open", no_proc)
    process = begin(monkeypatch, "run")
    assert process.blocked == {signal.SIGHUP}
    assert callable(process.handlers[signal.SIGTERM])
    assert callable(process.handlers[signal.SIGINT])
    assert signal.SIGCHLD not in process.handlers


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("zombies", [0, 3])
def test_as_the_first_process_it_reaps_whoever_has_no_parent(
    monkeypatch: pytest.MonkeyPatch, zombies: int, *, running: bool
) -> None:
    """Those that have ended before, and by the kernel all that end later."""
    monkeypatch.setattr(builtins, "open", no_proc)
    process = begin(monkeypatch, "run", pid=1, zombies=zombies, running=running)
    assert process.handlers[signal.SIGCHLD] == signal.SIG_IGN
    assert process.zombies == 0


@pytest.mark.parametrize("words", [["status", "--watch"], ["--version"], []])
def test_other_commands_end_by_ctrl_c_quietly(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """Also in the image, whose entry point blocks these signals."""
    process = begin(monkeypatch, *words)
    assert process.handlers == {
        signal.SIGINT: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_IGN,
        signal.SIGUSR1: signal.SIG_IGN,
        signal.SIGUSR2: signal.SIG_IGN,
    }
    assert process.blocked == set()


@pytest.mark.parametrize("name", ["ping", "bench"])
def test_ping_and_bench_start_without_the_other_commands(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """They need none of the settings."""
    ran: list[list[str]] = []
    monkeypatch.setattr(probes, "main", ran.append)
    begin(monkeypatch, name, "localhost")
    assert ran == [[name, "localhost"]]
