"""20,000 connections of all kinds: the daemon's counters, its log and its clients agree, at any moment and at the end."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.soak.books import CLOSED, LogBooks, compare
from tests.soak.clients import DENIED, TIMEOUT
from tests.soak.crowd import Crowd
from tests.support.harness import LOCAL, Echod, until
from tests.support.scraping import Watcher, by_reason, total

if TYPE_CHECKING:
    from collections.abc import Callable

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow

CONNECTIONS = 20_000
LATER = 3000
"""Of them, those that come when a reload has set a rate."""
CONFIG = f"""
[listen]
host = "{LOCAL}"
port = 0
backlog = 4096
[pool]
size = 150
[timeouts]
idle = "{TIMEOUT}s"
write = "{TIMEOUT}s"
[access]
per_source = 20
deny = ["{DENIED}0/24"]
"""


def test_after_20_000_connections_all_books_agree(echod: Daemon) -> None:
    """Clean ends, resets, four kinds of refusal, idle and stalled clients; no counter ever goes backwards."""
    with echod(CONFIG, flags=["--admin.http", f"{LOCAL}:0"]) as daemon:
        port = int(daemon.wait_for("admin.started")["listener"].rpartition(":")[2])
        watcher = Watcher(port, pause=0.05)  # it shares a process with the clients
        crowd = Crowd(daemon.port, 4)
        watcher.start()
        try:
            while crowd.books.ended.total() < CONNECTIONS - LATER:
                crowd.turn(more=True)
            daemon.reload(f'{CONFIG}accept_rate = "100/s"')
            while crowd.turn(more=crowd.books.ended.total() < CONNECTIONS):
                pass
        finally:
            watcher.over.set()
            watcher.join()
        assert watcher.wrong == []
        assert watcher.scrapes > 20
        with contextlib.closing(watcher.client):  # it connects anew
            until(lambda: not total(watcher.scrape(), "echod_connections_in_use"), what="all ended")
            metrics = watcher.scrape()
    log = LogBooks()
    for line in daemon.raw:
        log.take(line)
    assert [check for check in compare(crowd.books, log, metrics, (1, 0)) if not check.kept] == []
    rejected = by_reason(metrics, "echod_connections_rejected_total")
    assert all(rejected[reason] for reason in ("pool_full", "denied", "per_source", "accept_rate")), rejected
    assert all(log.closed[reason] for reason in CLOSED), log.closed
