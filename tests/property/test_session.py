"""The TLS layer between a transport and a worker, with a real OpenSSL client: no byte is lost, doubled or reordered."""

from __future__ import annotations

import contextlib
import os
import ssl
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from echod.config import certificates
from echod.server import drain
from echod.server.ciphertext import PIECE
from echod.server.endpoint import Peer
from echod.server.session import RECORDS
from tests.support.certificates import client_context, pem_file
from tests.support.fakes import Clock, FakeTransport, sockets
from tests.support.rig import Rig, tcp_info
from tests.support.rig import settings as settings_of
from tests.support.tls_records import Records, fragmented

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

TLS_LISTENER = "tls://192.0.2.1:7443"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
EXAMPLES = int(os.environ.get("ECHOD_TEST_EXAMPLES", "1"))
"""How many times as many examples as in `make test`."""


class Client:
    """An OpenSSL client, connected to a worker by a fake transport that takes as many bytes as a test says."""

    def __init__(
        self,
        rig: Rig,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        alpn: Sequence[str] = (),
        accepted: float | None = None,
        keylog: Path | None = None,
    ) -> None:
        ours, theirs = sockets()
        rig.sockets += [ours, theirs]
        rig.pool.unopened[TLS_LISTENER] = rig.handshakes.rejected
        self.rig = rig
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        here = client_context(version=version, keylog=keylog)
        here.set_alpn_protocols(alpn)
        self.tls = here.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.worker = rig.pool.take(ours, Peer("192.0.2.9", 4711), TLS_LISTENER)
        self.worker.opened = self.worker.opened if accepted is None else accepted
        self.session = rig.handshakes.begin(self.worker)
        self.transport = FakeTransport(rig.loop, self.session, ours)
        self.transport.made()
        self.on_the_way = bytearray()  # ciphertext that the client has written, and the daemon has not read
        self.read = 0  # of `transport.taken`
        self.echo = bytearray()
        self.sent = bytearray()
        self.finished = False  # close_notify is written
        self.fin = False  # FIN follows what is on the way
        self.eof_given = False
        self.got_close_notify = False

    def handshake(self) -> None:
        for _ in range(8):
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                self.deliver()
                self.rig.loop.run()
                self.receive()
            else:
                break
        self.flush()
        self.deliver()
        self.rig.loop.run()
        self.receive()

    def flush(self) -> None:
        self.on_the_way += self.outgoing.read()

    def deliver(self, size: int = 1 << 30) -> None:
        """Let the daemon read as much as it wants of what is on the way, and then FIN."""
        while self.on_the_way and self.transport.reading and size > 0:
            part = bytes(self.on_the_way[: min(size, 256 << 10)])
            del self.on_the_way[: len(part)]
            size -= len(part)
            self.transport.receive(part)
        if self.fin and not self.on_the_way and self.transport.reading and not self.eof_given:
            self.eof_given = True
            self.transport.receive_eof()

    def receive(self) -> None:
        """Read what the daemon has sent."""
        self.incoming.write(self.transport.taken[self.read :])
        self.read = len(self.transport.taken)
        try:
            while True:
                part = self.tls.read(1 << 16)
                if not part:
                    self.got_close_notify = True
                    return
                self.echo += part
        except (ssl.SSLWantReadError, ssl.SSLSyscallError):
            pass
        except ssl.SSLZeroReturnError:
            self.got_close_notify = True
        self.flush()

    def take(self, size: int) -> None:
        """Read what the daemon has sent, and this much more."""
        if not self.transport._lost:
            self.transport.take(size)
        self.receive()

    def write(self, data: bytes) -> None:
        self.tls.write(data)
        self.sent += data
        self.flush()

    def close_notify(self) -> None:
        self.finished = True
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        self.flush()


def tls_rig(monkeypatch: pytest.MonkeyPatch, **values: Any) -> Rig:
    """Return a rig that serves TLS."""
    rig = Rig()
    rig.fake_kernel(monkeypatch)
    rig.info = None
    tls = settings_of(tls__port=0, tls__certificate=pem_file(), **values)
    rig.handshakes.set(tls, certificates.load(tls.tls))
    return rig


