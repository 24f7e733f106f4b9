"""What the daemon says of itself: real books and listeners, connections whose kernel does what it is told."""

from __future__ import annotations

import os
import socket
import time
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from echod import __version__
from echod.admin import status
from echod.admin.status import Reloaded
from echod.reload import Change
from echod.server import kernel
from tests.support.fakes import FakeListener
from tests.support.inside import Inside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLIENT = {"address": "192.0.2.9", "port": 4711}


@pytest.fixture
def daemon() -> Iterator[Inside]:
    with closing(Inside()) as daemon:
        yield daemon


# The status


def test_a_status_has_these_fields(daemon: Inside) -> None:
    """All of them from the start, and nothing that JSON can't write."""
    answer = status.status(daemon)
    assert orjson.loads(orjson.dumps(answer)) == answer
    assert 59 < answer.pop("uptime") < 90
    assert answer == {
        "version": __version__,
        "pid": os.getpid(),
        "state": "running",
        "accepting": False,
        "config": None,
        "pool": {"size": 3, "in_use": 0, "when_full": "reject"},
        "connections": {
            "accepted": 0,
            "closed": {
                "eof": 0,
                "reset": 0,
                "idle_timeout": 0,
                "write_timeout": 0,
                "drained": 0,
                "killed": 0,
                "error": 0,
            },
            "rejected": {"denied": 0, "per_source": 0, "pool_full": 0, "accept_rate": 0},
        },
        "bytes": {"received": 0, "sent": 0},
        "rates": {"interval": 0.0, "accepted": 0.0, "rejected": 0.0, "bytes_received": 0.0, "bytes_sent": 0.0},
        "listeners": [],
        "accept_paused_seconds": 0.0,
        "sources": [],
        "rejections": [],
        "loop_lag": {"last": 0.0, "p50": 0.0, "p99": 0.0, "max": 0.0},
        "reload": {"timestamp": "2023-11-14T22:13:20.250000Z", "success": True, "changed": [], "errors": []},
        "log": {"dropped": 0},
    }


def test_a_status_is_what_the_books_say(daemon: Inside) -> None:
    """Of connections that have ended and of those that are open."""
    _, first = daemon.house.connect()
    first.receive(b"12345")
    first.receive_eof()
    daemon.house.loop.run()
    _, second = daemon.house.connect()
    second.window = 3
    second.receive(b"1234567")
    daemon.rejections.log(("192.0.2.8", 1), FakeListener.url, "pool_full")
    daemon.lag.observe(0.0123456789)
    daemon.log.lost = 7
    answer = status.status(daemon)
    assert answer["pool"]["in_use"] == 1
    assert answer["connections"]["accepted"] == 2
    assert answer["connections"]["closed"]["eof"] == 1
    assert answer["connections"]["rejected"]["pool_full"] == 1
    assert answer["bytes"] == {"received": 12, "sent": 8}
    assert answer["loop_lag"] == {"last": 0.012346, "p50": 0.012346, "p99": 0.012346, "max": 0.012346}
    assert answer["log"] == {"dropped": 7}


def test_a_status_names_the_file_on_one_line(tmp_path: Path) -> None:
    """Whatever it is called."""
    file = tmp_path / "a\nb.toml"
    file.write_text("[pool]\nwhen_full = 'wait'")
    with closing(Inside(file)) as daemon:
        answer = status.status(daemon)
    assert answer["config"] == f"{tmp_path}/a\\u000ab.toml"
    assert answer["pool"]["when_full"] == "wait"


def test_a_status_has_each_listener(daemon: Inside) -> None:
    """With what becomes of who comes now, and how many the kernel holds already."""
    port, _ = daemon.listen("127.0.0.1", "127.0.0.2")
    with socket.create_connection(("127.0.0.2", port)), socket.create_connection(("127.0.0.2", port)):
        assert status.status(daemon)["listeners"] == [
            {"listener": f"tcp://127.0.0.1:{port}", "state": "accepting", "backlog": 16, "queued": 0},
            {"listener": f"tcp://127.0.0.2:{port}", "state": "accepting", "backlog": 16, "queued": 2},
        ]


