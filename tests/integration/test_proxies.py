"""Behind load balancers: `access.proxies`, PROXY headers, and probes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import haproxy
from tests.support.harness import (
    DEADLINE,
    LOCAL,
    Echod,
    command,
    free_port,
    listens,
    read_all,
    read_exactly,
    reset,
    send_all,
    until,
)
from tests.support.proxy_headers import LOCAL_CHECK, binary, v1, v2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow

PROXY, CLIENT = "127.0.0.77", "203.0.113.7"
PROXIES = f"[access]\nproxies = '{PROXY}'\n"
ABOVE_DEBUG = ("info", "warning", "error")


def echo(daemon: Echod, data: bytes, source: str = PROXY) -> bytes:
    """Send and half-close; return what came back, which a rejection may have cut."""
    with daemon.connect(source=source) as sock, contextlib.suppress(OSError):  # it may be rejected already
        send_all(sock, data)
        return read_all(sock)
    return b""


def counted(where: list[str]) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads(command("status", "--json", *where).stdout)["connections"]
    return counts


@pytest.mark.parametrize("header", [v1(CLIENT, 4711), v2(CLIENT, 4711, b"\x05\0\1x")], ids=["v1", "v2"])
def test_the_log_and_the_list_have_the_client_and_the_proxy(echod: Daemon, tmp_path: Path, header: bytes) -> None:
    """Each byte after the header comes back."""
    where = ["--admin.socket", str(tmp_path / "admin.sock")]
    with echod(PROXIES, flags=where) as daemon, daemon.connect(source=PROXY) as sock:
        ends = {"client": {"address": CLIENT, "port": 4711}, "proxy": {"address": PROXY, "port": sock.getsockname()[1]}}
        sock.sendall(header + b"hello")
        assert read_exactly(sock, 5) == b"hello"
        (row,) = json.loads(command("connections", "--json", *where).stdout)
        assert ends.items() <= row.items()
        assert f" {CLIENT}:4711 " in command("connections", *where).stdout
        assert command("connections", "--source", f"{CLIENT}/32", *where).stdout.count("\n") == 2
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
        for event in ("connection.opened", "connection.closed"):
            assert ends.items() <= daemon.wait_for(event).items()


def test_from_anyone_else_a_header_is_data(echod: Daemon) -> None:
    """It comes back, and names nobody."""
    with echod(PROXIES) as daemon:
        for header in (v1(CLIENT, 4711), v2(CLIENT, 4711), LOCAL_CHECK):
            assert echo(daemon, header + b"x", LOCAL) == header + b"x"
        lines = [daemon.wait_for("connection.opened", count=count) for count in (1, 2, 3)]
        assert [(line["client"]["address"], "proxy" in line) for line in lines] == [(LOCAL, False)] * 3


@pytest.mark.parametrize("data", [b"hello", b"PROXY TCP4 1 2\r\n", binary(0x21, 0x11), v2(CLIENT, 1)[:-1]])
def test_from_a_proxy_a_header_is_required(echod: Daemon, data: bytes) -> None:
    """One that is missing or wrong is a rejection of the proxy."""
    with echod(PROXIES) as daemon:
        assert echo(daemon, data) == b""
        line = daemon.wait_for("connection.rejected")
        assert (line["client"]["address"], line["reason"], "proxy" in line) == (PROXY, "proxy_header", False)


def test_a_header_that_does_not_come_holds_no_worker(echod: Daemon) -> None:
    """And the connection ends after `timeouts.handshake`."""
    with (
        echod(PROXIES + "[pool]\nsize = 1\n[timeouts]\nhandshake = '200ms'") as daemon,
        daemon.connect(source=PROXY) as silent,
        daemon.connect(source=PROXY) as begun,
    ):
        begun.sendall(b"PRO")
        assert read_all(begun) == b""  # only one may wait
        assert daemon.echo(b"hello") == b"hello"
        assert read_all(silent) == b""
        assert daemon.wait_for("connection.rejected", count=2)["error"] == "too late"


def test_the_rules_see_the_named_client(echod: Daemon) -> None:
    """The address of the proxy itself needs no permission."""
    with echod(PROXIES + f"allow = '203.0.113.0/24'\ndeny = ['203.0.113.9', '{PROXY}']\nper_source = 1") as daemon:
        with daemon.connect(source=PROXY) as first:
            first.sendall(v1(CLIENT, 1) + b"x")
            assert read_exactly(first, 1) == b"x"
            assert echo(daemon, v1(CLIENT, 2) + b"x") == b""
            assert echo(daemon, v1("203.0.113.8", 3) + b"x") == b"x"
            assert echo(daemon, v1("203.0.113.9", 4) + b"x") == b""
        reasons = [daemon.wait_for("connection.rejected", count=count)["reason"] for count in (1, 2)]
        assert reasons == ["per_source", "denied"]


def test_probes_have_no_line_and_no_share(echod: Daemon, tmp_path: Path) -> None:
    """Not even with data, which comes back; whatever the limits are, and however the probe ends."""
    where = ["--admin.socket", str(tmp_path / "admin.sock")]
    rules = "deny = '203.0.113.0/24'\nper_source = 1\naccept_rate = '1/h'\n"
    with echod(PROXIES + rules, flags=where) as daemon:
        with daemon.connect(source=PROXY) as open_one:
            open_one.sendall(LOCAL_CHECK + b"x")
            assert read_exactly(open_one, 1) == b"x"
            for header in (LOCAL_CHECK, binary(0x20, 0, b"\xea\0\1x"), binary(0x21, 0), b"PROXY UNKNOWN\r\n"):
                assert echo(daemon, header + b"ping") == b"ping"
            assert echo(daemon, LOCAL_CHECK) == b""
            assert echo(daemon, b"") == b""
            for header in (b"", LOCAL_CHECK):
                sock = daemon.connect(source=PROXY)
                sock.sendall(header)
                reset(sock)
            until(lambda: counted(where)["probes"] == 9, what="all probes counted")
        until(lambda: sum(counted(where)["closed"].values()) == 5, what="all closed")
        assert sum(counted(where)["rejected"].values()) == 0
        lines = [line["event"] for line in daemon.lines if line["event"].startswith("connection.")]
        assert lines == []


def test_a_proxy_that_is_not_allowed_sends_no_data_of_clients_whom_it_can_not_name(
    echod: Daemon, tmp_path: Path
) -> None:
    """Those that it names, and its checks, are as ever."""
    where = ["--admin.socket", str(tmp_path / "admin.sock")]
    with echod(PROXIES + "allow = '203.0.113.0/24'\n", flags=where) as daemon:
        for header, echoed in ((LOCAL_CHECK, b"ping"), (binary(0x21, 0), b""), (b"PROXY UNKNOWN\r\n", b"")):
            assert echo(daemon, header + b"ping") == echoed
            assert echo(daemon, header) == b""
        assert echo(daemon, v1(CLIENT, 4711) + b"ping") == b"ping"
        until(lambda: counted(where)["probes"] == 6, what="all probes counted")
        assert {reason: count for reason, count in counted(where)["rejected"].items() if count} == {"denied": 2}
        assert daemon.events("connection.rejected") == []


def test_at_debug_each_probe_has_a_line(echod: Daemon) -> None:
    with echod(PROXIES + "[log]\nlevel = 'debug'") as daemon:
        echo(daemon, b"")
        echo(daemon, LOCAL_CHECK + b"x")
        assert daemon.wait_for("connection.probed", count=2)["command"] == "LOCAL"
        assert daemon.events("connection.probed")[0]["command"] is None
        assert daemon.events("connection.opened") == []


def test_with_used_a_probe_of_anybody_has_no_line(echod: Daemon, tmp_path: Path) -> None:
    """It is counted; the end of each other connection has its line."""
    where = ["--admin.socket", str(tmp_path / "admin.sock")]
    with echod("[log]\nconnections = 'used'", flags=where) as daemon:
        assert daemon.echo(b"") == b""
        with daemon.connect() as sock:
            reset(sock)
        assert daemon.echo(b"hello") == b"hello"
        until(lambda: sum(counted(where)["closed"].values()) == 3, what="all closed")
        assert counted(where)["probes"] == 2
        daemon.wait_for("connection.closed")
        lines = [line for line in daemon.lines if line["event"].startswith("connection.")]
        assert [(line["event"], line["bytes_received"]) for line in lines] == [("connection.closed", 5)]


def test_a_reload_changes_who_is_a_proxy(echod: Daemon) -> None:
    """For new connections, with a warning that says what that means."""
    with echod("[pool]\nsize = 2\n") as daemon:
        header = v1(CLIENT, 4711)
        assert echo(daemon, header) == header
        assert daemon.reload("[pool]\nsize = 2\n" + PROXIES)["changed"] == ["access.proxies"]
        assert "may name any client" in daemon.wait_for("config.warning")["message"]
        with daemon.connect(source=PROXY) as early:
            early.sendall(header[:20])
            assert echo(daemon, header + b"x") == b"x"
            daemon.reload("[pool]\nsize = 2\n")
            assert "without a PROXY header" in daemon.wait_for("config.warning", count=2)["message"]
            assert echo(daemon, b"x") == b"x"
            early.sendall(header[20:] + b"late")
            assert read_exactly(early, 4) == b"late"


def test_with_wait_clients_of_a_proxy_are_never_rejected(echod: Daemon) -> None:
    """They wait in the backlog as all others do, also if their headers come one by one."""
    with (
        echod(PROXIES + "[pool]\nsize = 2\nwhen_full = 'wait'") as daemon,
        ThreadPoolExecutor(20) as clients,
    ):
        found = clients.map(lambda number: slowly(daemon, v1(CLIENT, number), b"x" * number), range(1, 41))
        assert [len(data) for data in found] == list(range(1, 41))
        assert daemon.events("connection.rejected") == []


def slowly(daemon: Echod, header: bytes, data: bytes) -> bytes:
    with daemon.connect(source=PROXY) as sock:
        for part in (header[:7], header[7:15], header[15:] + data):
            sock.sendall(part)
            time.sleep(0.002)
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def test_a_stop_serves_a_client_whose_header_is_under_way(echod: Daemon) -> None:
    """One that never comes does not hold it up."""
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(echod(PROXIES))
        before = daemon.descriptors()
        silent, sock = [stack.enter_context(daemon.connect(source=PROXY)) for _ in range(2)]
        sock.sendall(b"PROXY ")
        until(lambda: daemon.descriptors() == before + 3, what="both, and the epoll of those that wait")
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("daemon.draining")
        send_all(sock, v1(CLIENT, 4711)[6:] + b"hello")
        assert read_all(sock) == b"hello"
        assert read_all(silent) == b""
        assert daemon.wait() == 0
        assert daemon.events("daemon.stopped")[0]["aborted"] == 0


@pytest.mark.parametrize("header", [v1(CLIENT, 4711), v2(CLIENT, 4711, b"\x04\0\3abc")], ids=["v1", "v2"])
def test_a_header_split_at_every_byte_names_the_client(echod: Daemon, header: bytes) -> None:
    """In two segments and in as many as it has bytes; the data may come with its last byte or behind it."""
    with echod(PROXIES) as daemon:
        for length in range(1, len(header) + 1):
            with daemon.connect(source=PROXY) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.sendall(header[:length])
                time.sleep(0.002)
                send_all(sock, header[length:] + b"hello")
                assert read_all(sock) == b"hello"
        with daemon.connect(source=PROXY) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in header + b"hello":
                sock.sendall(bytes([byte]))
                time.sleep(0.001)
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b"hello"
        line = daemon.wait_for("connection.closed", count=len(header) + 1)
        assert line["client"] == {"address": CLIENT, "port": 4711}
        assert {each["client"]["address"] for each in daemon.events("connection.closed")} == {CLIENT}
        assert daemon.events("connection.rejected") == []


HEADERS = int(os.environ.get("ECHOD_TEST_EXAMPLES", "1")) * 5_000


def test_random_headers_name_no_wrong_client_and_leave_nothing(echod: Daemon, tmp_path: Path) -> None:
    """Good ones get each byte back; of the others, none is echoed a byte. ECHOD_TEST_EXAMPLES=20 sends 10⁵ of them."""
    where = ["--admin.socket", str(tmp_path / "admin.sock")]
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    with echod(f"[access]\nproxies = '{RANDOM_PROXIES}'\n[log]\nconnections = 'none'\n", flags=where) as daemon:
        before = descriptors_once_used(daemon)
        try:
            good = sum(send_random(daemon, dice) for _ in range(HEADERS))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        until(lambda: daemon.descriptors() == before, what="all descriptors closed")
        counts = counted(where)
        assert counts["accepted"] >= good > HEADERS / 4
        assert sum(counts["closed"].values()) == counts["accepted"]
        assert set(counts["rejected"]) >= {"proxy_header"}
        assert {line["reason"] for line in daemon.events("connection.rejected")} == {"proxy_header"}


def descriptors_once_used(daemon: Echod) -> int:
    """Return how many descriptors the daemon has open, with the two that stay.

    The first connection whose header is not complete opens the epoll of all that wait. The first one that is opened opens
    /dev/null, which libuv holds in reserve.
    """
    idle = daemon.descriptors()
    proxy = random_proxy(random.Random())
    with daemon.connect(source=proxy):
        until(lambda: daemon.descriptors() == idle + 2, what="the connection and the epoll")
    assert echo(daemon, v1(CLIENT, 4711) + b"x", proxy) == b"x"
    until(lambda: daemon.descriptors() == idle + 2, what="the epoll and the reserve")
    return idle + 2


RANDOM_PROXIES = "127.0.7.0/24"


def random_proxy(dice: random.Random) -> str:
    """Return one of many: an address has 28,232 ports, each of which rests for a minute after its connection."""
    return f"127.0.7.{dice.randrange(256)}"


def send_random(daemon: Echod, dice: random.Random) -> bool:
    """Send a header, maybe a spoiled one, in up to three pieces, then data. Say whether it was a good one."""
    address = f"203.0.113.{dice.randrange(256)}" if dice.random() < 0.5 else f"2001:db8::{dice.randrange(65536):x}"
    make = dice.choice([v1, v2])
    header = bytearray(make(address, dice.randrange(65536)))
    spoiled = dice.random() < 0.5
    if spoiled:
        for _ in range(dice.randint(1, 4)):
            header[dice.randrange(len(header))] = dice.randrange(256)
    data = dice.randbytes(dice.randint(1, 50))
    with daemon.connect(source=random_proxy(dice)) as sock:
        stream = bytes(header) + data
        cuts = sorted(dice.randrange(len(stream)) for _ in range(dice.randint(0, 2)))
        with contextlib.suppress(OSError):  # it may have been rejected already
            for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
                sock.sendall(stream[begin:end])
            sock.shutdown(socket.SHUT_WR)
        echoed = b""
        with contextlib.suppress(ConnectionError):
            echoed = read_all(sock)
    assert stream.endswith(echoed)  # never a byte that was not sent, nor a part of the middle
    if not spoiled:
        assert echoed == data
    return not spoiled


BALANCERS = """
frontend one
    bind 127.0.0.1:{v1}
    default_backend v1