class SessionMachine(RuleBasedStateMachine):
    """Chunks, pauses and closes in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.rig = tls_rig(self.patch)
        self.client: Client | None = None
        self.cut = False  # the daemon or a reset has ended it
        self.ended: str | None = None

    @rule(version=st.sampled_from(VERSIONS))
    @precondition(lambda self: self.client is None)
    def connect(self, version: ssl.TLSVersion) -> None:
        self.client = Client(self.rig, version)
        self.client.handshake()
        assert self.client.session.is_open
        self.cut = False
        self.ended = None

    def _is_alive(self) -> bool:
        return self.client is not None

    @rule(sizes=st.lists(st.sampled_from([1, 17, 64, 1000, PIECE - 22, PIECE, 16384, 40_000]), min_size=1, max_size=5))
    @precondition(lambda self: self.client and not self.client.finished and not self.client.fin)
    def write(self, sizes: list[int]) -> None:
        assert self.client
        for size in sizes:
            self.client.write(os.urandom(size))

    @rule(size=st.sampled_from([1, 5, 100, PIECE, 70_000, 1 << 30]))
    @precondition(_is_alive)
    def deliver(self, size: int) -> None:
        assert self.client
        self.client.deliver(size)

    @rule(window=st.sampled_from([0, 1, 100, 5000, 1 << 20]))
    @precondition(_is_alive)
    def limit(self, window: int) -> None:
        """Let the client's buffers have room for this much more only."""
        assert self.client
        self.client.transport.window = window

    @rule(size=st.sampled_from([1, 30, 5000, 100_000]))
    @precondition(_is_alive)
    def take(self, size: int) -> None:
        assert self.client
        self.client.take(size)

    @rule()
    @precondition(lambda self: self.client and not self.client.finished and not self.client.fin)
    def close_notify(self) -> None:
        assert self.client
        self.client.close_notify()

    @rule()
    @precondition(_is_alive)
    def fin(self) -> None:
        assert self.client
        self.client.fin = True

    @rule(how=st.sampled_from(["reset", "kill", "drain", "idle"]))
    @precondition(lambda self: self.client and not self.cut)
    def cut_it(self, how: str) -> None:
        assert self.client
        if not self.client.worker.transport:
            return
        self.cut = True
        if how == "reset":
            self.client.transport.fail(ConnectionResetError())
        elif how == "drain":
            drain.finish(self.client.worker, "drained", 0.0)
        else:
            self.client.worker.abort("killed" if how == "kill" else "idle_timeout", reset=self.client.worker.paused)

    @invariant()
    def at_most_a_record_waits_for_the_client(self) -> None:
        """What is not echoed yet stays as ciphertext in the one read."""
        assert not self.client or len(self.client.transport.held) < (24 << 10)

    @rule()
    def turn(self) -> None:
        self.rig.loop.turn()

    @rule()
    @precondition(_is_alive)
    def finish(self) -> None:
        """The client closes in some way, reads all, and is gone."""
        client = self.client
        assert client
        client.fin = True
        for _ in range(400):
            client.deliver()
            self.rig.loop.run()
            client.take(1 << 20)
            if not self.rig.pool.in_use:
                break
            if client.transport.fin_sent and client.eof_given:
                client.transport.close()
        assert not self.rig.pool.in_use, "it hangs"
        if self.cut:
            assert client.sent.startswith(client.echo)
        else:
            assert client.echo == client.sent
            assert client.got_close_notify
            line = self.rig.lines.events("connection.closed")[-1]
            assert line["bytes_received"] == line["bytes_sent"] == len(client.sent)
            assert line["reason"] == ("eof" if client.finished else "truncated")
        self.client = None

    def teardown(self) -> None:
        if self.client:
            self.client.transport.abort()
        self.rig.loop.run()
        assert not self.rig.pool.in_use
        assert self.rig.pool.free == 3
        self.rig.close()
        self.patch.undo()


def test_no_byte_is_lost_in_any_order_of_events() -> None:
    """Whatever the client's chunks, pauses and closes: close_notify, FIN, both, reset, or the daemon's own ends."""
    run_state_machine_as_test(
        SessionMachine, settings=settings(max_examples=10 * EXAMPLES, stateful_step_count=40, deadline=None)
    )


