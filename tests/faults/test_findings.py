"""docs/network.md: ten things that a network does to connections, each done by a real one, and seen in the log.

Each test is named after a heading there. It also asserts that a connection does not look so without that.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import haproxy, network_document
from tests.support.clients import Stream, run
from tests.support.harness import DEADLINE, command, read_all, read_exactly, send_all, until
from tests.support.link import SERVER, Link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.harness import Echod
    from tests.support.link import Network

    Daemon = Callable[..., Echod]
    Line = dict[str, Any]

pytestmark = pytest.mark.slow

PORT = 7
CONFIG = f'[listen]\nhost = "*"\nport = {PORT}\n'
BULK = 1_000_000
FAR = 0.02
"""Seconds to a far client, one way."""
SLOW = 3.0
"""Seconds for which a client does not read. One that reads may take less, also if its machine stands still for a moment."""
UNSCALED = 65_535
"""Bytes of the largest window without a scale (RFC 7323, 2.2)."""
VOICE = 46
"""The DSCP of "expedited forwarding" (RFC 3246)."""
FLAGS, NO_ECN = "@th,104,8", 0x3F
"""The flags of TCP as nft names them by bits, and all but CWR and ECE (RFC 3168, 6.1)."""
ETH_P_IP = 0x0800


@pytest.fixture(scope="module", autouse=True)
def _needs_routers() -> None:
    try:
        with Link(routers=1) as link:
            let(link.routers[0], "forward", "ip ttl set 64")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs root, /dev/net/tun, ip (iproute2) and nft (nftables): {error}")


def let(router: Network, hook: str, *rules: str) -> None:
    """Let a router do this to each packet that it forwards, gets or sends (nft(8))."""
    chain = f"add table ip lab; add chain ip lab {hook} {{ type filter hook {hook} priority mangle; }}"
    router.run("nft", "; ".join([chain, *(f"add rule ip lab {hook} {rule}" for rule in rules)]))


class Clients:
    """Clients behind one or more routers, and the daemon that they come to."""

    def __init__(self, link: Link, daemon: Echod) -> None:
        self.link = link
        self.daemon = daemon
        self._number = 0
        for network in (link.client, *link.routers):
            # By default, the memory of the machine decides which window scale is offered.
            network.set("ipv4/tcp_rmem", "4096 131072 6291456")

    def connect(self, at: tuple[str, int] | None = None, dscp: int = 0) -> socket.socket:
        sock = self.link.socket()
        sock.settimeout(DEADLINE)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, dscp << 2)
        sock.connect(at or (self.link.address, PORT))
        return sock

    def line(self) -> Line:
        """Return the line of the next connection that ends."""
        self._number += 1
        return self.daemon.wait_for("connection.closed", count=self._number)

    def visit(self, size: int = 5, at: tuple[str, int] | None = None, dscp: int = 0) -> Line:
        """Let one send and get back so many bytes; return its line."""
        with self.connect(at, dscp) as sock:
            converse(sock, size)
        return self.line()


def converse(sock: socket.socket, size: int) -> None:
    """Send and get back so many bytes, at one time."""
    sending = threading.Thread(target=send_all, args=(sock, bytes(size)))
    sending.start()
    echo = read_all(sock)
    sending.join()
    assert len(echo) == size


@contextlib.contextmanager
def clients_of(echod: Daemon, *flags: str, routers: int = 1, delay: float = 0.0) -> Iterator[Clients]:
    with Link(routers=routers, delay=delay) as link, link.server.entered(), echod(CONFIG, flags=flags) as daemon:
        yield Clients(link, daemon)


def assert_shown(heading: str, seen: Line, *, usual: Line, number: int = 0) -> None:
    """Assert that what was seen looks as the document shows it, and what is usual does not."""
    shown = network_document.findings()[heading][number]
    assert network_document.looks_as(shown, seen), seen
    assert not network_document.looks_as(shown, usual), usual


def test_a_clamped_mss(echod: Daemon) -> None:
    with clients_of(echod) as clients:
        usual = clients.visit()
        assert network_document.looks_as(network_document.usual(), usual)
        let(clients.link.routers[0], "forward", "tcp flags syn tcp option maxseg size set 1360")
        assert_shown("A clamped MSS", clients.visit(), usual=usual)


def test_stripped_timestamps(echod: Daemon) -> None:
    with clients_of(echod) as clients:
        usual = clients.visit()
        let(clients.link.routers[0], "forward", "reset tcp option timestamp")
        assert_shown("Stripped timestamps", clients.visit(), usual=usual)


def test_a_window_that_never_scales(echod: Daemon) -> None:
    """There is never more than an unscaled window under way, so no more goes through in a round trip."""
    with clients_of(echod, delay=FAR / 4) as clients:
        usual = clients.visit()
        let(clients.link.routers[0], "forward", "reset tcp option window")
        seen = clients.visit(BULK)
        assert_shown("A window that never scales", seen, usual=usual)
        assert seen["tcp"]["rwnd_limited"] > 0
        assert BULK / seen["tcp"]["busy"] <= UNSCALED / seen["tcp"]["minrtt"]


def test_a_far_client(echod: Daemon) -> None:
    """Its packets take longer, through more routers."""
    with clients_of(echod) as clients:
        usual = clients.visit(BULK)
    with clients_of(echod, routers=3, delay=FAR) as clients:
        seen = clients.visit()
    assert_shown("A far client", seen, usual=usual)
    assert usual["tcp"]["minrtt"] < 2 * FAR <= seen["tcp"]["minrtt"] <= seen["tcp"]["rtt"]


def test_a_peer_that_reads_slowly(echod: Daemon, tmp_path: Path) -> None:
    """The list shows it while it lasts, and the line says for how long the client's window was full."""
    where = ("--admin.socket", str(tmp_path / "admin.sock"))

    def row() -> Line:
        rows: list[Line] = json.loads(command("connections", "--json", *where).stdout)
        return rows[0]

    def is_limited() -> bool:
        seen = row()
        limited: float = seen["tcp"]["rwnd_limited"]
        return seen["state"] == "stalled" and seen["pending"] > 0 and limited > SLOW

    with clients_of(echod, *where) as clients:
        usual = clients.visit(BULK)
        with clients.connect() as sock:
            sending = threading.Thread(target=send_all, args=(sock, bytes(4 * BULK)))
            sending.start()
            until(is_limited, what="stalled, and limited by the client's window")
            listed = row()
            assert len(read_all(sock)) == 4 * BULK
            sending.join()
        seen = clients.line()
    assert usual["tcp"]["rwnd_limited"] < SLOW < seen["tcp"]["rwnd_limited"]
    assert seen["tcp"]["rwnd_limited"] > seen["tcp"]["busy"] / 2
    assert seen["tcp"]["rwnd_limited"] >= listed["tcp"]["rwnd_limited"]
    assert seen["syn"] == listed["syn"]
    assert seen["reason"] == "eof"


