"""The whole daemon under any order of events: nothing lost, nobody served twice, and books that agree with the clients'."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from echod.config.settings import Settings
from echod.errors import Refusal
from echod.server import drain
from echod.server.rejections import Rejections
from echod.server.timeouts import LONGEST_TICK
from tests.support.simulation import LATE, PLENTY, Client, Simulation

if TYPE_CHECKING:
    import asyncio

    from echod.admin.http import Response

SOURCES = {
    "192.0.2.1": "192.0.2.1",
    "192.0.2.2": "192.0.2.2",
    "2001:db8::1": "2001:db8::/64",
    "2001:db8::2": "2001:db8::/64",
}
"""Addresses of clients, and what they count for."""
ADDRESSES = sorted(SOURCES)
PORTS = [7001, 7002]
TAKEN = 9
WINDOWS = st.sampled_from([PLENTY, PLENTY, 0, 5])
"""Bytes that a client takes before it has to be told to."""
WHICH = st.integers(0, 9)
FACTOR = int(os.environ.get("ECHOD_TEST_EXAMPLES", "1"))
"""How many times as long to search."""

EVERY: dict[str, dict[str, Any]] = {
    "listen": {"host": "127.0.0.1", "port": PORTS[0], "backlog": 4},
    "pool": {"size": 3, "when_full": "reject"},
    "timeouts": {"idle": "20s", "write": "10s", "drain": "5s"},
    "admin": {"socket": "off"},
}
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "pool.size": st.integers(1, 5),
    "pool.when_full": st.sampled_from(["reject", "wait"]),
    "timeouts.idle": st.sampled_from(["2s", "20s", "off"]),
    "timeouts.write": st.sampled_from(["1s", "10s", "off"]),
    "timeouts.lifetime": st.sampled_from(["3s", "30s", "off"]),
    "timeouts.lame_duck": st.sampled_from(["3.33s", "off"]),  # no sum of the waits below
    "timeouts.drain": st.sampled_from(["0s", "5s", "off"]),
    "access.per_source": st.integers(0, 2),
    "access.deny": st.lists(st.sampled_from(ADDRESSES), max_size=1),
    "access.accept_rate": st.sampled_from(["off", "1/s", "3/s"]),
    "listen.port": st.sampled_from(PORTS),
}
REFUSED: list[dict[str, Any]] = [{"listen.port": TAKEN}, {"listen.backlog": 5}]
"""A port of somebody else, and what needs a restart."""
UNREADABLE: dict[str, Any] = {"": ""}
RELOADS = st.one_of(
    *(st.fixed_dictionaries({name: values}) for name, values in CHANGES.items()),
    st.fixed_dictionaries({}, optional=CHANGES),
    st.sampled_from([*REFUSED, UNREADABLE]),
)


def settings(changes: dict[str, Any], before: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what the file says after these changes."""
    after = {section: dict(keys) for section, keys in before.items()}
    for name, value in changes.items():
        section, _, key = name.partition(".")
        after.setdefault(section, {})[key] = value
    return after


def parsed(file: dict[str, dict[str, Any]]) -> Settings:
    key = json.dumps(file, sort_keys=True)
    if key not in _PARSED:
        _PARSED[key] = Settings(sources=[lambda: file])  # type: ignore[call-arg]
    return _PARSED[key]


_PARSED: dict[str, Settings] = {}


