"""The server as a whole: settings applied, refused and drained."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from echod import limits
from echod.errors import Refusal
from echod.networks import Ranges
from echod.server import kernel
from echod.server import server as server_module
from echod.server.acceptor import Acceptor
from echod.server.admission import MOST, TURNS
from echod.server.drain import Drain
from echod.server.listeners import adopt
from echod.server.server import LameDuck, Server
from tests.support.certificates import pem_file, shake_hands
from tests.support.fakes import Clock
from tests.support.harness import DEADLINE, LOCAL
from tests.support.in_process import KeptLog
from tests.support.rig import settings

if TYPE_CHECKING:
    from echod.config.settings import Log as LogSettings
    from echod.config.settings import Settings
    from echod.server.worker import Worker
    from tests.support.fakes import Lines
    from tests.support.rig import Rig

OTHER = "127.0.0.2"


class NotedLog(KeptLog):
    """A log that notes by which settings it is to log."""

    def __init__(self, lines: Lines) -> None:
        super().__init__(lines)
        self.configured: list[LogSettings] = []

    def configure(self, settings: LogSettings) -> None:
        self.configured.append(settings)


class Served:
    """A server on the loop of a rig, and what it has called."""

    def __init__(self, rig: Rig) -> None:
        self.checks = 0
        self.log = NotedLog(rig.lines)
        self.configured = self.log.configured
        self.server = Server(rig.loop.asyncio, self.log, checked=self._count)
        rig.pool, rig.listeners = self.server.pool, self.server.listeners

    def _count(self) -> None:
        self.checks += 1


@pytest.fixture
def served(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Served:
    rig.fake_kernel(monkeypatch)
    rig.info = rig.unacknowledged = None
    return Served(rig)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def server(served: Served) -> Server:
    return served.server


def wanted(**values: Any) -> Settings:
    return settings(**{"listen__host": [LOCAL], "listen__port": 0, "pool__size": 2, **values})


def readiness(server: Server) -> str:
    return server.readiness


def taken_port(rig: Rig) -> int:
    port = rig.reserve()
    rig.sockets[-1].listen()
    return port


def end_as_idle(rig: Rig, server: Server) -> None:
    (worker,) = server.pool.in_use.values()
    worker.seen = worker.opened = rig.loop.now  # by the loop's clock, which is not the real one here
    rig.loop.advance(2)
    assert rig.reasons() == {"idle_timeout": 1}


# Settings


def test_a_server_serves_nothing_before_its_settings_are_applied(rig: Rig, server: Server) -> None:
    """It has no workers, no listeners and no timer."""
    assert (server.state, server.is_accepting) == ("starting", False)
    assert (server.pool.size, server.listeners.urls, rig.loop.timers) == (0, [], 0)


def test_a_start_applies_all_settings(rig: Rig, served: Served) -> None:
    """They reach the pool, the rules, the timeouts, the listeners and the log."""
    server = served.server
    start = wanted(
        pool__when_full="wait",
        access__deny=["127.0.0.9/32"],
        timeouts__idle="0.2s",
        log__connections="closed",
        log__level="warning",
    )
    server.apply(start)
    assert server.settings is start
    assert (server.state, server.is_accepting) == ("running", True)
    assert (server.pool.size, server.pool.free, server.pool.lifecycle) == (2, 2, "closed")
    assert served.configured == [start.log]
    assert [each.waits for each in server.listeners.acceptors] == [True]
    port = rig.port()
    rig.sockets.append(socket.create_connection((LOCAL, port), 5, ("127.0.0.9", 0)))
    rig.connect(port)
    rig.readable()
    assert (server.pool.accepted, server.rejections.count) == (1, {"denied": 1})
    end_as_idle(rig, server)


def test_a_reload_applies_all_settings(rig: Rig, served: Served) -> None:
    """Open connections stay open."""
    server = served.server
    server.apply(wanted())
    rig.connect(rig.port())
    rig.readable()
    port = rig.reserve()
    reload = wanted(
        pool__size=3,
        pool__when_full="wait",
        listen__port=port,
        access__per_source=1,
        timeouts__idle="0.2s",
        log__connections="none",
    )
    server.apply(reload)
    assert server.settings is reload
    assert server.state == "running"
    assert (server.pool.size, server.pool.free, server.pool.lifecycle) == (3, 2, "none")
    assert served.configured[1:] == [reload.log]
    assert server.listeners.urls == [f"tcp://{LOCAL}:{port}"]
    rig.connect(port)
    rig.readable()
    assert (len(server.pool.in_use), server.rejections.count) == (1, {"per_source": 1})
    end_as_idle(rig, server)


def test_workers_that_a_reload_drops_are_freed_some_in_each_turn(
    rig: Rig, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To free thousands at once would hold the loop."""
    monkeypatch.setattr(server_module, "FREED", 3)
    server.apply(wanted(pool__size=10))
    dropped: list[Worker] = []
    resize = server.pool.resize

    def kept(size: int, more: list[Worker]) -> list[Worker]:
        dropped.extend(resize(size, more))
        return dropped

    monkeypatch.setattr(server.pool, "resize", kept)
    server.apply(wanted(pool__size=2))
    for left in (5, 2, 0):
        assert len(dropped) == left
        rig.loop.turn()