def test_loss_in_one_direction(echod: Daemon) -> None:
    """The daemon sends again what is lost towards the client, and the client what is lost towards the daemon."""
    with clients_of(echod, delay=FAR / 4) as clients:

        def retransmits() -> tuple[int, int]:
            """Let a client come; return how many segments the daemon and the client had to send again."""
            before = clients.link.client.count("RetransSegs")
            line = clients.visit(3 * BULK)
            return line["tcp"]["retrans"], clients.link.client.count("RetransSegs") - before

        usual = retransmits()
        clients.link.loss, clients.link.loss_back = 0.0, 0.05
        to_client = retransmits()
        clients.link.loss, clients.link.loss_back = 0.05, 0.0
        from_client = retransmits()
    assert to_client[0] > 4 * max(to_client[1], *usual)
    assert from_client[1] > 4 * max(from_client[0], *usual)


def test_nat_that_cuts_idle_connections(echod: Daemon) -> None:
    """The kernel asks whether a quiet client is still there, and nobody answers. One that talks is kept."""
    with clients_of(echod) as clients:
        for name, value in (("time", 6), ("intvl", 1), ("probes", 1)):
            clients.link.server.set(f"ipv4/tcp_keepalive_{name}", value)
        nat = clients.link.routers[0]
        nat.run("nft", "add table ip nat; add chain ip nat out { type nat hook postrouting priority srcnat; }")
        nat.run("nft", "add rule ip nat out masquerade")
        for hook in ("forward", "input"):
            let(nat, hook, "ct state invalid drop")
        nat.set("netfilter/nf_conntrack_tcp_loose", 0)
        nat.set("netfilter/nf_conntrack_tcp_timeout_established", 5)  # which `busy` never comes near
        with clients.connect() as quiet, clients.connect() as busy:
            quiet.sendall(b"hello")
            assert read_exactly(quiet, 5) == b"hello"

            def is_cut() -> bool:
                busy.sendall(b"hello")
                assert read_exactly(busy, 5) == b"hello"
                return bool(clients.daemon.events("connection.closed"))

            until(is_cut, what="a line", interval=0.2)
            seen = clients.line()
            busy.shutdown(socket.SHUT_WR)
            assert read_all(busy) == b""
            assert_shown("NAT that cuts idle connections", seen, usual=clients.line())


