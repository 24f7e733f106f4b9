"""`echod top`, with canned answers."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, Self

import pytest

from echod import screen
from echod.client import control, top
from echod.client.admin_client import AdminClient
from echod.client.instances import MAIN, Instances
from echod.client.top import Top
from echod.client.totals import total
from echod.errors import Refusal
from tests.support.canned_daemon import Canned, row, status

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Canned]:
    with Canned(tmp_path / "admin.sock") as daemon:
        yield daemon


class Clock:
    """A time that passes only by sleeps, and by requests if they `take` some."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self.take = 0.0
        self.last = 10

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        if len(self.slept) == self.last:
            raise KeyboardInterrupt


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(top, "time", clock)
    rows_of = control.rows_of

    def taking(*arguments: Any, **more: Any) -> Any:
        clock.now += clock.take
        return rows_of(*arguments, **more)

    monkeypatch.setattr(control, "rows_of", taking)
    return clock


def top_of(*daemons: Canned, order: str = "id", source: str | None = None) -> Top:
    names = [MAIN] if len(daemons) == 1 else [str(number) for number in range(1, len(daemons) + 1)]
    clients = {name: AdminClient([each.path]) for name, each in zip(names, daemons, strict=True)}
    network = ipaddress.ip_network(source) if source else None
    return Top(lambda _: Instances(clients, several=len(clients) > 1), order, network)


def answer(daemon: Canned, rows: Sequence[dict[str, Any]] | None = None, **changes: Any) -> None:
    """Answer once for the state, and for the connections if there are `rows`."""
    daemon.answer(200, status(**changes))
    if rows is not None:
        daemon.answer(200, rows)


ROWS = [row(connection=number, bytes_received=number * 1000) for number in range(1, 31)]


def test_the_screen_has_the_state_and_the_connections(daemon: Canned, clock: Clock) -> None:
    """Sorted, with the order above the table."""
    answer(daemon, ROWS)
    shown = top_of(daemon, order="bytes")
    shown.refresh()
    assert shown.lines(None, " (keys)") == [
        *screen.brief(status()).splitlines(),
        "",
        "30 connections, sorted by bytes (keys)",
        *screen.connections(ROWS[::-1]).splitlines(),
    ]
    assert clock.slept == []


@pytest.mark.usefixtures("clock")
def test_the_rows_are_those_that_fit(daemon: Canned) -> None:
    """And none if there is no room."""
    answer(daemon, ROWS)
    shown = top_of(daemon)
    shown.refresh()
    lines = shown.lines(12)
    assert len(lines) == 12
    assert lines[-1].split()[0] == str(12 - len(screen.brief(status()).splitlines()) - 3)
    assert lines[-1].split() == shown.lines(None)[11].split()
    assert len(shown.lines(3)) == len(shown.lines(12)) - int(lines[-1].split()[0])


@pytest.mark.usefixtures("clock")
def test_only_connections_of_a_network_are_shown(daemon: Canned) -> None:
    """Its name is above the table."""
    answer(daemon, [row(connection=1), row(connection=2, client={"address": "::1", "port": 9})])
    shown = top_of(daemon, source="::1")
    shown.refresh()
    assert "1 connection from ::1/128, sorted by id" in shown.lines(None)
    assert shown.lines(None)[-1].split()[0] == "2"


@pytest.mark.usefixtures("clock")
def test_the_order_goes_round(daemon: Canned) -> None:
    """Through all of them, without asking again."""
    answer(daemon, ROWS)
    shown = top_of(daemon, order="rtt")
    shown.refresh()
    titles = []
    for _ in control.ORDERS:
        shown.next_order()
        titles += [line for line in shown.lines(None) if ", sorted by " in line]
    assert titles == [f"30 connections, sorted by {order}" for order in control.ORDERS]
    assert len(daemon.requests) == 2


def test_a_long_list_is_asked_for_less_often(daemon: Canned, clock: Clock) -> None:
    """It costs the daemon time, a tenth at most. The screen says how old it is."""
    clock.take = 0.5
    answer(daemon, ROWS)
    shown = top_of(daemon)
    shown.refresh()
    for seconds, is_asked in ((1.0, False), (3.0, False), (0.5, True)):
        clock.now += seconds
        answer(daemon, ROWS if is_asked else None)
        shown.refresh()
    assert daemon.requests == ["GET /status", "GET /connections", *["GET /status"] * 3, "GET /connections"]
    assert "30 connections, sorted by id" in shown.lines(None)
    clock.now += 3
    assert "30 connections, sorted by id, 3s ago" in shown.lines(None)


