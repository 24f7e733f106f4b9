"""What the tests of the client share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from echod.client import bench, datagrams, exchange, opening, ping, poller, streams
from tests.support import idle_clock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.idle_clock import IdleClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[IdleClock]:
    """Let time pass for `ping` and `bench` only while they and the services of `echo_servers` have nothing to do."""
    with idle_clock.ruling(monkeypatch, poller, bench, datagrams, exchange, opening, ping, streams) as made:
        yield made