frontend two
    bind 127.0.0.1:{v2}
    default_backend v2
backend v1
    source 127.0.0.77
    server echod 127.0.0.1:{echod} send-proxy check inter 20ms
backend v2
    source 127.0.0.77
    server echod 127.0.0.1:{echod} send-proxy-v2 check inter 20ms
backend plain
    source 127.0.0.77
    server echod 127.0.0.1:{echod} check inter 20ms
backend asking
    source 127.0.0.77
    option tcp-check
    tcp-check send ping
    tcp-check expect string ping
    server echod 127.0.0.1:{echod} check-send-proxy send-proxy-v2 check inter 20ms
"""


@contextlib.contextmanager
def balanced(port: int, folder: Path) -> Iterator[dict[str, int]]:
    """Let HAProxy run in front of a port; yield its ports by version."""
    ports = {"v1": free_port(), "v2": free_port()}
    with haproxy.running(BALANCERS.format(echod=port, **ports), folder):
        until(lambda: all(map(listens, ports.values())), what="HAProxy listening")
        yield ports


def test_behind_haproxy_each_client_is_named_and_no_check_is_logged(echod: Daemon, tmp_path: Path) -> None:
    """With `send-proxy` and `send-proxy-v2`; with hundreds of checks by v1, v2, plain TCP, and a question and its answer."""
    where = ["--admin.socket", str(tmp_path / "admin.sock")]
    with echod(PROXIES + "per_source = 1\n", flags=where) as daemon, balanced(daemon.port, tmp_path) as ports:
        for count, port in enumerate(ports.values(), 1):
            with socket.create_connection((LOCAL, port), timeout=DEADLINE) as sock:
                client = sock.getsockname()
                send_all(sock, b"hello" * 10_000)
                assert read_all(sock) == b"hello" * 10_000
            line = daemon.wait_for("connection.closed", count=count)
            assert (line["client"]["address"], line["client"]["port"]) == client
            assert line["proxy"]["address"] == PROXY
        until(lambda: counted(where)["probes"] >= 400, what="400 checks", interval=0.2)
        assert {line["event"] for line in daemon.lines if line["event"].startswith("connection.")} == {
            "connection.opened",
            "connection.closed",
        }
        assert len(daemon.events("connection.closed")) == len(ports)
        assert sum(counted(where)["rejected"].values()) == 0
