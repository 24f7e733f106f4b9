"""The commands about a running daemon, with one that answers as told."""

from __future__ import annotations

import ipaddress
import os
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from echod.client import control, screen
from echod.client.http import Client
from echod.errors import Refusal
from tests.support.canned import Canned, row, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from echod.networks import Network


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Canned]:
    with Canned(tmp_path / "admin.sock") as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Canned) -> Client:
    return Client([daemon.path])


def from_(address: str, port: int = 40000) -> dict[str, Any]:
    return {"address": address, "port": port}


ROWS = [
    row(id=3, client=from_("192.0.2.10"), age=1.0, idle=9.0, bytes=5, state="open", rtt=None),
    row(id=1, client=from_("192.0.2.9", 2), age=30.0, idle=0.0, bytes=7, state="stalled", rtt=0.25),
    row(id=2, client=from_("fe80::1%eth0"), age=20.0, idle=3.0, bytes=900, state="closing", rtt=0.5),
    row(id=4, client=from_("192.0.2.9", 1), age=10.0, idle=1.0, bytes=0, state="open", rtt=0.125),
]


def listed(
    daemon: Canned, client: Client, order: str = "id", source: Network | None = None, rows: Any = ROWS
) -> list[int]:
    daemon.answer(200, rows)
    text = control.connections(client, as_json=True, order=order, source=source)
    return [row["id"] for row in orjson.loads(text)]


def test_status_is_a_screen_or_json(daemon: Canned, client: Client) -> None:
    """For people, or in one line for programs."""
    answer = status()
    for _ in range(2):
        daemon.answer(200, answer)
    assert control.status(client, as_json=False) == screen.status(answer)
    text = control.status(client, as_json=True)
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert orjson.loads(text) == answer
    assert daemon.requests == ["GET /status"] * 2


def test_connections_are_a_table_or_json(daemon: Canned, client: Client) -> None:
    """Of the same rows in the same order."""
    for _ in range(2):
        daemon.answer(200, ROWS)
    rows = sorted(ROWS, key=lambda row: row["id"])
    assert control.connections(client, as_json=False, order="id", source=None) == screen.connections(rows)
    text = control.connections(client, as_json=True, order="id", source=None)
    assert text.count("\n") == 1
    assert orjson.loads(text) == rows
    assert daemon.requests == ["GET /connections"] * 2


@pytest.mark.parametrize(
    ("order", "numbers"),
    [
        ("id", [1, 2, 3, 4]),
        ("client", [4, 1, 3, 2]),
        ("age", [1, 2, 4, 3]),
        ("idle", [3, 2, 4, 1]),
        ("bytes", [2, 1, 3, 4]),
        ("state", [2, 3, 4, 1]),
        ("rtt", [2, 1, 4, 3]),
    ],
)
def test_connections_are_sorted(daemon: Canned, client: Client, order: str, numbers: list[int]) -> None:
    """By what can be more or less, the most first; addresses by their numbers, and not by their digits."""
    assert listed(daemon, client, order) == numbers


def test_every_order_is_tested() -> None:
    """A new one has its line above."""
    marks: Any = test_connections_are_sorted
    assert [case[0] for case in marks.pytestmark[0].args[1]] == list(control.ORDERS)


@pytest.mark.parametrize(
    ("source", "numbers"),
    [
        ("192.0.2.9/32", [1, 4]),
        ("192.0.2.0/24", [1, 3, 4]),
        ("fe80::/10", [2]),
        ("0.0.0.0/0", [1, 3, 4]),
        ("10.0.0.0/8", []),
    ],
)
def test_connections_of_one_network(daemon: Canned, client: Client, source: str, numbers: list[int]) -> None:
    """Of the one family or the other."""
    assert listed(daemon, client, source=ipaddress.ip_network(source)) == numbers


def test_a_connection_is_killed(daemon: Canned, client: Client) -> None:
    """One line says whose it was."""
    daemon.answer(200, {"id": 7, "client": from_("2001:db8::1", 9)})
    assert control.kill(client, 7) == "killed 7, [2001:db8::1]:9\n"
    assert daemon.requests == ["DELETE /connections/7"]


def test_a_reload_says_what_has_changed(daemon: Canned, client: Client) -> None:
    """A line for each setting, with both values as TOML has them."""
    daemon.answer(
        200,
        {
            "changed": ["pool.size", "listen.host"],
            "old": {"pool.size": 1, "listen.host": ["*"]},
            "new": {"pool.size": 2, "listen.host": ["::1"]},
        },
    )
    assert control.reload(client) == 'pool.size: 1 -> 2\nlisten.host: ["*"] -> ["::1"]\n'
    daemon.answer(200, {"changed": [], "old": {}, "new": {}})
    assert control.reload(client) == "reloaded, nothing has changed\n"
    assert daemon.requests == ["POST /reload"] * 2


@pytest.mark.parametrize("code", [200, 404, 422])
@pytest.mark.parametrize(
    "content", [None, 7, "x", [7], {"a": 1}, {"errors": 7}, status(uptime="long"), status(pool={})]
)
@pytest.mark.parametrize(
    "command",
    [
        lambda client: control.status(client, as_json=False),
        lambda client: control.connections(client, as_json=False, order="id", source=None),
        lambda client: control.kill(client, 7),
        control.reload,
    ],
    ids=["status", "connections", "kill", "reload"],
)
def test_what_is_no_echod_or_another_one_is_told(
    daemon: Canned, client: Client, command: Callable[[Client], str], code: int, content: Any
) -> None:
    """In one line: whatever JSON it answers."""
    daemon.answer(code, content)
    with pytest.raises(Refusal) as caught:
        command(client)
    line = f"echod: what answers at unix:{daemon.path} is no echod, or of another version"
    assert (caught.value.lines, caught.value.exit_code) == ((line,), os.EX_UNAVAILABLE)


def test_a_reload_is_waited_for_longer_than_it_may_take() -> None:
    """A file on a network that has gone is given up after a minute."""

    class Patient:
        def ask(self, *_: str, patience: float) -> tuple[int, Any]:
            assert patience > 60
            return 200, {"changed": [], "old": {}, "new": {}}

    client: Any = Patient()
    assert control.reload(client)


@pytest.mark.parametrize(
    ("code", "content", "lines", "exit_code"),
    [
        (422, {"errors": ["f:1: wrong", "f:2: too"]}, ("f:1: wrong", "f:2: too"), os.EX_CONFIG),
        (404, {"error": "there is no connection 7"}, ("echod: there is no connection 7",), os.EX_DATAERR),
        (503, {"error": "the daemon stops"}, ("echod: the daemon stops",), os.EX_UNAVAILABLE),
        (500, {"error": "bug"}, ('echod: the daemon answers 500: {"error":"bug"}',), os.EX_SOFTWARE),
        (418, ["tea"], ('echod: the daemon answers 418: ["tea"]',), os.EX_SOFTWARE),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        lambda client: control.status(client, as_json=False),
        lambda client: control.connections(client, as_json=True, order="id", source=None),
        lambda client: control.kill(client, 7),
        control.reload,
    ],
    ids=["status", "connections", "kill", "reload"],
)
def test_what_the_daemon_refuses_is_told(  # noqa: PLR0917 - a table
    daemon: Canned,
    client: Client,
    command: Callable[[Client], str],
    code: int,
    content: Any,
    lines: tuple[str, ...],
    exit_code: int,
) -> None:
    """In its words, with the exit code for that."""
    daemon.answer(code, content)
    with pytest.raises(Refusal) as caught:
        command(client)
    assert (caught.value.lines, caught.value.exit_code) == (lines, exit_code)
