"""What the tests of the janitor and of the drain share."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from echod.server import kernel
from tests.support.fakes import House

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    house = House()

    def info(sock: socket.socket) -> kernel.Info:
        if sock.fileno() < 0:
            raise OSError(errno.EBADF, "closed")
        return kernel.Info(house.peer_finished, house.rtt_us, 0, 1 << 40)

    def unacknowledged(sock: socket.socket) -> int:
        assert sock.fileno() >= 0
        return house.unacknowledged

    def reset(sock: socket.socket) -> None:
        assert sock.fileno() >= 0
        house.resets += 1

    monkeypatch.setattr(kernel, "unacknowledged", unacknowledged)
    monkeypatch.setattr(kernel, "info", info)
    monkeypatch.setattr(kernel, "reset_on_close", reset)
    yield house
    for sock in house.open:
        sock.close()