def test_a_restart_is_survived(daemon: Canned, clock: Clock) -> None:
    """Meanwhile the screen says that no daemon answers; the connections come with the next state."""
    answer(daemon, ROWS)
    daemon.answer_raw(b"")
    answer(daemon, ROWS[:1])
    shown = top_of(daemon)
    written: list[str] = []
    clock.last, clock.take = 3, 1.0
    with pytest.raises(KeyboardInterrupt):
        top.as_text(shown, written.append, 8)
    assert clock.slept == [1, 1, 1]
    first, second, third = written
    assert first.startswith("  echod ")
    assert second == (
        f"! echod: unix:{daemon.path}: no valid answer; is it the admin socket of echod?\n\n"
        f"0 connections, sorted by id\n{screen.connections([])}\n"
    )
    assert "\n1 connection, sorted by id\n" in third


@pytest.mark.usefixtures("clock")
def test_without_a_daemon_it_does_not_begin(daemon: Canned) -> None:
    """A wrong path is no restart."""
    with pytest.raises(Refusal, match="no valid answer"):
        top.as_text(top_of(daemon), print, None)
    with pytest.raises(Refusal, match="no valid answer"):
        top.on_terminal(top_of(daemon), print)


def test_several_instances_are_on_one_screen(daemon: Canned, tmp_path: Path, clock: Clock) -> None:
    """One that does not answer is named."""
    with Canned(tmp_path / "other.sock") as other:
        for each in (daemon, other):
            answer(each, [row(connection=7)])
        answer(daemon, [row(connection=8)])
        shown = top_of(daemon, other)
        shown.refresh()
        answers = {"1": status(), "2": status()}
        assert shown.lines(None) == [
            *screen.brief_instances(answers, total(list(answers.values())), 0).splitlines(),
            "",
            "2 connections, sorted by id",
            *screen.connections([row(instance=name, connection=7) for name in "12"], several=True).splitlines(),
        ]
        clock.now += 1
        shown.refresh()
        line = f"! echod: instance 2: unix:{other.path}: no valid answer; is it the admin socket of echod?"
        assert shown.lines(None)[:2] == [line, "! instances  1 of 2 answer"]
        assert shown.lines(None)[-1].split()[:2] == ["1", "1/8"]


class Screen:
    """A terminal of ten lines on which these keys are pressed, one each time it waits."""

    def __init__(self, clock: Clock, *keys: str | None) -> None:
        self._clock = clock
        self._keys = list(keys)
        self.size = (10, 80)
        self.drawn: list[list[str]] = []

    def __call__(self, _: object) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def draw(self, lines: list[str]) -> None:
        self.drawn.append(lines)

    def wait(self, seconds: float) -> str:
        key = self._keys.pop(0)
        if key is None:
            raise EOFError
        if not key:
            self._clock.now += seconds
        return key


def test_keys_sort_and_quit(daemon: Canned, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each at once; the daemon is asked each second."""
    terminal = Screen(clock, "s", "", "x", "ss", "q")
    monkeypatch.setattr(top, "Terminal", terminal)
    for _ in range(2):
        answer(daemon, ROWS)
    top.on_terminal(top_of(daemon), print)
    hint = "(s: sort by the next column, q: quit)"
    titles = [line for lines in terminal.drawn for line in lines if hint in line]
    orders = ["id", "client", "client", "client", "idle"]
    assert titles == [f"30 connections, sorted by {order} {hint}" for order in orders]
    assert {len(lines) for lines in terminal.drawn} == {10}
    assert daemon.requests == ["GET /status", "GET /connections"] * 2


def test_it_ends_with_its_terminal(daemon: Canned, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when its window is closed."""
    monkeypatch.setattr(top, "Terminal", Screen(clock, None))
    answer(daemon, ROWS)
    top.on_terminal(top_of(daemon), print)
    assert len(daemon.requests) == 2
