"""20,000 connections of all kinds: the daemon's counters, its log and its clients agree, at any moment and at the end."""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import threading
import time
from collections import Counter, defaultdict
from http.client import HTTPConnection
from typing import TYPE_CHECKING, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.harness import DEADLINE, LOCAL, Echod, reset, until

if TYPE_CHECKING:
    from collections.abc import Callable

    Daemon = Callable[..., Echod]
    Series = tuple[str, tuple[tuple[str, str], ...]]

pytestmark = pytest.mark.slow

CONNECTIONS = 20_000
AT_ONCE = 250
LATER = 3000
"""Of them, those that come when a reload has set a rate."""
IDLE, STALLED = 150, 40
"""Of them, those that wait for the end, and those that soon read no more; they take a second each, if they get in."""
SOURCES = ("127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5", "127.0.9.1")
CONFIG = f"""
[listen]
host = "{LOCAL}"
port = 0
backlog = 4096
[pool]
size = 150
[timeouts]
idle = "1s"
write = "1s"
[access]
per_source = 60
deny = ["127.0.9.0/24"]
"""
_IP_BIND_ADDRESS_NO_PORT = 24  # <linux/in.h>; Python 3.11 has no name for it


class Kind(NamedTuple):
    """What a client wants to do, if it gets in."""

    sends: int
    """Bytes."""
    ends: str
    """How: "eof", "reset", or "idle_timeout" or "write_timeout" if it leaves that to the daemon."""