def test_a_status_has_the_sources_with_the_most_connections(daemon: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all: there may be thousands."""
    monkeypatch.setattr(status, "SOURCES", 2)
    daemon.pool.sources.update({"192.0.2.1": 2, "192.0.2.2": 9, "2001:db8::/64": 4})
    assert status.status(daemon)["sources"] == [
        {"source": "192.0.2.2", "connections": 9},
        {"source": "2001:db8::/64", "connections": 4},
    ]


def test_a_status_has_the_last_refusals(daemon: Inside) -> None:
    """The last one first: whom it was about, where, why and when."""
    for port, reason in ((1, "denied"), (2, "pool_full")):
        daemon.rejections.log(("192.0.2.8", port), FakeListener.url, reason)
    last, first = status.status(daemon)["rejections"]
    assert first["timestamp"] <= last["timestamp"]
    assert last.pop("timestamp").endswith("Z")
    assert last == {
        "client": {"address": "192.0.2.8", "port": 2},
        "listener": FakeListener.url,
        "reason": "pool_full",
    }
    assert first["reason"] == "denied"


def test_a_status_says_how_the_last_reload_ended(daemon: Inside) -> None:
    """With what has changed, or what was wrong."""
    daemon.reloaded = Reloaded(1e9, 1e9, Change(["pool.size"], {"pool.size": 1}, {"pool.size": 2}))
    stamp = "2001-09-09T01:46:40.000000Z"
    assert status.status(daemon)["reload"] == {
        "timestamp": stamp,
        "success": True,
        "changed": ["pool.size"],
        "errors": [],
    }
    daemon.reloaded = Reloaded(1e9, 1e8, errors=["wrong"])
    assert status.status(daemon)["reload"] == {
        "timestamp": stamp,
        "success": False,
        "changed": [],
        "errors": ["wrong"],
    }


# Whether it accepts


def test_it_accepts_while_it_runs_and_some_listener_does(daemon: Inside) -> None:
    """Neither before, nor in a drain, nor without a listener."""
    assert not status.accepting(daemon)
    daemon.listen("127.0.0.1")
    assert status.accepting(daemon)
    for daemon.state in ("starting", "draining"):
        assert not status.accepting(daemon)


def test_it_does_not_accept_while_all_listeners_wait(daemon: Inside) -> None:
    """A load balancer had better send the next one elsewhere."""
    daemon.listen("127.0.0.1", when_full="wait")
    for _ in range(2):
        daemon.house.connect()
    assert status.accepting(daemon)
    daemon.house.connect()
    assert not status.accepting(daemon)
    assert status.status(daemon)["listeners"][0]["state"] == "waiting"


# Rates


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(status, "time", SimpleNamespace(monotonic=lambda: self.now))


def test_rates_are_those_of_the_last_second(daemon: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Per second of the time that has really passed; what was before does not count."""
    clock = Clock(monkeypatch)
    meter = status.Meter(daemon.pool, daemon.rejections)
    _, transport = daemon.house.connect()
    transport.window = 1
    transport.receive(b"12345")
    for _ in range(3):
        daemon.rejections.log(("192.0.2.8", 1), FakeListener.url, "denied")
    clock.now += 2.0
    meter.look()
    assert meter.interval == 2.0
    assert meter.rates == {"accepted": 0.5, "rejected": 1.5, "bytes_received": 2.5, "bytes_sent": 0.5}
    clock.now += 1.0
    meter.look()
    assert set(meter.rates.values()) == {0.0}


def test_a_rate_is_of_a_second_at_least(daemon: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has a timer that is faster looks more often: nothing is lost by that."""
    clock = Clock(monkeypatch)
    meter = status.Meter(daemon.pool, daemon.rejections)
    daemon.house.connect()
    for _ in range(9):
        clock.now += 0.1
        meter.look()
    assert (meter.interval, meter.rates["accepted"]) == (0.0, 0.0)
    clock.now += 0.1
    meter.look()
    assert meter.rates["accepted"] == 1.0


# Connections


def row(daemon: Inside, **changes: Any) -> dict[str, Any]:
    """Return what is said of the only connection, with some things of it as told."""
    (worker,) = daemon.pool.in_use.values()
    for name, value in changes.items():
        setattr(worker, name, value)
    return status.connection(worker)


def test_a_connection_has_these_fields(daemon: Inside) -> None:
    """With the time since it was opened, and what the kernel does not know of a pair that is no TCP left open."""
    _, transport = daemon.house.connect()
    transport.receive(b"12345")
    said = row(daemon, opened=time.monotonic() - 100)
    assert 99.9 < said.pop("age") < 110
    assert said == {
        "id": 1,
        "client": CLIENT,
        "listener": FakeListener.url,
        "idle": 0.0,
        "bytes": 5,
        "pending": 0,
        "state": "open",
        "rtt": None,
        "retransmits": None,
    }


def test_a_connection_is_idle_since_the_janitor_saw_it_move(daemon: Inside) -> None:
    """What has come in since, it has not seen."""
    _, transport = daemon.house.connect()
    for byte in (b"", b"1", b"2345"):
        transport.receive(byte)
        assert row(daemon)["idle"] == 0.0
    worker = daemon.pool.in_use[1]
    worker.quiet_for(time.monotonic() - 50)
    assert 49.9 < row(daemon)["idle"] < 60
    transport.receive(b"6")
    assert row(daemon)["idle"] == 0.0


def test_a_connection_is_never_idle_for_less_than_nothing(daemon: Inside) -> None:
    """The janitor's clock is the loop's, which may be a little ahead."""
    daemon.house.connect()
    daemon.pool.in_use[1].quiet_for(time.monotonic() + 1)
    assert row(daemon)["idle"] == 0.0


def test_a_connection_says_what_its_client_does_not_read(daemon: Inside) -> None:
    """That is its state, until it reads on."""
    _, transport = daemon.house.connect()
    transport.window = 2
    transport.receive(b"12345")
    said = row(daemon)
    assert (said["state"], said["bytes"], said["pending"]) == ("stalled", 5, 3)
    transport.take(3)
    assert row(daemon)["state"] == "open"


def test_a_connection_that_ends_says_so(daemon: Inside) -> None:
    """Whoever ends it; also one whose transport is not there yet."""
    worker, transport = daemon.house.connect()
    transport.window = 0
    transport.receive(b"12345")
    transport.close()
    assert row(daemon)["state"] == "closing"
    transport.take(5)
    daemon.house.loop.run()
    worker, _ = daemon.house.connect(made=False)
    assert row(daemon)["state"] == "closing"
    daemon.house.loop.run()
    assert row(daemon)["state"] == "open"
    worker.abort("killed")
    assert row(daemon)["state"] == "closing"


def test_a_connection_has_what_the_kernel_knows(daemon: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """The round trip in seconds."""
    monkeypatch.setattr(
        kernel, "info", lambda _: kernel.Info(peer_finished=False, rtt_us=1500, retransmits=3, written=0)
    )
    daemon.house.connect()
    said = row(daemon)
    assert (said["rtt"], said["retransmits"]) == (0.0015, 3)


def test_the_kernel_knows_the_round_trip_of_a_real_connection(daemon: Inside) -> None:
    """Which is short here, but takes some time."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        ours, _ = server.accept()
        with ours:
            daemon.pool.take(ours, ("192.0.2.9", 4711), FakeListener())
            ours.sendall(b"x")
            client.recv(1)
            assert 0 < row(daemon)["rtt"] < 1
            assert row(daemon)["retransmits"] == 0