class DaemonMachine(RuleBasedStateMachine):
    """Connect, data, stall, resume, eof, reset, time, reload, errors of accept, kill, drain and stop, in any order."""

    earliest_stop = 15
    """Steps before it: not much happens after."""

    def __init__(self) -> None:
        super().__init__()
        self.file = EVERY
        self.house = Simulation(parsed(self.file))
        self.house.network.taken.add(TAKEN)
        self.loop, self.network, self.lines = self.house.loop, self.house.network, self.house.lines
        self.pool = self.house.daemon.server.pool
        self.everybody: dict[int, Client] = {}  # by port
        self.by_number: dict[int, Client] = {}
        self.asked: list[tuple[asyncio.Task[Response], int]] = []
        self.killed: set[int] = set()  # by their numbers
        self.read = 0  # lines
        self.ducks: list[tuple[asyncio.Task[Response], int]] = []  # requests about the lame duck, and what they get
        self.signals = 0
        self.cuts = 0  # signals in the drain
        self.steps = 0
        self.duck_since: float | None = None  # by an operator
        self.drains_at: float | None = None
        self.in_a_row = 0
        self.settled = True
        self.judged_since = self.loop.now  # by the timeouts in force
        self.address_since = self.loop.now

    def teardown(self) -> None:
        try:
            self.in_a_row = 0
            self.settle()
            while not self.draining:
                self.stop()
            if self.house.settings.timeouts.drain is None or self.network.exhausted is not None:
                self.stop()
            self.wait(20.0)
            assert self.house.life.done(), "it does not end"
            assert self.house.life.exception() is None
            self.nothing_is_left()
        finally:
            self.house.close()

    def nothing_is_left(self) -> None:
        assert not self.network.open()
        assert not self.loop.readers
        assert not self.loop.timers
        assert not any(each.is_open for each in self.network.listeners)
        assert self.pool.sources == {}
        assert self.pool.free == self.pool.size
        assert self.loop.uncaught == []
        (stopped,) = self.lines.events("daemon.stopped")
        assert self.lines.lines[-1] == stopped
        assert stopped["connections"] == self.pool.accepted
        assert stopped["bytes_received"] == sum(client.delivered for client in self.network.clients)
        opened, closed = self.lines.events("connection.opened"), self.lines.events("connection.closed")
        assert len(opened) == len(closed) == self.pool.accepted
        started, ended = self.lines.events("listener.started"), self.lines.events("listener.stopped")
        assert Counter(line["listener"] for line in started) == Counter(line["listener"] for line in ended)
        assert self.suppressed_or_told() == self.network.refused.total()

    # What happens

    @initialize(changes=st.fixed_dictionaries({}, optional=CHANGES), tells=st.booleans())
    def start(self, changes: dict[str, Any], *, tells: bool) -> None:
        self.network.tells = tells
        self.reload(changes, 0, by_signal=True, kills=False)

    def settle(self) -> None:
        """Let the daemon act, if not several things happen at once."""
        if self.in_a_row:
            self.in_a_row -= 1
            self.settled = False
            return
        self.loop.run()
        self.steps += 1
        self.settled = True
        for task, number in self.asked:
            self.answered(task.result().status, number)
        self.asked.clear()
        for task, status in self.ducks:
            assert task.result().status == status
        self.ducks.clear()
        self.read_log()

    @precondition(lambda self: not self.in_a_row)
    @rule(number=st.integers(1, 4))
    def at_once(self, number: int) -> None:
        """So many of what follows happen in the same round of the loop, or before it."""
        self.in_a_row = number

    def come(self, port: int, address: str, window: int, trouble: str | None) -> None:
        client = self.network.connect(port, address, SOURCES[address], window=window, trouble=trouble)
        if client:
            self.everybody[client.port] = client
        if self.in_a_row:
            self.loop.accept()

    @rule(address=st.sampled_from(ADDRESSES), window=WINDOWS, kills=st.sampled_from([False, False, False, True]))
    def connect(self, address: str, window: int, *, kills: bool) -> None:
        """Maybe it is ended between accept and `connection_made`."""
        if kills:
            self.kill(None)
        self.come(self.house.settings.listen.port, address, window, None)
        self.loop.accept()
        self.settle()

    @rule(
        address=st.sampled_from(ADDRESSES),
        size=st.integers(1, 12),
        window=WINDOWS,
        trouble=st.sampled_from([None] * 9 + ["gone", "attach", "open"]),
        port=st.sampled_from([None, None, None, *PORTS]),
    )
    def crowd(self, address: str, size: int, window: int, trouble: str | None, port: int | None) -> None:
        for number in range(size):
            self.come(port or self.house.settings.listen.port, address, window, None if number else trouble)
        self.settle()

    def there(self) -> list[Client]:
        """Return those that are served, those on hold, and those that wait."""
        return [
            *self.network.open(),
            *self.network.held,
            *(client for each in self.network.listeners for client in each.queue),
        ]

    def somebody(self, which: int) -> Client:
        there = self.there()
        return there[which % len(there)]

    @precondition(lambda self: self.there())
    @rule(which=WHICH, data=st.binary(min_size=1, max_size=12), ends=st.sampled_from([False, False, True]))
    def send(self, which: int, data: bytes, *, ends: bool) -> None:
        client = self.somebody(which)
        if not client.finished and not client.gone:
            client.sent += data
            client.under_way += data
            client.finished = ends
        self.settle()

    @precondition(lambda self: self.there())
    @rule(which=WHICH, size=st.sampled_from([1, 7, PLENTY]))
    def take(self, which: int, size: int) -> None:
        client = self.somebody(which)
        if not client.gone:
            client.read(size, self.loop.now)
        self.settle()

    @precondition(lambda self: self.there())
    @rule(which=WHICH, reset=st.booleans())
    def end(self, which: int, *, reset: bool) -> None:
        client = self.somebody(which)
        client.gone = client.gone or reset
        client.finished = True
        self.settle()

    @rule(which=WHICH, path=st.sampled_from(["/connections/", "/connections/", "/readyz", "/status", "/connections"]))
    def ask(self, which: int, path: str) -> None:
        if path.endswith("/"):
            self.kill(self.somebody(which) if self.there() else None)
        else:
            self.asked.append((self.house.ask("GET", path), 0))
        self.settle()

    def kill(self, client: Client | None) -> None:
        """End this one; or, if it has no number yet, the one that gets the next one, if it comes soon enough."""
        number = (client and client.number) or self.pool.accepted + 1
        self.asked.append((self.house.ask("DELETE", f"/connections/{number}"), number))

    @rule(seconds=st.sampled_from([0.05, 0.05, 0.5, 0.5, 1.5, 12.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.in_a_row = 0
        self.settle()
        free, counts = self.pool.free, (self.pool.accepted, self.network.refused.total())
        self.loop.advance(seconds)
        self.network.exhausted = None
        if seconds > LONGEST_TICK and counts == (self.pool.accepted, self.network.refused.total()):  # nobody came
            assert self.suppressed_or_told() == self.network.refused.total()
            if free and not self.signals:
                assert len(self.lines.events("pool.full")) == len(self.lines.events("pool.available"))
        self.settle()

    @precondition(lambda self: self.network.exhausted is None)
    @rule(number=st.sampled_from([errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]))
    def run_out(self, number: int) -> None:
        """There are no descriptors, until some time has gone by."""
        self.network.exhausted = number
        self.settle()

    @rule()
    def move_address(self) -> None:
        """The machine loses the address that it listens on, or gets it back."""
        self.network.has_address = not self.network.has_address
        self.address_since = self.loop.now
        self.settle()

    @rule(changes=RELOADS, by_signal=st.booleans(), which=WHICH, kills=st.booleans())
    def reload(self, changes: dict[str, Any], which: int, *, by_signal: bool, kills: bool) -> None:
        """Maybe a connection ends between its two halves."""
        if changes.get("listen.port") == TAKEN and not self.network.has_address:
            return  # it would be found out later
        self.in_a_row = 0
        self.settle()
        before, in_use = self.house.settings, set(self.pool.in_use)
        rejected = len(self.lines.events("config.rejected"))
        file = self.file if changes == UNREADABLE else settings(changes, self.file)
        refused = self.draining or changes in [*REFUSED, UNREADABLE]
        self.house.next = Refusal("can't be read") if changes == UNREADABLE else parsed(file)
        if by_signal:
            self.house.signal(signal.SIGHUP)
        else:
            self.asked.append((self.house.ask("POST", "/reload"), 0))
        if kills and self.there():
            self.kill(self.somebody(which))
        self.settle()
        if refused:
            assert self.house.settings is before
            assert self.draining or len(self.lines.events("config.rejected")) == rejected + 1
        else:
            assert self.house.settings == parsed(file), self.lines.names()[-3:]
            self.file = file
            self.network.rate_is(self.house.settings.access.accept_rate)
            self.judged_since = self.loop.now
        assert in_use <= set(self.pool.in_use) | {client.number for client in self.over()}

    @rule(method=st.sampled_from(["PUT", "DELETE"]))
    def lame_duck(self, method: str) -> None:
        """An operator makes it one, or takes it back, which is refused when it stops."""
        task = self.house.ask(method, "/lame-duck")
        refused = self.draining or (method == "DELETE" and self.drains_at is not None)
        self.ducks.append((task, 409 if refused else 200))
        if self.drains_at is None:
            already = self.loop.now if self.duck_since is None else self.duck_since
            self.duck_since = already if method == "PUT" else None
        self.settle()

    @property
    def draining(self) -> bool:
        """Whether the drain has begun, after the time of the lame duck."""
        return self.drains_at is not None and self.loop.now >= self.drains_at

    @precondition(lambda self: self.steps > self.earliest_stop and self.signals < 4)
    @rule()
    def stop(self) -> None:
        self.house.signal(signal.SIGTERM)
        self.signals += 1
        now = self.loop.now
        if self.drains_at is None:
            since = now if self.duck_since is None else self.duck_since
            self.drains_at = max(now, since + (self.house.settings.timeouts.lame_duck or 0.0))
        elif self.draining:
            self.cuts += 1
        else:
            self.drains_at = now
        self.settle()

    # What has to be right in what it says

    def answered(self, status: int, number: int) -> None:
        assert status in ({200, 404} if number else {200, 422, 503})
        if number and status == 200:
            self.killed.add(number)

    def read_log(self) -> None:
        lines, self.read = self.lines.lines[self.read :], len(self.lines.lines)
        for line in lines:
            if line["event"] == "connection.opened":
                client = self.everybody[line["client"]["port"]]
                assert (client.address, client.refused) == (line["client"]["address"], "")
                assert client.number == 0, "served twice"
                client.number = line["connection"]
                self.by_number[client.number] = client
            elif line["event"] == "connection.closed":
                client = self.by_number[line["connection"]]
                assert client.hung_up
                self.closed(client, line)
            elif line["event"] == "connection.rejected":
                client = self.everybody[line["client"]["port"]]
                assert client.refused == line["reason"]
                assert client.hung_up
            assert line["event"] != "internal.error", line

    def closed(self, client: Client, line: dict[str, Any]) -> None:
        """Each reason has one cause, and the bytes are the client's own."""
        transport = client.transport
        assert line["bytes_received"] == client.delivered
        taken = len(transport.taken) if transport else 0
        # After a reset the transport has forgotten what it could not write. Only the kernel knows.
        assert line["bytes_sent"] == taken or (client.gone and not self.network.tells and line["bytes_sent"] > taken)
        quiet = line["at"] - client.moved
        timeouts = self.house.settings.timeouts
        match line["reason"]:
            case "eof":
                assert client.finished
                assert not client.under_way
                assert client.echo == client.sent
                assert not (transport and transport._eof), "we have ended it"
            case "reset":
                assert client.gone
            case "killed":
                assert client.number in self.killed
            case "idle_timeout":
                assert timeouts.idle
                assert quiet >= timeouts.idle
            case "write_timeout":
                assert timeouts.write
                assert client.pending
                assert quiet >= timeouts.write
            case "lifetime":
                assert timeouts.lifetime
                assert line["at"] - client.came >= timeouts.lifetime
            case "drained":
                assert self.draining
            case reason:
                assert (reason, client.trouble) in {("error", "attach"), ("error", "open")}

    def suppressed_or_told(self) -> int:
        return sum(1 + sum(line.get("suppressed", {}).values()) for line in self.lines.events("connection.rejected"))

    def over(self) -> list[Client]:
        return [client for client in self.network.clients if client.hung_up]

    # What has to be right at any time

    @invariant()
    def every_worker_is_free_or_in_use(self) -> None:
        free = {id(worker) for worker in self.pool._free}
        used = {id(worker) for worker in self.pool.in_use.values()}
        assert len(free) == self.pool.free == max(0, self.pool.size - len(used))
        assert len(used) == len(self.pool.in_use)
        assert not free & used

    @invariant()
    def the_echo_is_what_was_sent(self) -> None:
        for client in self.network.clients:
            assert client.sent.startswith(client.echo)

    @invariant()
    def the_books_are_those_of_the_clients(self) -> None:
        if not self.settled:
            return
        open_now = self.network.open()
        assert {client.number for client in open_now} - {0} == set(self.pool.in_use) - {0}
        assert self.pool.sources == Counter(client.source for client in open_now)
        assert self.pool.accepted == len(self.network.clients) == self.pool.closed.total() + len(open_now)
        assert self.house.daemon.server.rejections.count == self.network.refused
        uncounted = sum(worker.received - worker.counted_received for worker in self.pool.in_use.values())
        assert self.pool.bytes_received + uncounted == sum(client.delivered for client in self.network.clients)
        assert not self.network.held
        for client in open_now:
            assert client.transport
            stopped = client.transport._eof or client.transport.is_closing()
            assert stopped or len(client.echo) == client.delivered
            assert stopped or client.reads != bool(client.pending)
            assert client.number not in self.killed
            assert not (client.gone and client.reads)
            assert not (client.finished and not client.under_way and not client.pending)

    @invariant()
    def nobody_waits_without_reason(self) -> None:
        """The reader of a listener is off exactly while it has to be; one that has gone is closed when its queue is empty."""
        if not self.settled or self.draining:
            return
        waits = self.house.settings.pool.when_full == "wait"
        for each in self.network.listeners:
            if each.is_open:
                paused = self.loop.now - self.network.failed <= 0.1
                held = waits and not self.pool.free
                assert not each.queue or paused or held
                assert each in self.loop.readers or paused or held
                assert each.port == self.house.settings.listen.port or each.queue

    @invariant()
    def it_listens_where_it_should_or_says_that_it_does_not(self) -> None:
        if not self.settled or self.draining:
            return
        port = self.house.settings.listen.port
        listens = any(each.is_open and each.port == port for each in self.network.listeners)
        assert listens != bool(self.house.daemon.server.listeners.missing)
        if self.network.has_address and self.loop.now - self.address_since > LATE:
            assert listens

    @invariant()
    def nobody_is_overdue(self) -> None:
        if not self.settled or self.draining:
            return
        timeouts = self.house.settings.timeouts
        for client in self.network.open():
            quiet = self.loop.now - max(client.moved, self.judged_since)
            limit = min(timeouts.idle or float("inf"), (client.pending and timeouts.write) or float("inf"))
            assert quiet <= limit + LATE
            lasted = self.loop.now - max(client.came, self.judged_since)
            assert lasted <= (timeouts.lifetime or float("inf")) + drain.LINGER + LATE

    @invariant()
    def every_worker_in_use_is_checked(self) -> None:
        """Each is in one bucket that will be due."""
        timeouts = self.house.daemon.server._timeouts
        if self.house.life.done():
            return
        buckets = [*timeouts._buckets.values(), *timeouts._due]
        watched = [worker for bucket in buckets for worker in bucket if worker.bucket is bucket]
        assert len({id(worker) for worker in watched}) == len(watched)
        assert {id(worker) for worker in self.pool.in_use.values()} <= {id(worker) for worker in watched}
        assert all(worker in self.pool.stalled for worker in self.pool.in_use.values() if worker.paused)

    @invariant()
    def lines_come_in_turn_and_in_bounds(self) -> None:
        for name, opposite in (("pool.full", "pool.available"), ("accept.paused", "accept.resumed")):
            for url in {line.get("listener") for line in self.lines.events(name)}:
                turns = [
                    line["event"]
                    for line in self.lines.lines
                    if line["event"] in (name, opposite) and line.get("listener") == url
                ]
                assert turns[0] == name
                assert all(one != other for one, other in pairwise(turns))
        times = [line["at"] for line in self.lines.events("connection.rejected")]
        if not self.draining:
            assert all(later - earlier >= 1 for earlier, later in zip(times, times[Rejections.LINES :], strict=False))

    @invariant()
    def it_is_a_lame_duck_exactly_as_long_as_it_should(self) -> None:
        if not self.settled:
            return
        wanted = not self.draining and (self.duck_since is not None or self.drains_at is not None)
        server = self.house.daemon.server
        assert (server.lame_duck is not None) == wanted
        assert server.readiness != "ready" or not wanted

    @invariant()
    def a_stop_comes_to_its_end(self) -> None:
        if self.drains_at is None or not self.draining or not self.settled:
            return
        assert not any(each.is_open for each in self.network.listeners)
        patience = self.house.settings.timeouts.drain
        lasts = self.loop.now - self.drains_at
        if patience is None or lasts < patience:
            over = not self.pool.in_use
        else:
            over = lasts > patience + drain.LAST_READ + drain.LINGER + 1
        assert self.house.life.done() or not (over or self.cuts)


class StopMachine(DaemonMachine):
    """The same, with most of it during a drain."""

    earliest_stop = 5


DaemonMachine.TestCase.settings = hypothesis_settings(max_examples=50 * FACTOR, stateful_step_count=50, deadline=None)
StopMachine.TestCase.settings = hypothesis_settings(max_examples=50 * FACTOR, stateful_step_count=25, deadline=None)
TestDaemon: Any = DaemonMachine.TestCase
TestStop: Any = StopMachine.TestCase