@pytest.mark.parametrize("end", ["data", "close_notify"])
def test_what_follows_the_handshake_is_not_kept_waiting_wherever_it_was_split(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The rest of the client's last message may come in one read with what follows it, and nothing else after that."""
    at, length = 1, 2
    while at < length:
        rig = tls_rig(monkeypatch)
        client = Client(rig)
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.do_handshake()
        client.flush()
        client.deliver()
        rig.loop.run()
        client.incoming.write(client.transport.taken)
        client.read = len(client.transport.taken)
        client.tls.do_handshake()
        client.flush()
        if end == "data":
            client.write(b"hello")
        else:
            client.close_notify()
        length = len(client.on_the_way)
        client.deliver(at)
        rig.loop.run()
        client.deliver()
        rig.loop.run()
        client.receive()
        assert (client.echo, client.got_close_notify) == (client.sent, end == "close_notify"), f"split at {at}"
        client.worker.abort("killed")
        rig.loop.run()
        rig.close()
        at += 3


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize("size", [0, 5, 50_000])
def test_a_client_may_send_all_and_close_with_its_last_message_of_the_handshake(
    monkeypatch: pytest.MonkeyPatch, version: ssl.TLSVersion, size: int
) -> None:
    """FIN has come before the last step of the handshake, which waits for its turn."""
    rig = tls_rig(monkeypatch)
    client = Client(rig, version)
    while client.tls.version() is None or not client.session.is_open:
        try:
            client.tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            client.flush()
            if version == ssl.TLSVersion.TLSv1_2 and client.read:
                break  # TLS 1.2 waits for the daemon's last message
            client.deliver()
            rig.loop.run()
            client.incoming.write(client.transport.taken[client.read :])
            client.read = len(client.transport.taken)
    if version == ssl.TLSVersion.TLSv1_3:
        client.write(os.urandom(size))
        client.close_notify()
    client.fin = True
    client.deliver()
    rig.loop.run()
    client.deliver()
    rig.loop.run()
    assert not rig.pool.in_use
    if version == ssl.TLSVersion.TLSv1_3:
        client.receive()
        assert client.echo == client.sent
        assert rig.reasons() == {"eof": 1}
    else:
        assert rig.reasons() == {"truncated": 1}
    rig.close()


class ByHand:
    """A client that writes its TLS 1.3 records by itself, and reads those of the daemon."""

    def __init__(self, rig: Rig, keylog: Path) -> None:
        self.rig = rig
        self.client = Client(rig, keylog=keylog)
        self.client.handshake()
        self.transport = self.client.transport
        self.records = Records(keylog)
        self.echo = b""
        self._read = len(self.transport.taken)

    def read(self) -> None:
        """Read what the daemon has sent."""
        self.echo += self.records.echo(bytes(self.transport.taken[self._read :]))
        self._read = len(self.transport.taken)

    def end(self) -> None:
        self.transport.abort()
        self.rig.loop.run()


@pytest.mark.parametrize("seed", range(3))
def test_key_updates_anywhere_cost_no_byte(rig: Rig, tmp_path: Path, seed: int) -> None:
    """Each one that asks for an answer gets it, however the records are cut, and also if the client reads slowly."""
    random = Random(seed)
    client = ByHand(rig, tmp_path / "keys")
    sent, asked, flight = b"", 0, b""
    for _ in range(200):
        if random.random() < 0.5:
            requested = random.random() < 0.5
            asked += requested
            flight += client.records.key_update(requested=requested)
        else:
            data = random.randbytes(random.choice([1, 50, 3000, 16384]))
            sent += data
            flight += client.records.data(data)
    client.client.on_the_way += flight
    while client.client.on_the_way or client.client.session._held or client.transport.held:
        client.transport.window = random.choice([0, 10, 5000, 1 << 20])
        client.client.deliver(random.choice([1, 3, 5, 20, 700, 20_000]))
        if random.random() < 0.5:
            client.rig.loop.turn()
        client.transport.take(random.choice([1, 100, 50_000]))
        client.read()
    assert client.echo == sent
    assert client.records.updates == asked
    client.end()


def test_a_flood_of_key_updates_whose_answers_nobody_reads_stops_the_reading(rig: Rig, tmp_path: Path) -> None:
    """The answers of one piece wait for the client, and all else waits as ciphertext, which is at most one read."""
    client = ByHand(rig, tmp_path / "keys")
    client.transport.window = 100
    flight = b"".join(client.records.key_update() + client.records.data(b"x") for _ in range(3000))
    client.transport.receive(flight)
    rig.loop.run()
    assert not client.transport.reading
    assert len(client.transport.held) < 1000
    assert client.client.session._outgoing.pending == 0
    client.transport.window = 0
    while client.transport.held:
        client.transport.take(1 << 20)
        rig.loop.run()
    client.read()
    assert (client.echo, client.records.updates) == (b"x" * 3000, 3000)
    client.end()


def test_a_flood_of_key_updates_leaves_turns_to_others_and_is_cut_off(rig: Rig, tmp_path: Path) -> None:
    """As any ciphertext that gives no data."""
    client = ByHand(rig, tmp_path / "keys")
    answer = len(ByHand(rig, tmp_path / "others").records.key_update())
    client.transport.receive(b"".join(client.records.key_update() for _ in range(4000)))
    for _ in range(4000 // RECORDS):
        before = len(client.transport.taken)
        rig.loop.turn()
        assert len(client.transport.taken) - before <= RECORDS * answer
        if client.transport.fin_sent:
            break
    assert client.records.echo(bytes(client.transport.taken[client._read :])) == b""
    assert 1000 < client.records.updates < 4000
    rig.loop.advance(1.1)
    assert rig.lines.events("connection.closed")[-1]["error"] == "too many messages without data"


def test_what_is_no_tls_after_the_handshake_ends_the_connection_with_an_alert(monkeypatch: pytest.MonkeyPatch) -> None:
    """The echo of what came before it is sent."""
    rig = tls_rig(monkeypatch)
    client = Client(rig)
    client.handshake()
    client.write(b"good")
    client.deliver()
    client.on_the_way += b"\x17\x03\x03\x00\x20" + bytes(32)
    client.deliver()
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
        client.receive()
    assert client.transport.fin_sent
    client.deliver()
    client.transport.receive(b"dropped")
    drain.finish(client.worker, "drained", 0.0)  # does nothing more
    rig.loop.advance(1.1)
    line = rig.lines.events("connection.closed")[-1]
    assert (line["reason"], line["bytes_sent"]) == ("error", 4)
    rig.close()


@pytest.mark.parametrize("end", ["drain", "kill", "reset"])
def test_a_handshake_that_is_ended_is_rejected(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """It has no line of an opened connection, and is not counted as one."""
    rig = tls_rig(monkeypatch)
    client = Client(rig)
    if end == "drain":
        drain.finish(client.worker, "drained", 0.0)
    elif end == "kill":
        client.worker.abort("killed")
    else:
        client.transport.receive(b"\x16")
        client.transport.fail(ConnectionResetError())
    rig.loop.run()
    (line,) = rig.lines.events("connection.rejected")
    expected = {"drain": "drained", "kill": "killed", "reset": "the client has reset the connection"}
    assert line["error"] == expected[end]
    assert (rig.pool.free, rig.pool.accepted, rig.reasons()) == (3, 0, {})
    rig.close()


def test_close_notify_ends_a_handshake_as_fin_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = tls_rig(monkeypatch)
    client = Client(rig)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.flush()
    client.on_the_way += bytes.fromhex("15 0303 0002 01 00")
    client.fin = True
    client.deliver()
    rig.loop.run()
    (line,) = rig.lines.events("connection.rejected")
    assert line["error"] == "the client has closed the connection"
    assert (rig.pool.free, rig.handshakes.count) == (3, {"closed": 1})
    rig.close()


def test_a_handshake_whose_output_was_stuck_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next step is queued behind one of another client, when the kernel takes the rest of the daemon's messages."""
    rig = tls_rig(monkeypatch)
    client, other = Client(rig), Client(rig)
    client.transport.window = 100
    for each in (client, other):
        with contextlib.suppress(ssl.SSLWantReadError):
            each.tls.do_handshake()
        each.flush()
    client.deliver()
    rig.loop.run()
    other.deliver()
    client.on_the_way += bytes.fromhex("15 0303 0002 02 30")
    client.deliver()
    client.take(1 << 20)
    rig.loop.run()
    client.fin = True
    client.deliver()
    rig.loop.run()
    (line,) = rig.lines.events("connection.rejected")
    assert line["error"] == "tlsv1 alert unknown ca"
    rig.close()


@pytest.mark.parametrize("end", ["FIN", "reset"])
@pytest.mark.parametrize("source", ["192.0.2.9", ""])
def test_a_connection_that_ends_without_a_byte_is_a_probe(
    monkeypatch: pytest.MonkeyPatch, end: str, source: str
) -> None:
    """No line above debug, and no part in the counts of handshakes. That of a proxy is counted by its header."""
    rig = tls_rig(monkeypatch)
    client = Client(rig)
    client.worker.client.source = source
    rig.pool.sources[source] = rig.pool.opening[source] = 1
    if end == "FIN":
        client.transport.receive_eof()
    else:
        client.transport.fail(ConnectionResetError())
    rig.loop.run()
    lines = [line for line in rig.lines.lines if line["event"].startswith("connection.")]
    assert [(line["event"], line["level"]) for line in lines] == [("connection.probed", "debug")] * bool(source)
    assert (rig.handshakes.probes, rig.handshakes.count, rig.rejections.count) == (bool(source), {}, {})
    assert (rig.pool.free, rig.pool.accepted) == (3, 0)
    rig.close()


def test_a_handshake_has_what_a_proxy_header_has_left_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time counts from accept; after a late header, nothing is left."""
    rig = tls_rig(monkeypatch, timeouts__handshake="5s")
    clock = Clock(monkeypatch)
    clients = [Client(rig, accepted=clock.now - spent) for spent in (0.0, 3.0, 6.0)]
    for client in clients:
        client.transport.receive(b"\x16")
    for seconds, left in ((0.0, 2), (1.9, 2), (0.2, 1), (2.8, 1), (0.2, 0)):
        rig.loop.advance(seconds)
        assert len(rig.pool.in_use) == left
    errors = [line["error"] for line in rig.lines.events("connection.rejected")]
    assert errors == ["timed out"] * 3
    rig.close()


class Broken:
    """OpenSSL whose calls fail for a reason that is not the client's."""

    def __getattr__(self, _: str) -> Any:
        raise MemoryError


def test_a_step_that_fails_costs_neither_the_worker_nor_the_turn_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as for want of memory."""
    rig = tls_rig(monkeypatch, timeouts__handshake="off")
    clients = [Client(rig) for _ in range(3)]
    clients[0].session._context = Broken()  # type: ignore[assignment]
    for client in clients:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.do_handshake()
        client.flush()
        client.deliver()
    with pytest.raises(MemoryError):
        rig.loop.run()
    rig.loop.run()
    assert len(rig.pool.in_use) == 2
    assert all(client.transport.taken for client in clients[1:])
    for client in clients[1:]:
        client.transport.abort()
    rig.loop.run()
    rig.close()


def test_limits_that_fail_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise uvloop would keep the descriptor open."""
    rig = tls_rig(monkeypatch)
    monkeypatch.setattr(FakeTransport, "set_write_buffer_limits", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Client(rig)
    rig.loop.run()
    assert rig.lines.events("connection.rejected")[0]["error"] == "aborted"
    assert rig.pool.free == 3
    rig.close()


def test_a_connection_that_is_killed_before_it_is_opened_is_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = tls_rig(monkeypatch)
    made = FakeTransport.made

    def kill_first(transport: FakeTransport) -> None:
        (worker,) = rig.pool.in_use.values()
        worker.abort("killed")
        made(transport)

    monkeypatch.setattr(FakeTransport, "made", kill_first)
    Client(rig)
    rig.loop.run()
    assert rig.lines.events("connection.rejected")
    assert rig.pool.free == 3
    rig.close()


def test_a_client_hello_in_two_reads_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second read stops the reading until the step is done."""
    rig = tls_rig(monkeypatch)
    client = Client(rig)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.flush()
    client.deliver(10)
    client.deliver()
    assert not client.transport.reading
    rig.loop.run()
    client.handshake()
    assert client.session.is_open
    client.transport.abort()
    rig.loop.run()
    rig.close()


def test_the_kernel_tells_what_it_has_taken_of_the_last_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """The transport forgets that when the connection is reset."""
    rig = tls_rig(monkeypatch)
    client = Client(rig)
    client.handshake()
    client.transport.window = 0
    client.write(b"x" * 100)
    client.deliver()
    rig.info = tcp_info(written=client.session._written - 60)
    client.transport.fail(ConnectionResetError())
    rig.loop.run()
    (line,) = rig.lines.events("connection.closed")
    assert (line["reason"], line["bytes_received"], line["bytes_sent"]) == ("reset", 100, 40)
    rig.close()


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    rig = tls_rig(monkeypatch, timeouts__handshake="off")
    yield rig
    rig.close()


def test_a_client_hello_of_several_slices_is_read_whole(rig: Rig) -> None:
    client = Client(rig, alpn=["x" * 200] * 60)
    client.handshake()
    assert client.session.is_open
    client.transport.abort()
    rig.loop.run()


def test_a_client_hello_in_tiny_records_leaves_turns_to_others(rig: Rig) -> None:
    client = Client(rig, ssl.TLSVersion.TLSv1_2)  # with 1.3, the records that follow may not be cut
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.on_the_way += fragmented(client.outgoing.read())
    client.deliver()
    turns = 0
    while not client.transport.taken:
        rig.loop.turn()
        turns += 1
    assert turns > 5
    client.receive()
    client.handshake()
    assert client.session.is_open
    client.transport.abort()
    rig.loop.run()


def test_a_client_that_has_gone_after_its_request_in_plain_text_is_rejected_with_the_reason(rig: Rig) -> None:
    """FIN comes before the step of the handshake."""
    client = Client(rig)
    client.on_the_way += b"GET / HTTP/1.0\r\n\r\n"
    client.fin = True
    client.deliver()
    rig.loop.run()
    assert rig.lines.events("connection.rejected")[0]["error"] == "http request"
    assert rig.pool.free == 3


def test_a_stalled_client_gets_all_once_it_reads(rig: Rig) -> None:
    """Nothing is decrypted meanwhile, and close_notify follows what was held."""
    client = Client(rig)
    client.handshake()
    client.transport.window = 100
    client.write(os.urandom(100_000))
    client.close_notify()
    client.deliver()
    assert len(client.transport.held) < (24 << 10)
    assert client.worker.paused
    for _ in range(100):
        client.take(20_000)
        rig.loop.run()
    client.receive()
    assert client.echo == client.sent
    assert client.got_close_notify
    assert rig.reasons() == {"eof": 1}


def test_close_notify_that_has_to_wait_for_room_is_followed_by_fin(rig: Rig) -> None:
    client = Client(rig)
    client.handshake()
    client.transport.window = 0
    client.close_notify()
    client.deliver()
    assert rig.pool.in_use
    client.take(1000)
    rig.loop.run()
    client.receive()
    assert client.got_close_notify
    assert rig.reasons() == {"eof": 1}


def test_tiny_records_leave_turns_to_others(rig: Rig) -> None:
    """A read of them is echoed in several turns."""
    client = Client(rig)
    client.handshake()
    for _ in range(4000):
        client.write(b"x")
    client.deliver(256 << 10)
    client.receive()
    assert 0 < len(client.echo) < 4000
    rig.loop.run()
    client.deliver()
    rig.loop.run()
    client.receive()
    assert client.echo == client.sent
    client.transport.abort()
    rig.loop.run()


def test_what_waits_for_its_turn_when_the_connection_is_killed_is_dropped(rig: Rig) -> None:
    client = Client(rig)
    client.handshake()
    for _ in range(RECORDS + 1):
        client.write(b"x")
    client.deliver()
    client.worker.abort("killed")
    rig.loop.run()
    (line,) = rig.lines.events("connection.closed")
    assert (line["reason"], line["bytes_received"]) == ("killed", RECORDS)


@pytest.mark.parametrize("last", ["close_notify", "garbage"])
def test_after_the_drain_has_sent_fin_the_client_ends_it(rig: Rig, last: str) -> None:
    """What it still sends is dropped."""
    client = Client(rig)
    client.handshake()
    drain.finish(client.worker, "drained", 0.0)
    assert client.transport.fin_sent
    client.write(b"late")
    client.deliver()
    if last == "garbage":
        client.on_the_way += b"\x17\x03\x03\x00\x20" + bytes(32)
        client.fin = True
    else:
        client.close_notify()
    client.deliver()
    rig.loop.run()
    (line,) = rig.lines.events("connection.closed")
    assert (line["reason"], line["bytes_received"], line["bytes_sent"]) == ("drained", 4, 0)
