"""The TLS kind of listener: where it listens, and connections that can't be opened."""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING, Any

from echod.admin import status
from echod.config import certificates
from echod.server import tls
from echod.server.timeouts import SHORTEST_TICK
from tests.support.certificates import client_hello, pem_file, shake_hands
from tests.support.fakes import sockets
from tests.support.harness import LOCAL
from tests.support.rig import Rig, settings

if TYPE_CHECKING:
    import pytest


TIMEOUT = 10
"""Seconds of `timeouts.handshake` by default."""


def wanted(**values: Any) -> Any:
    return settings(listen__host=LOCAL, listen__port=0, tls__port=0, tls__certificate=pem_file(), **values)


def serve(rig: Rig) -> int:
    found = wanted()
    rig.handshakes.set(found, certificates.load(found.tls))
    rig.listeners.serve(found, rig.listeners.bind(found))
    return rig.port("tls")


def test_it_listens_on_the_hosts_of_the_settings(rig: Rig) -> None:
    serve(rig)
    assert [url.partition(":")[0] for url in rig.listeners.urls] == ["tcp", "tls"]
    assert tls.endpoints(settings()) == []


def test_sockets_of_systemd_are_plain() -> None:
    ours, theirs = sockets()
    with ours, theirs:
        assert tls.adopt(ours) is None


def test_a_connection_that_can_not_be_opened_is_rejected(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker comes back."""
    port = serve(rig)

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(tls, "Session", fail)
    client = rig.connect(port)
    rig.readable()
    assert select.select([client], [], [], 5)[0]
    (line,) = rig.lines.events("connection.rejected")
    assert (line["reason"], line["error"], rig.pool.free) == ("handshake", "MemoryError", 3)


def test_a_handshake_over_a_real_listener(rig: Rig) -> None:
    """The accepted connection has a worker, and no line, until it is complete."""
    port = serve(rig)
    client = rig.connect(port)
    rig.readable()
    assert (rig.pool.free, rig.pool.accepted, rig.lines.events("connection.opened")) == (2, 0, [])
    assert [status.connection(worker)["state"] for worker in rig.pool.in_use.values()] == ["handshake"]
    (transport,) = rig.loop.transports
    shake_hands(rig.loop, transport)
    (line,) = rig.lines.events("connection.opened")
    assert line["tls"]["version"] == "TLSv1.3"
    assert rig.pool.accepted == 1
    client.close()


def test_one_step_of_a_handshake_is_done_in_a_turn_of_the_loop(rig: Rig) -> None:
    """However many clients begin one at a time, what others send comes between two steps. They are served in their order."""
    port = serve(rig)
    for _ in range(3):
        rig.connect(port)
    rig.readable()
    for transport in rig.loop.transports:
        transport.receive(client_hello())
    answered = []
    for _ in range(3):
        rig.loop.turn()
        answered.append([bool(transport.taken) for transport in rig.loop.transports])
    assert answered == [[True, False, False], [True, True, False], [True, True, True]]


def test_ends_of_connections_in_a_handshake_are_seen_after_the_steps_that_are_queued(rig: Rig) -> None:
    """Those of a source that has none in a handshake, or none any more, are seen at once."""
    port = serve(rig)
    rig.connect(port)
    rig.readable()
    shake_hands(rig.loop, rig.loop.transports[0])
    ends = "127.0.0.2"
    with socket.create_connection((LOCAL, port), source_address=(ends, 0)):
        rig.readable()
        transport = rig.loop.transports[1]
        transport.receive(client_hello())
        assert [rig.handshakes.turns(source) for source in (None, ends, LOCAL)] == [1, 1, 0]
        transport.receive_eof()
    rig.loop.run()
    assert (rig.handshakes.turns(None), rig.pool.opening) == (0, {})


def test_a_handshake_that_takes_too_long_is_over(rig: Rig) -> None:
    """When the loop was held up until then, such as by SIGSTOP, it has first a look at what has come meanwhile."""
    port = serve(rig)
    for _ in range(2):
        rig.connect(port)
        rig.readable()
    one, other = rig.loop.transports
    rig.loop.now += 2 * TIMEOUT
    rig.loop.advance(0)
    shake_hands(rig.loop, one)
    rig.loop.advance(SHORTEST_TICK)
    assert [one.is_closing(), other.is_closing()] == [False, True]
    rig.connect(port)
    rig.readable()
    rig.loop.advance(TIMEOUT)
    assert rig.handshakes.count == {"ok": 1, "timeout": 2}
    assert {line["error"] for line in rig.lines.events("connection.rejected")} == {"timed out"}


def test_clients_in_the_backlog_of_a_retired_listener_get_the_last_certificate(rig: Rig) -> None:
    port = serve(rig)
    rig.connect(port)
    off = settings(listen__host=LOCAL, listen__port=0)
    rig.handshakes.set(off, None)
    rig.listeners.serve(off, [])
    rig.readable()
    assert rig.handshakes.loaded is None
    assert rig.pool.free == 2