def test_ecn_bleached(echod: Daemon) -> None:
    """And the DSCP: what the client has set does not arrive."""
    with clients_of(echod) as clients:
        clients.link.client.set("ipv4/tcp_ecn", 1)
        usual = clients.visit(dscp=VOICE)
        assert usual["syn"]["dscp"] == VOICE
        assert usual["syn"]["ecn"]
        let(clients.link.routers[0], "forward", "ip dscp set 0", f"{FLAGS} set {FLAGS} & {NO_ECN:#x}")
        assert_shown("ECN bleached", clients.visit(dscp=VOICE), usual=usual)


def ttl_of_a_reset(sniffer: socket.socket) -> int:
    """Return the TTL with which the first RST to the daemon has come."""
    sniffer.settimeout(DEADLINE)
    while True:
        packet = sniffer.recv(100)
        (port,) = struct.unpack_from("!H", packet, 22)
        if packet[9] == socket.IPPROTO_TCP and port == PORT and packet[33] & 0x04:
            return packet[8]


def test_a_firewall_that_resets(echod: Daemon) -> None:
    """Each end hears that the other one has reset the connection. The RST has come a shorter way than the client's SYN."""
    with clients_of(echod, routers=2) as clients:
        usual = clients.visit(BULK)
        firewall = clients.link.routers[1]
        let(firewall, "forward", "ct bytes > 50000 reject with tcp reset")
        firewall.set("netfilter/nf_conntrack_acct", 1)
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP)) as sniffer:
            with clients.connect() as sock:
                client = Stream(sock)
                run([client], writing=True)
                assert client.ended == "reset"
                seen = clients.line()
            assert ttl_of_a_reset(sniffer) == seen["syn"]["ttl"] + 2
    assert_shown("A firewall that resets", seen, usual=usual)


PROXIES = f"""
listen plain
    bind {SERVER}:1007
    server echod 10.0.1.2:{PORT}
listen named
    bind {SERVER}:1008
    server echod 10.0.1.2:{PORT} send-proxy-v2
"""


def test_a_proxy_in_between(echod: Daemon, tmp_path: Path) -> None:
    """TTL, options and round trip are the proxy's, even if its header names the client, which is far and is no Linux."""
    with contextlib.ExitStack() as stack:
        clients = stack.enter_context(clients_of(echod, delay=FAR))
        with clients.link.routers[0].entered():
            stack.enter_context(haproxy.running(PROXIES, tmp_path))
        clients.link.client.set("ipv4/ip_default_ttl", 128)
        clients.link.client.set("ipv4/tcp_timestamps", 0)
        direct = clients.visit()

        def answers() -> bool:
            with clients.link.socket() as sock:
                return sock.connect_ex((SERVER, 1007)) == 0

        until(answers, what="HAProxy")
        clients.line()
        began = time.monotonic()
        plain = clients.visit(at=(SERVER, 1007))
        assert time.monotonic() - began >= 2 * FAR
        clients.daemon.reload(CONFIG + '[access]\nproxies = ["10.0.1.1"]\n')
        named = clients.visit(at=(SERVER, 1008))
    for number, seen in enumerate((plain, named)):
        assert_shown("A proxy in between", seen, usual=direct, number=number)
        assert seen["tcp"]["minrtt"] < 2 * FAR <= direct["tcp"]["minrtt"]