def test_a_server_knows_when_it_began(rig: Rig, clock: Clock) -> None:
    """`/status` has the seconds since then."""
    assert Server(rig.loop.asyncio, NotedLog(rig.lines), checked=lambda: None).began == clock.now


def test_a_server_limits_the_rate_of_accepts(rig: Rig, server: Server) -> None:
    """By the clock of its loop."""
    server.apply(wanted(access__accept_rate="1/s"))
    rig.fill(rig.port())
    assert server.rejections.count == {"accept_rate": 1}


@pytest.mark.parametrize("timeout", ["write", "lifetime"])
def test_a_server_has_the_timeouts_of_its_settings(rig: Rig, server: Server, timeout: str) -> None:
    """Besides that of idle connections."""
    server.apply(wanted(**{"timeouts__idle": "off", "timeouts__write": "off", f"timeouts__{timeout}": "0.2s"}))
    rig.connect(rig.port())
    rig.readable()
    (worker,) = server.pool.in_use.values()
    worker.seen = worker.opened = rig.loop.now
    (transport,) = rig.loop.transports
    transport.window = 0
    transport.receive(b"pending")
    rig.loop.advance(9)
    assert rig.reasons() == {f"{timeout}_timeout" if timeout == "write" else timeout: 1}


def test_proxies_need_descriptors_of_their_own(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many connections as there are workers may wait for their header."""
    raised: list[int] = []
    monkeypatch.setattr(limits, "raise_soft_limit", raised.append)
    server.apply(wanted(pool__size=5, access__proxies=["127.0.0.0/8"]))
    assert raised == [limits.needed(5, proxied=True)]


def test_proxies_have_the_rules_the_log_and_the_timeout_of_the_server(rig: Rig, server: Server) -> None:
    """A check is counted, data of an unknown client needs the permission of the proxy, and a header comes in time."""
    server.apply(
        wanted(access__proxies=["127.0.0.0/8"], access__deny=["127.0.0.0/8"], timeouts__handshake="1s", pool__size=5)
    )
    rig.connect(rig.port()).close()
    rig.connect(rig.port()).sendall(b"PROXY UNKNOWN\r\nx")
    rig.connect(rig.port())
    rig.readable()
    assert [line["command"] for line in rig.lines.events("connection.probed")] == [None, "UNKNOWN"]
    assert server.rejections.count == {"denied": 1}
    rig.loop.advance(1.1)
    assert server.rejections.count == {"denied": 1, "proxy_header": 1}


def test_tls_is_served_with_the_certificate_of_the_settings(rig: Rig, server: Server) -> None:
    """It is logged, and a handshake that does not come in time is rejected. Another one opens a connection."""
    server.apply(wanted(tls__port=0, tls__certificate=pem_file(), timeouts__handshake="1s"))
    (line,) = rig.lines.events("tls.loaded")
    assert line["certificate"] == pem_file()
    rig.connect(rig.port("tls"))
    rig.readable()
    assert server.pool.free == 1
    rig.loop.advance(1.1)
    assert (server.pool.free, server.rejections.count) == (2, {"handshake": 1})
    rig.connect(rig.port("tls"))
    rig.readable()
    shake_hands(rig.loop, rig.loop.transports[-1])
    (line,) = rig.lines.events("connection.opened")
    assert line["tls"]["version"] == "TLSv1.3"
    assert server.pool.accepted == 1


def test_udp_has_the_rules_and_the_log_of_the_server(rig: Rig, server: Server) -> None:
    """A datagram of a client that is denied gets no answer, and a line."""
    server.apply(wanted(udp__port=0, access__deny=["127.0.0.0/8"]))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", (LOCAL, rig.port("udp")))
        rig.readable()
    rig.loop.advance(1.1)
    assert [line["reasons"] for line in rig.lines.events("udp.dropped")] == [{"denied": 1}]


def test_a_reload_changes_the_receive_buffer(rig: Rig, server: Server) -> None:
    """Of connections to come, on listeners that stay."""
    server.apply(wanted(listen__receive_buffer="8Ki"))
    server.apply(wanted(listen__receive_buffer="16Ki"))
    rig.connect(rig.port())
    rig.readable()
    (worker,) = server.pool.in_use.values()
    assert worker.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 32768


def test_a_drain_judges_connections_on_hold(rig: Rig, server: Server) -> None:
    """They were accepted before it began: ends that have arrived make room for them."""
    server.apply(wanted(pool__size=1))
    port = rig.port()
    rig.connect(port)
    rig.readable()
    rig.connect(port)
    rig.connect(port)
    rig.accept()
    rig.loop.transports[0].receive_eof()

    async def test() -> None:
        draining = asyncio.create_task(server.drain(None, asyncio.get_running_loop().create_future()))
        for _ in range(3):
            await asyncio.sleep(0)
            rig.loop.turn()
        assert (server.pool.accepted, server.rejections.count.total()) == (2, 0)
        for _ in range(TURNS + 1):
            await asyncio.sleep(0)
            rig.loop.turn()
        assert server.rejections.count == {"pool_full": 1}
        del rig.loop.transports[0]
        rig.finish()
        async with asyncio.timeout(DEADLINE):
            assert await draining == 0

    rig.run(test())


def test_a_refused_reload_changes_nothing(rig: Rig, served: Served) -> None:
    """The old settings stay in force as a whole."""
    server, before = served.server, wanted()
    server.apply(before)
    urls = server.listeners.urls
    rig.lines.lines.clear()
    refused = wanted(
        pool__size=1,
        pool__when_full="wait",
        listen__port=taken_port(rig),
        access__deny=["127.0.0.0/8"],
        timeouts__idle="0.2s",
        log__connections="all",
        log__level="error",
    )
    with pytest.raises(Refusal, match="address in use"):
        server.apply(refused)
    assert server.settings is before
    assert (server.pool.size, server.pool.free, server.pool.lifecycle) == (2, 2, before.log.connections)
    assert (server.state, server.listeners.urls, served.configured) == ("running", urls, [before.log])
    assert rig.lines.lines == []
    rig.connect(rig.port())
    rig.readable()
    rig.loop.advance(10)
    assert (len(server.pool.in_use), server.rejections.count, server.pool.when_free) == (1, {}, None)


def test_a_refused_start_leaves_nothing(rig: Rig, served: Served) -> None:
    """It serves nothing, has no timer, and can be closed."""
    server = served.server
    with pytest.raises(Refusal, match="address in use"):
        server.apply(wanted(listen__port=taken_port(rig)))
    assert (server.state, server.pool.size, server.listeners.urls) == ("starting", 0, [])
    assert (rig.loop.timers, served.configured, rig.lines.lines) == (0, [], [])
    server.close()


def test_the_limit_of_descriptors_is_raised_before_the_sockets_are_bound(
    rig: Rig, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sockets of a reload are descriptors too. A refused reload leaves the limit raised."""
    raised: list[int] = []
    monkeypatch.setattr(limits, "raise_soft_limit", raised.append)
    with pytest.raises(Refusal):
        server.apply(wanted(pool__size=5, listen__port=taken_port(rig)))
    assert raised == [limits.needed(5)]


def test_a_reload_that_ends_after_a_stop_signal_does_not_take_it_back(server: Server) -> None:
    """Between the signal and the drain, a reload may be applied. The server stays not ready."""
    server.apply(wanted())
    server.state = "draining"
    server.apply(wanted(pool__size=3))
    assert (server.state, server.is_accepting) == ("draining", False)


# Prepared in a thread


def test_preparing_changes_nothing(rig: Rig, server: Server) -> None:
    """It makes the rules, and the workers by which the pool grows, in any thread."""
    server.apply(wanted())
    prepared = []
    grown = wanted(pool__size=5, access__allow=["10.0.0.0/8"])
    thread = threading.Thread(target=lambda: prepared.append(server.prepare(grown)))
    thread.start()
    thread.join(DEADLINE)
    ((rules, _, workers, _),) = prepared
    assert rules.allow is not None
    assert "10.0.0.1" in rules.allow
    assert len(workers) == 3
    rig.connect(rig.port())
    rig.readable()
    assert (server.pool.size, server.pool.free, server.rejections.count) == (2, 1, {})


def test_for_a_smaller_pool_no_workers_are_prepared(server: Server) -> None:
    """Applying the settings drops workers."""
    server.apply(wanted())
    smaller = wanted(pool__size=1)
    prepared = server.prepare(smaller)
    assert prepared.workers == []
    server.apply(smaller, prepared)
    assert server.pool.free == 1


def test_what_was_prepared_is_what_is_applied(rig: Rig, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made a second time on the loop."""
    server.apply(wanted())
    grown = wanted(pool__size=3, access__deny=["127.0.0.0/8"])
    prepared = server.prepare(grown)

    def fail(*_: object) -> None:
        raise AssertionError("made on the loop")

    monkeypatch.setattr(Ranges, "__init__", fail)
    monkeypatch.setattr(server.pool, "make", fail)
    server.apply(grown, prepared)
    assert prepared.workers[0] in server.pool._free
    rig.connect(rig.port())
    rig.readable()
    assert server.rejections.count == {"denied": 1}


# Accepting


def acceptors(server: Server) -> list[Acceptor]:
    return [each for each in server.listeners.acceptors if isinstance(each, Acceptor)]


def test_a_server_accepts_while_one_of_its_listeners_does(rig: Rig, server: Server) -> None:
    """One that is paused after an error does not matter then."""
    server.apply(wanted(listen__host=[LOCAL, OTHER]))
    first, second = acceptors(server)
    first._pause_after(OSError())
    assert server.is_accepting
    second._pause_after(OSError())
    assert not server.is_accepting
    rig.loop.advance(1)
    assert server.is_accepting


@pytest.mark.parametrize("when_full", ["reject", "wait"])
def test_a_full_pool_accepts_only_with_reject(rig: Rig, server: Server, when_full: str) -> None:
    """With "wait", a client has to wait in the backlog."""
    server.apply(wanted(pool__when_full=when_full))
    rig.fill(rig.port())
    assert server.is_accepting == (when_full == "reject")
    rig.finish()
    assert server.is_accepting


@pytest.mark.parametrize("when_full", ["reject", "wait"])
def test_a_full_pool_is_not_ready(rig: Rig, server: Server, when_full: str) -> None:
    """Another server had better get the next client: this one would reject it, or let it wait."""
    server.apply(wanted(pool__when_full=when_full))
    assert readiness(server) == "ready"
    rig.fill(rig.port())
    assert readiness(server) == "pool full"
    rig.finish()
    assert readiness(server) == "ready"


def test_a_server_whose_listeners_all_pause_is_not_ready(rig: Rig, server: Server) -> None:
    """Nor is one without a listener, or with retired ones alone."""
    assert readiness(server) == "starting"
    server.apply(wanted())
    (acceptor,) = acceptors(server)
    acceptor._pause_after(OSError())
    assert readiness(server) == "paused"
    rig.loop.advance(1)
    assert readiness(server) == "ready"
    rig.connect(rig.port())  # in its backlog
    acceptor.retire(lambda _: None)
    assert readiness(server) == "not listening"
    server.listeners.close()
    assert readiness(server) == "not listening"


# The lame duck


def test_a_lame_duck_accepts_but_is_not_ready(rig: Rig, server: Server, clock: Clock) -> None:
    """Until that is taken back. Each turn has one line, however often it is asked for."""
    server.apply(wanted())
    for _ in range(2):
        server.set_lame_duck(on=True)
    assert (readiness(server), server.is_accepting) == ("lame duck", True)
    rig.connect(rig.port())
    rig.readable()
    assert len(server.pool.in_use) == 1
    clock.now += 2.5
    for _ in range(2):
        server.set_lame_duck(on=False)
    assert readiness(server) == "ready"
    (line,) = rig.lines.events("daemon.lame_duck")
    assert (line["level"], line["in_use"], line["timeout"]) == ("info", 0, None)
    assert line["message"] == "`echod lame-duck --off` takes it back"
    (line,) = rig.lines.events("daemon.lame_duck_ended")
    assert (line["level"], line["seconds"]) == ("info", 2.5)


@pytest.mark.parametrize(
    ("before", "left"), [(None, 10.0), (0.0, 10.0), (3.0, 7.0), (9.5, 0.5), (10.0, None), (3600.0, None)]
)
def test_a_stop_is_a_lame_duck_for_what_is_left_of_its_time(
    rig: Rig, server: Server, clock: Clock, before: float | None, left: float | None
) -> None:
    """It counts from when an operator has made it one: the balancer has known since then."""
    server.apply(wanted(timeouts__lame_duck="10s"))
    if before is not None:
        server.set_lame_duck(on=True)
        clock.now += before
    server.prepare_stop()
    if left is None:
        assert (server.state, server.lame_duck, readiness(server)) == ("draining", None, "draining")
    else:
        assert (server.lame_duck, server.is_accepting) == (LameDuck(1000.0, clock.now + left), True)
        line = rig.lines.events("daemon.lame_duck")[-1]
        assert (line["timeout"], line["message"]) == (left, "another TERM or INT (Ctrl-C) begins the drain")
        server.begin_drain()
        assert (server.state, server.lame_duck) == ("draining", None)


def test_the_times_of_a_lame_duck_are_logged_in_microseconds(rig: Rig, server: Server, clock: Clock) -> None:
    """More digits would be noise."""
    server.apply(wanted(timeouts__lame_duck="10s"))
    server.set_lame_duck(on=True)
    clock.now += 1.23456789
    server.set_lame_duck(on=False)
    assert rig.lines.events("daemon.lame_duck_ended")[0]["seconds"] == 1.234568
    server.set_lame_duck(on=True)
    clock.now += 1.23456789
    server.prepare_stop()
    assert rig.lines.events("daemon.lame_duck")[-1]["timeout"] == 8.765432


def test_without_the_setting_a_stop_is_no_lame_duck(rig: Rig, server: Server) -> None:
    """It drains, also if an operator has made it a lame duck."""
    server.apply(wanted())
    server.set_lame_duck(on=True)
    server.prepare_stop()
    assert (server.state, server.lame_duck) == ("draining", None)
    assert len(rig.lines.events("daemon.lame_duck")) == 1


def test_what_stops_or_starts_is_made_no_lame_duck(server: Server) -> None:
    """Nor is a stop taken back; to ask for what is already so is no mistake."""

    def refusal(*, on: bool) -> str:
        with pytest.raises(Refusal) as caught:
            server.set_lame_duck(on=on)
        return str(caught.value)

    assert refusal(on=True) == refusal(on=False) == "the daemon starts"
    server.apply(wanted(timeouts__lame_duck="10s"))
    server.prepare_stop()
    before = server.lame_duck
    server.set_lame_duck(on=True)
    assert server.lame_duck == before
    assert refusal(on=False) == "the daemon stops"
    server.begin_drain()
    assert refusal(on=True) == refusal(on=False) == "the daemon stops"


def test_a_stop_before_it_serves_is_no_lame_duck(server: Server) -> None:
    """There are no settings yet that could ask for it."""
    server.prepare_stop()
    assert server.state == "draining"


def test_a_server_that_is_to_drain_does_not_accept(server: Server) -> None:
    """A load balancer learns it before the listeners are closed."""
    server.apply(wanted())
    server.state = "draining"
    assert not server.is_accepting


def test_inherited_listeners_are_served_instead_of_those_of_the_settings(rig: Rig, served: Served) -> None:
    """Nothing is bound then."""
    with socket.create_server((LOCAL, 0)) as theirs:
        inherited = adopt([(os.dup(theirs.fileno()), "echod.socket")]).listeners
        server = Server(rig.loop.asyncio, served.log, inherited=inherited, checked=lambda: None)
        rig.listeners = server.listeners
        server.apply(wanted(listen__port=taken_port(rig)))
        assert server.listeners.urls == [f"tcp://{LOCAL}:{theirs.getsockname()[1]}"]
        assert server.is_accepting


def test_an_address_that_comes_later_is_bound_within_a_second(
    rig: Rig, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then, the server runs and is not ready."""
    settings = wanted(listen__port=rig.reserve())
    absent = OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
    with monkeypatch.context() as patch:
        bind = mock.Mock(side_effect=absent)
        patch.setattr(socket, "socket", type("OtherSocket", (socket.socket,), {"bind": bind}))
        server.apply(settings)
        assert (server.state, readiness(server)) == ("running", "not listening")
        rig.loop.advance(3)
        assert bind.call_count == 4
    assert readiness(server) == "not listening"
    rig.loop.advance(1.1)
    assert readiness(server) == "ready"


# Checks


def test_each_check_is_reported_and_its_lag_observed(rig: Rig, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing the server ends the checks."""
    clock = Clock(monkeypatch)
    served.server.apply(wanted())
    clock.now = rig.loop.now + 1.25
    rig.loop.advance(1)
    assert served.checks == 1
    assert served.server.lag.last == pytest.approx(0.25)
    served.server.close()
    rig.loop.advance(10)
    assert (served.checks, rig.loop.timers) == (1, 0)


def test_a_check_that_fails_is_logged(rig: Rig, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the server goes on."""
    server.apply(wanted())
    rig.connect(rig.port())
    rig.readable()

    def fail(_: object) -> None:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(kernel, "info", fail)
        rig.loop.advance(1.1)
    assert rig.lines.events("internal.error")[0]["message"] == "checking connection 1 failed"


def test_a_drain_waits_for_ends_that_are_read_late(rig: Rig, server: Server) -> None:
    """However many handshakes are queued."""
    server.apply(wanted(pool__size=1))
    server._admission.late = lambda _: TURNS * MOST
    port = rig.port()
    rig.fill(port)
    rig.connect(port)
    rig.accept()

    async def test() -> None:
        draining = asyncio.create_task(server.drain(None, asyncio.get_running_loop().create_future()))
        for _ in range(TURNS * MOST + 1):
            await asyncio.sleep(0)
            rig.loop.turn()
        rig.finish()
        for _ in range(TURNS):
            await asyncio.sleep(0)
            rig.loop.turn()
        assert (server.pool.accepted, server.rejections.count.total()) == (2, 0)
        rig.finish()
        async with asyncio.timeout(DEADLINE):
            assert await draining == 0

    rig.run(test())


# The end


def test_a_drain_does_not_wait_for_ever_for_connections_on_hold(rig: Rig, server: Server) -> None:
    """If nothing judges them any more, for lack of memory, the drain does."""
    server.apply(wanted(pool__size=1))
    port = rig.port()
    rig.fill(port)
    rig.connect(port)
    rig.accept()

    async def test() -> None:
        draining = asyncio.create_task(server.drain(None, asyncio.get_running_loop().create_future()))
        async with asyncio.timeout(DEADLINE):
            while not server.rejections.count:  # noqa: ASYNC110 - the fake loop, which would judge, does not run
                await asyncio.sleep(0)
        rig.finish()
        assert await draining == 0

    rig.run(test())


def test_a_drain_stops_listening_and_waits_for_the_connections(rig: Rig, server: Server) -> None:
    """Clients in the backlog are served too, and refusals without a line get theirs."""
    server.apply(wanted(pool__when_full="wait"))
    port = rig.port()
    rig.connect(port)
    rig.readable()
    rig.connect(port)
    for _ in range(12):
        server.rejections.log(server.pool.in_use[1].client, "tcp://here:7", "denied")

    async def test() -> None:
        draining = asyncio.create_task(server.drain(None, asyncio.get_running_loop().create_future()))
        for _ in range(TURNS + 1):
            await asyncio.sleep(0)
        rig.loop.run()
        assert (server.listeners.urls, len(server.pool.in_use)) == ([], 2)
        assert rig.lines.events("connection.rejected")[-1]["suppressed"] == {"denied": 1}
        with pytest.raises(ConnectionRefusedError):
            rig.connect(port)
        for _ in range(2):
            assert not draining.done()
            rig.finish()
        assert await draining == 0

    rig.run(test())
    assert rig.reasons() == {"eof": 2}


@pytest.mark.parametrize(("patience", "left"), [(None, None), (5.0, 3.0), (1.0, 0.0)])
def test_connections_have_what_is_left_of_the_patience_of_a_drain(
    rig: Rig, server: Server, monkeypatch: pytest.MonkeyPatch, patience: float | None, left: float | None
) -> None:
    """Connections on hold have taken the other part of it."""
    given = []

    class Noted(Drain):
        async def run(self, patience: float | None, at_once: asyncio.Future[None]) -> int:
            given.append(patience)
            at_once.set_result(None)
            return await super().run(patience, at_once)

    monkeypatch.setattr(server_module, "Drain", Noted)
    server.apply(wanted(pool__size=1))
    rig.fill(rig.port())
    rig.connect(rig.port())
    rig.accept()

    async def test() -> None:
        draining = asyncio.create_task(server.drain(patience, asyncio.get_running_loop().create_future()))
        await asyncio.sleep(0)
        rig.loop.now += 2
        while not draining.done():
            await asyncio.sleep(0)
            rig.loop.run()

    rig.run(test())
    assert given == [left]


def test_headers_under_way_have_no_more_than_the_patience_of_a_drain(
    rig: Rig, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if a moment is longer."""
    monkeypatch.setattr(server_module, "HEADER_GRACE", 2 * DEADLINE)
    server.apply(wanted(access__proxies=["127.0.0.0/8"]))
    rig.connect(rig.port())
    rig.readable()

    async def test() -> None:
        assert await server.drain(0.01, asyncio.get_running_loop().create_future()) == 0

    rig.run(test())


@pytest.mark.parametrize("patience", [None, 60.0])
def test_a_drain_waits_a_moment_for_headers_under_way(
    rig: Rig, server: Server, monkeypatch: pytest.MonkeyPatch, patience: float | None
) -> None:
    """Then it closes the connections that still wait, and goes on with the others."""
    monkeypatch.setattr(server_module, "HEADER_GRACE", 0.05)
    server.apply(wanted(access__proxies=["127.0.0.0/8"]))
    clients = [rig.connect(rig.port()) for _ in range(2)]
    rig.readable()
    assert server.proxies.waiting == 2

    async def test() -> None:
        draining = asyncio.create_task(server.drain(patience, asyncio.get_running_loop().create_future()))
        await asyncio.sleep(0)
        clients[0].sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        rig.readable()
        await asyncio.to_thread(clients[1].recv, 1)
        assert (draining.done(), len(server.pool.in_use)) == (False, 1)
        rig.finish()
        assert await draining == 0

    rig.run(test())
    assert rig.reasons() == {"eof": 1}


def test_proxies_stand_before_admission_only_if_there_are_any(rig: Rig, server: Server) -> None:
    """So other connections pay nothing for them. A reload changes that, but not for those that wait."""
    server.apply(wanted())
    assert server._admission.entrance == server._admission.admit
    server.apply(wanted(access__proxies=["127.0.0.0/8"]))
    assert server._admission.entrance == server.proxies.admit
    port = rig.port()
    client = rig.connect(port)
    rig.readable()
    server.apply(wanted(listen__port=port))
    rig.connect(port)
    rig.readable()
    assert (server.proxies.waiting, len(server.pool.in_use)) == (1, 1)
    client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
    rig.readable()
    assert server.pool.sources == {"127.0.0.1": 1, "192.0.2.1": 1}


def test_closing_a_server_closes_what_waits(rig: Rig, server: Server) -> None:
    """After a drain that was interrupted, some may be left."""
    server.apply(wanted(access__proxies=["127.0.0.0/8"]))
    client = rig.connect(rig.port())
    rig.readable()
    server.close()
    assert client.recv(1) == b""
    assert server.proxies.waiting == 0


def test_a_drain_returns_how_many_connections_were_cut(rig: Rig, server: Server) -> None:
    """A second signal cuts them at once."""
    server.apply(wanted())
    rig.fill(rig.port())

    async def test() -> None:
        at_once = asyncio.get_running_loop().create_future()
        draining = asyncio.create_task(server.drain(60.0, at_once))
        await asyncio.sleep(0)
        at_once.set_result(None)
        while not draining.done():
            await asyncio.sleep(0)
            rig.loop.run()
        assert draining.result() == 2

    rig.run(test())
    assert rig.reasons() == {"drained": 2}


def test_udp_does_not_make_a_server_ready(rig: Rig, server: Server) -> None:
    """A client that connects needs another listener; only a server without any is ready by UDP alone."""
    server.apply(wanted(udp__port=0))
    assert server.udp
    assert readiness(server) == "ready"
    (acceptor,) = acceptors(server)
    acceptor._pause_after(OSError())
    assert readiness(server) == "paused"
    rig.loop.advance(1)
    assert server.is_accepting
    server.listeners._acceptors.remove(acceptor)
    assert readiness(server) == "ready"
    server.listeners._acceptors.append(acceptor)
