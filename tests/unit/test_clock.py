"""A moment keeps its Unix time until the wall clock is set, and its age whatever happens to that clock."""

from __future__ import annotations

import time

import pytest

from echod import clock


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The wall clock, as its only item, of a machine that booted 100 seconds ago."""
    wall = [1e9 + 100]
    monkeypatch.setattr(clock, "now", lambda: 100.0)
    monkeypatch.setattr(time, "time", lambda: wall[0])
    return wall


def test_a_moment_has_its_unix_time(wall: list[float]) -> None:
    assert wall
    assert clock.WallClock().of(40.0) == 1e9 + 40


@pytest.mark.parametrize("step", [5e8, -3600.0, 1.5])
def test_a_clock_that_is_set_changes_it(wall: list[float], step: float) -> None:
    """Such as that of a machine that boots in 1970, once it has learned the time."""
    at = clock.WallClock().of
    at(0.0)
    wall[0] += step
    assert at(40.0) == 1e9 + 40 + step


@pytest.mark.parametrize("step", [0.9, -0.9, 1e-6])
def test_a_clock_that_trembles_does_not(wall: list[float], step: float) -> None:
    """A start time that changes is a restart for whoever watches it (`changes()` in Prometheus)."""
    at = clock.WallClock().of
    wall[0] += step
    assert at(40.0) == 1e9 + 40


def test_now_goes_on_by_itself() -> None:
    """It is of the kernel's clocks the one of `starttime` in proc(5)."""
    assert time.clock_gettime(time.CLOCK_BOOTTIME) <= clock.now() <= time.clock_gettime(time.CLOCK_BOOTTIME)