class Client:
    """One connection, by readiness; it keeps book of what happened to it."""

    def __init__(self, kind: Kind, source: str, port: int) -> None:
        self.kind = kind
        self.echoed = 0
        self.ended: str | None = None
        self._left = kind.sends
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        if kind.ends == "write_timeout":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        self.sock.bind((source, 0))
        self.sock.connect_ex((LOCAL, port))

    def wants(self) -> int:
        """Return the events it waits for."""
        if not self._left:
            return selectors.EVENT_READ
        deaf = self.kind.ends == "write_timeout" and self.echoed
        return selectors.EVENT_WRITE if deaf else selectors.EVENT_READ | selectors.EVENT_WRITE

    def act(self, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE and self._left:
                self._write()
            if events & selectors.EVENT_READ:
                self._read()
        except BlockingIOError:
            pass
        except OSError:
            self._end("gone")

    def _write(self) -> None:
        self._left -= self.sock.send(bytes(min(self._left, 1 << 16)))
        if not self._left and self.kind.ends == "eof":
            self.sock.shutdown(socket.SHUT_WR)

    def _read(self) -> None:
        data = self.sock.recv(1 << 16)
        self.echoed += len(data)
        if not data:
            self._end("eof")
        elif self.kind.ends == "reset" and self.echoed == self.kind.sends:
            reset(self.sock)
            self.ended = "reset"

    def _end(self, how: str) -> None:
        self.sock.close()
        self.ended = how


def kinds() -> list[Kind]:
    """Return all clients of the storm, in the order in which they come."""
    some = random.Random(4)
    kinds = [Kind(1 << 23, "write_timeout")] * STALLED + [Kind(100, "idle_timeout")] * IDLE
    while len(kinds) < CONNECTIONS:
        kinds.append(Kind(some.choice((1, 10, 100, 5000)), some.choice(("eof", "eof", "eof", "reset"))))
    some.shuffle(kinds)
    return kinds


def storm(port: int, kinds: list[Kind]) -> list[Client]:
    """Let them come, so many at one time; return them when all have ended."""
    some = random.Random(5)
    clients: list[Client] = []
    coming = list(kinds)
    end = time.monotonic() + 2 * DEADLINE
    with selectors.DefaultSelector() as selector:
        while coming or selector.get_map():
            assert time.monotonic() < end, f"{len(clients)} clients after {2 * DEADLINE} s"
            while coming and len(selector.get_map()) < AT_ONCE:
                clients.append(Client(coming.pop(), some.choice(SOURCES), port))
                selector.register(clients[-1].sock, clients[-1].wants(), clients[-1])
            for key, events in selector.select(1):
                client: Client = key.data
                client.act(events)
                if client.ended:
                    selector.unregister(key.fd)
                elif client.wants() != key.events:
                    selector.modify(key.fd, client.wants(), client)
    return clients


class Watcher(threading.Thread):
    """Scrapes without end, and notes what went backwards."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.over = threading.Event()
        self.scrapes = 0
        self.wrong: list[str] = []
        self.client = HTTPConnection(LOCAL, port, timeout=DEADLINE)
        self._before: dict[Series, float] = {}

    def run(self) -> None:
        with contextlib.closing(self.client):
            while not self.over.is_set():
                try:
                    self._compare(self.scrape())
                except (OSError, ValueError) as error:
                    self.wrong.append(repr(error))
                    return

    def scrape(self) -> dict[Series, float]:
        """Return all series that only ever grow, and `echod_connections_in_use`."""
        self.client.request("GET", "/metrics")
        text = self.client.getresponse().read().decode()
        self.scrapes += 1
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if family.type in ("counter", "histogram") or sample.name == "echod_connections_in_use"
        }

    def _compare(self, now: dict[Series, float]) -> None:
        in_use = now[("echod_connections_in_use", ())]
        accepted, closed = total(now, "echod_connections_accepted_total"), total(now, "echod_connections_closed_total")
        if accepted != closed + in_use:
            self.wrong.append(f"accepted {accepted}, closed {closed}, in use {in_use}")
        if now[("echod_connection_duration_seconds_count", ())] != closed:
            self.wrong.append(f"durations, closed {closed}")
        if self._before and now.keys() != self._before.keys():
            self.wrong.append(f"other series: {now.keys() ^ self._before.keys()}")
        self.wrong += [
            f"{series}: {before} -> {now[series]}"
            for series, before in self._before.items()
            if now[series] < before and series[0] != "echod_connections_in_use"
        ]
        self._before = now


def total(values: dict[Series, float], name: str) -> float:
    return sum(value for (series, _), value in values.items() if series == name)


def by_reason(values: dict[Series, float], name: str) -> Counter[str]:
    return Counter({dict(labels)["reason"]: int(value) for (series, labels), value in values.items() if series == name})


def test_after_20_000_connections_all_books_agree(echod: Daemon) -> None:
    """Clean ends, resets, four kinds of refusal, idle and stalled clients; no counter ever goes backwards."""
    with echod(CONFIG, flags=["--admin.http", f"{LOCAL}:0"]) as daemon:
        watcher = Watcher(int(daemon.wait_for("admin.started")["listener"].rpartition(":")[2]))
        all_kinds = kinds()
        watcher.start()
        try:
            clients = storm(daemon.port, all_kinds[LATER:])
            daemon.reload(f'{CONFIG}accept_rate = "100/s"')
            clients += storm(daemon.port, all_kinds[:LATER])
        finally:
            watcher.over.set()
            watcher.join()
        assert watcher.wrong == []
        assert watcher.scrapes > 20
        with contextlib.closing(watcher.client):  # it connects anew
            until(lambda: watcher.scrape()[("echod_connections_in_use", ())] == 0, what="all ended")
            counted = watcher.scrape()
        accepted = int(total(counted, "echod_connections_accepted_total"))
        closed = by_reason(counted, "echod_connections_closed_total")
        rejected = by_reason(counted, "echod_connections_rejected_total")
        assert len(clients) == CONNECTIONS == accepted + rejected.total()
        assert accepted == closed.total() == counted[("echod_connection_duration_seconds_count", ())]

        # The log
        until(lambda: len(daemon.events("connection.closed")) == accepted, what="all lines read")
        lines = daemon.events("connection.closed")
        assert closed == Counter(line["reason"] for line in lines)
        assert total(counted, "echod_received_bytes_total") == sum(line["bytes_received"] for line in lines)
        assert total(counted, "echod_sent_bytes_total") == sum(line["bytes_sent"] for line in lines)
        assert sum(line["duration"] for line in lines) - counted[
            ("echod_connection_duration_seconds_sum", ())
        ] < 1e-6 * len(lines)
        refusals = daemon.events("connection.rejected")
        assert sum(1 + line.get("suppressed", 0) for line in refusals) == rejected.total()
        assert counted[("echod_log_dropped_lines_total", ())] == 0

        # The clients
        ended: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for client in clients:
            ended[client.kind.ends][str(client.ended) if client.echoed or client.ended == "reset" else "refused"] += 1
        assert rejected.total() == sum(counts["refused"] for counts in ended.values())
        assert closed["idle_timeout"] == ended["idle_timeout"].total() - ended["idle_timeout"]["refused"]
        assert closed["write_timeout"] == ended["write_timeout"].total() - ended["write_timeout"]["refused"]
        assert closed["reset"] == ended["reset"]["reset"]
        assert closed["eof"] == ended["eof"]["eof"]
        whole = [client for client in clients if client.echoed and client.kind.ends != "write_timeout"]
        assert all(client.echoed == client.kind.sends for client in whole)
        assert all(rejected[reason] for reason in ("pool_full", "denied", "per_source", "accept_rate")), rejected
        assert all(closed[reason] for reason in ("eof", "reset", "idle_timeout", "write_timeout")), closed
