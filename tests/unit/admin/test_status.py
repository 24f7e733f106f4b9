"""What the daemon says of itself: real books and listeners, connections whose kernel does what it is told."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from echod import __version__, x509
from echod.admin import status
from echod.config.certificates import Loaded
from echod.log import Held
from echod.reload import Change, Reloaded
from echod.server import kernel
from echod.server.datagrams import DROPS, ECHOED
from echod.server.endpoint import Peer
from echod.server.server import LameDuck
from echod.x509 import Certificate
from tests.support.fakes import Clock, stop_clock
from tests.support.in_process import Inside
from tests.support.rig import LISTENER, SYN, tcp_info

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLIENT = {"address": "192.0.2.9", "port": 4711}


def said(daemon: Inside) -> dict[str, Any]:
    """Return a status."""
    return asyncio.run(status.status(daemon.running, daemon.meter))


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inside]:
    stop_clock(monkeypatch, now=60.5, booted=1.6e9)
    with closing(Inside()) as daemon:
        yield daemon


# The status


def test_a_status_has_these_fields(daemon: Inside) -> None:
    """All of them from the start, and nothing that JSON can't write."""
    answer = said(daemon)
    assert orjson.loads(orjson.dumps(answer)) == answer
    assert 59 < answer.pop("uptime") < 90
    assert answer == {
        "version": __version__,
        "pid": os.getpid(),
        "state": "running",
        "readiness": "not listening",
        "accepting": False,
        "lame_duck": None,
        "config": None,
        "pool": {"size": 3, "in_use": 0, "when_full": "reject"},
        "connections": {
            "accepted": 0,
            "closed": {
                "eof": 0,
                "reset": 0,
                "truncated": 0,
                "idle_timeout": 0,
                "write_timeout": 0,
                "lifetime": 0,
                "drained": 0,
                "killed": 0,
                "error": 0,
            },
            "rejected": {
                "denied": 0,
                "per_source": 0,
                "pool_full": 0,
                "accept_rate": 0,
                "proxy_header": 0,
                "handshake": 0,
            },
            "probes": 0,
        },
        "bytes_received": 0,
        "bytes_sent": 0,
        "rates": {"interval": 0.0, "accepted": 0.0, "rejected": 0.0, "bytes_received": 0.0, "bytes_sent": 0.0},
        "listeners": [],
        "missing": [],
        "udp": None,
        "accept_paused_seconds": 0.0,
        "sources": [],
        "rejections": [],
        "tcp": {"rtt": {"p50": None, "p99": None, "max": None}, "retrans": 0},
        "loop_lag": {"last": 0.0, "p50": 0.0, "p99": 0.0, "max": 0.0},
        "tls": None,
        "reload": {
            "timestamp": "2020-09-13T12:27:30.250000Z",
            "age": 10.25,
            "success": True,
            "changed": [],
            "warnings": [],
            "errors": [],
        },
        "log": {"dropped": 0, "held": 0, "held_since": None, "error": None},
    }


def test_a_status_has_the_round_trips_of_connections_that_have_ended(daemon: Inside) -> None:
    """Quantiles are bounds of the histogram, or the most; each of them is in seconds."""
    for rtt in (0.00004, 0.0015, 0.0016, 0.31):
        daemon.pool.round_trips.observe(rtt)
    daemon.pool.retransmits = 3
    assert said(daemon)["tcp"] == {"rtt": {"p50": 0.002, "p99": 0.31, "max": 0.31}, "retrans": 3}


def test_a_status_is_what_the_books_say(daemon: Inside) -> None:
    """Of connections that have ended and of those that are open."""
    _, first = daemon.rig.take()
    first.receive(b"12345")
    first.receive_eof()
    daemon.loop.run()
    _, second = daemon.rig.take()
    second.window = 3
    second.receive(b"1234567")
    daemon.server.rejections.log(Peer("192.0.2.8", 1), LISTENER, "pool_full")
    daemon.server.lag.observe(0.0123456789)
    daemon.log.lost = 7
    daemon.log.late = Held(37, 12.3456, "EPIPE")
    answer = said(daemon)
    assert answer["pool"]["in_use"] == 1
    assert answer["connections"]["accepted"] == 2
    assert answer["connections"]["closed"]["eof"] == 1
    assert answer["connections"]["rejected"]["pool_full"] == 1
    assert (answer["bytes_received"], answer["bytes_sent"]) == (12, 8)
    assert answer["loop_lag"] == {"last": 0.012346, "p50": 0.012346, "p99": 0.012346, "max": 0.012346}
    assert answer["log"] == {"dropped": 7, "held": 37, "held_since": 12.346, "error": "EPIPE"}


def test_a_status_names_the_file_on_one_line(tmp_path: Path) -> None:
    """Whatever it is called."""
    file = tmp_path / "a\nb.toml"
    file.write_text("[pool]\nwhen_full = 'wait'")
    with closing(Inside(file)) as daemon:
        answer = said(daemon)
    assert answer["config"] == f"{tmp_path}/a\\u000ab.toml"
    assert answer["pool"]["when_full"] == "wait"


def test_a_status_has_each_listener(daemon: Inside) -> None:
    """With what becomes of who comes now, and how many the kernel holds already."""
    port, _ = daemon.listen("127.0.0.1", "127.0.0.2")
    with socket.create_connection(("127.0.0.2", port)), socket.create_connection(("127.0.0.2", port)):
        assert said(daemon)["listeners"] == [
            {"listener": f"tcp://127.0.0.1:{port}", "state": "accepting", "backlog": 16, "queued": 0},
            {"listener": f"tcp://127.0.0.2:{port}", "state": "accepting", "backlog": 16, "queued": 2},
        ]


def test_a_status_has_the_sources_with_the_most_connections(daemon: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all: there may be thousands."""
    monkeypatch.setattr(status, "SOURCES", 2)
    daemon.pool.sources.update({"192.0.2.1": 2, "192.0.2.2": 9, "2001:db8::/64": 4})
    assert said(daemon)["sources"] == [
        {"source": "192.0.2.2", "connections": 9},
        {"source": "2001:db8::/64", "connections": 4},
    ]


def test_sources_are_compared_some_in_each_turn(daemon: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has gone meanwhile is left out."""
    monkeypatch.setattr(status, "BATCH", 2)
    monkeypatch.setattr(status, "SOURCES", 3)
    sources = {f"192.0.2.{number}": number for number in range(1, 6)}
    comparing = status._largest(sources)
    comparing.send(None)
    del sources["192.0.2.5"]
    comparing.send(None)
    comparing.send(None)
    with pytest.raises(StopIteration) as ended:
        comparing.send(None)
    assert ended.value.value == [("192.0.2.4", 4), ("192.0.2.3", 3), ("192.0.2.2", 2)]
    assert daemon.pool.sources == {}


def test_a_status_has_the_last_refusals(daemon: Inside) -> None:
    """The last one first: whom it was about, where, why and when."""
    for port, reason in ((1, "denied"), (2, "pool_full")):
        daemon.server.rejections.log(Peer("192.0.2.8", port), LISTENER, reason)
    last, first = said(daemon)["rejections"]
    assert last == {
        "timestamp": "2020-09-13T12:27:40.500000Z",
        "age": 0.0,
        "client": {"address": "192.0.2.8", "port": 2},
        "listener": LISTENER,
        "reason": "pool_full",
    }
    assert first["reason"] == "denied"


def test_a_status_says_how_the_last_reload_ended(daemon: Inside) -> None:
    """With what has changed, or what was wrong."""
    daemon.reloads.last = Reloaded(60.0, 60.0, Change(["pool.size"], {"pool.size": 1}, {"pool.size": 2}, ["hm"]))
    when = {"timestamp": "2020-09-13T12:27:40.000000Z", "age": 0.5}
    assert said(daemon)["reload"] == {
        **when,
        "success": True,
        "changed": ["pool.size"],
        "warnings": ["hm"],
        "errors": [],
    }
    daemon.reloads.last = daemon.reloads.last._replace(files={"tls.key": "/etc/key.pem"})
    assert said(daemon)["reload"]["files"] == {"tls.key": "/etc/key.pem"}
    daemon.reloads.last = Reloaded(60.0, 40.0, errors=["wrong"])
    assert said(daemon)["reload"] == {
        **when,
        "success": False,
        "changed": [],
        "warnings": [],
        "errors": ["wrong"],
    }


def test_what_is_missing_is_listed_with_the_reason(daemon: Inside) -> None:
    """Beside the listeners that there are."""
    (port,) = daemon.listen("127.0.0.1", "192.0.2.1")
    answer = said(daemon)
    assert [each["listener"] for each in answer["listeners"]] == [f"tcp://127.0.0.1:{port}"]
    reason = "can't listen: Cannot assign requested address"
    assert answer["missing"] == [{"listener": f"tcp://192.0.2.1:{port}", "reason": reason}]


@pytest.mark.parametrize(
    ("begins", "ends", "valid_in", "expires_in"),
    [(3600.0, 7200.0, 3600.0, 7200.0), (-3600.0, 7200.0, 0.0, 7200.0), (-7200.0, -3600.0, 0.0, -3600.0)],
)
def test_a_certificate_is_valid_from_some_time_on(
    daemon: Inside, begins: float, ends: float, valid_in: float, expires_in: float
) -> None:
    """Both times are said, and how far they are from now."""
    now = time.time()
    first, last = (datetime.fromtimestamp(now + each, UTC) for each in (begins, ends))
    certificate = Certificate("CN=e", first, last, rsa_bits=0)
    daemon.server.handshakes.loaded = Loaded(ssl.create_default_context(), certificate, {})
    tls = said(daemon)["tls"]
    assert (tls["valid_in"], tls["expires_in"]) == pytest.approx((valid_in, expires_in), abs=60)
    assert (tls["not_before"], tls["not_after"]) == (x509.timestamp(first), x509.timestamp(last))


def test_a_lame_duck_has_its_age_and_what_is_left(daemon: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of one that an operator takes back, and never less than nothing."""
    clock = Clock(monkeypatch)
    daemon.listen("127.0.0.1")
    daemon.server.lame_duck = LameDuck(clock.now - 2.5)
    answer = said(daemon)
    assert (answer["state"], answer["readiness"], answer["accepting"]) == ("lame duck", "lame duck", True)
    assert answer["lame_duck"] == {"age": 2.5, "remaining": None}
    for until, left in ((clock.now + 7.5, 7.5), (clock.now - 0.1, 0.0)):
        daemon.server.lame_duck = LameDuck(clock.now - 2.5, until)
        assert said(daemon)["lame_duck"] == {"age": 2.5, "remaining": left}


# Whether it accepts


def test_it_accepts_while_it_runs_and_some_listener_does(daemon: Inside) -> None:
    """Neither before, nor in a drain, nor without a listener."""
    assert not daemon.server.is_accepting
    daemon.listen("127.0.0.1")
    assert daemon.server.is_accepting
    for daemon.server.state in ("starting", "draining"):
        assert not daemon.server.is_accepting


def test_it_does_not_accept_while_all_listeners_wait(daemon: Inside) -> None:
    """A load balancer had better send the next one elsewhere."""
    daemon.listen("127.0.0.1", when_full="wait")
    for _ in range(2):
        daemon.rig.take()
    assert daemon.server.is_accepting
    daemon.rig.take()
    assert not daemon.server.is_accepting
    assert said(daemon)["listeners"][0]["state"] == "waiting"


# Rates


def test_rates_are_those_of_the_last_second(daemon: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Per second of the time that has really passed; what was before does not count."""
    clock = Clock(monkeypatch)
    meter = status.Meter(daemon.server)
    _, transport = daemon.rig.take()
    transport.window = 1
    transport.receive(b"12345")
    for _ in range(3):
        daemon.server.rejections.log(Peer("192.0.2.8", 1), LISTENER, "denied")
    clock.now += 2.0
    asyncio.run(meter.measure())
    rates = {"accepted": 0.5, "rejected": 1.5, "bytes_received": 2.5, "bytes_sent": 0.5}
    assert meter.ask() == {"interval": 2.0, **rates}
    clock.now += 1.0
    asyncio.run(meter.measure())
    assert set(meter.rates.values()) == {0.0}


def test_rates_are_taken_each_second_only_while_someone_asks(daemon: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes a visit to each open connection."""
    clock = Clock(monkeypatch)
    began = clock.now
    meter = status.Meter(daemon.server)
    measured = []
    for asks in (False, True):
        for tenth in range(250):
            clock.now = began + tenth / 10
            if asks and tenth == 0:
                meter.ask()
            if meter.is_due:
                measured.append(tenth / 10)
                asyncio.run(meter.measure())
        began += 25
    assert measured == [10.0, 20.0, *(float(second) for second in range(10)), 19.0]


# Connections


def row(daemon: Inside, **changes: Any) -> dict[str, Any]:
    """Return what is said of the only connection, with some things of it as told."""
    (worker,) = daemon.pool.in_use.values()
    for name, value in changes.items():
        setattr(worker, name, value)
    return status.connection(worker)


def test_what_udp_has_done_is_in_a_status_if_it_is_served(daemon: Inside) -> None:
    """By what became of each datagram."""
    datagrams = daemon.running.server._datagrams()
    assert daemon.running.server._datagrams() is datagrams
    datagrams.results.update(echoed=3, rate=2)
    datagrams.bytes_received, datagrams.bytes_sent = 50, 30
    assert (ECHOED, *DROPS) == status.RESULTS
    assert said(daemon)["udp"] == {
        "datagrams": {**dict.fromkeys(status.RESULTS, 0), "echoed": 3, "rate": 2},
        "bytes_received": 50,
        "bytes_sent": 30,
        "kernel_drops": 0,
    }


def test_a_connection_has_these_fields(daemon: Inside) -> None:
    """With the time since it was opened, and what the kernel does not know of a pair that is no TCP left open."""
    _, transport = daemon.rig.take()
    transport.receive(b"12345")
    said = row(daemon, opened=time.monotonic() - 100)
    assert 99.9 < said.pop("age") < 110
    assert said == {
        "connection": 1,
        "client": CLIENT,
        "listener": LISTENER,
        "idle": 0.0,
        "bytes_received": 5,
        "bytes_sent": 5,
        "pending": 0,
        "state": "open",
        "tcp": None,
        "syn": None,
    }


def test_a_connection_is_idle_since_the_last_check_that_saw_it_move(daemon: Inside) -> None:
    """Where the kernel does not tell; a byte that has come since moves now."""
    _, transport = daemon.rig.take()
    for byte in (b"1", b"2345"):
        transport.receive(byte)
        assert row(daemon)["idle"] == 0.0
    worker = daemon.pool.in_use[1]
    worker.quiet_for(time.monotonic() - 50)
    assert 49.9 < row(daemon)["idle"] < 60
    transport.receive(b"6")
    assert row(daemon)["idle"] == 0.0


def test_a_connection_is_idle_for_as_long_as_the_kernel_says(daemon: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the checks have found."""
    monkeypatch.setattr(kernel, "info", lambda _: tcp_info(quiet=12.3456))
    _, transport = daemon.rig.take()
    assert row(daemon)["idle"] == 12.346
    transport.window = 0
    transport.receive(b"never read")
    assert row(daemon)["idle"] == 0.0


def test_a_connection_is_never_idle_for_less_than_nothing(daemon: Inside) -> None:
    """The timeouts' clock is the loop's, which may be a little ahead."""
    _, transport = daemon.rig.take()
    transport.receive(b"x")
    daemon.pool.in_use[1].quiet_for(time.monotonic() + 1)
    assert row(daemon)["idle"] == 0.0


def test_a_connection_says_what_its_client_does_not_read(daemon: Inside) -> None:
    """That is its state, until it reads on."""
    _, transport = daemon.rig.take()
    transport.window = 2
    transport.receive(b"12345")
    said = row(daemon)
    assert (said["state"], said["bytes_received"], said["bytes_sent"], said["pending"]) == ("stalled", 5, 2, 3)
    transport.take(3)
    assert row(daemon)["state"] == "open"


def test_a_connection_that_ends_says_so(daemon: Inside) -> None:
    """Whoever ends it; also one whose transport is not there yet."""
    worker, transport = daemon.rig.take()
    transport.window = 0
    transport.receive(b"12345")
    transport.close()
    assert row(daemon)["state"] == "closing"
    transport.take(5)
    daemon.loop.run()
    worker, _ = daemon.rig.take(made=False)
    assert row(daemon)["state"] == "closing"
    daemon.loop.run()
    assert row(daemon)["state"] == "open"
    worker.abort("killed")
    assert row(daemon)["state"] == "closing"


def test_a_connection_has_what_the_kernel_knows(daemon: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """The round trip in seconds."""
    monkeypatch.setattr(kernel, "info", lambda _: tcp_info(rtt=0.0015, retrans=3))
    daemon.rig.take()
    assert row(daemon)["tcp"] == tcp_info(rtt=0.0015, retrans=3).fields()


def test_a_connection_and_its_line_have_the_syn(daemon: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells it once, so it is kept until the connection ends, and no longer."""
    syns = iter([SYN, b""])
    monkeypatch.setattr(kernel, "saved_syn", lambda _: next(syns))
    worker, transport = daemon.rig.take()
    said = row(daemon)["syn"]
    assert (said["ttl"], said["mss"]) == (64, 65495)
    assert row(daemon)["syn"] == said
    daemon.rig.end(transport)
    (line,) = daemon.rig.lines.events("connection.closed")
    assert line["syn"] == said
    again, _ = daemon.rig.take()
    assert again is worker
    assert row(daemon)["syn"] is None


def test_without_its_line_nobody_asks_for_the_syn(daemon: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel forgets it at close."""
    monkeypatch.setattr(kernel, "saved_syn", None)
    daemon.pool.lifecycle = "none"
    daemon.rig.end(daemon.rig.take()[1])
    assert daemon.pool.closed["eof"] == 1


def test_the_kernel_knows_the_round_trip_of_a_real_connection(daemon: Inside) -> None:
    """Which is short here, but takes some time."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        ours, _ = server.accept()
        with ours:
            daemon.pool.take(ours, Peer("192.0.2.9", 4711), LISTENER)
            ours.sendall(b"x")
            client.recv(1)
            said = row(daemon)["tcp"]
            assert 0 < said["rtt"] < 1
            assert said["retrans"] == 0
