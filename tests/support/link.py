"""A network that loses, delays and reorders: two networks of their own, and between them a thread that hands packets over.

Needs root, and nothing of the kernel but namespaces and TUN devices: netem would be the same, but is not in every kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import selectors
import socket
import struct
import subprocess
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT, SERVER = "10.0.0.1", "10.0.0.2"
_CLONE_NEWNET = 0x40000000  # <linux/sched.h>; os.unshare and os.setns came with Python 3.12
_TUNSETIFF = 0x400454CA  # <linux/if_tun.h>
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _here() -> int:
    """Return a descriptor of this thread's network."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Network:
    """A network with a loopback. It has no name, and is gone with its last socket and process."""

    def __init__(self) -> None:
        home = _here()
        try:
            _check(_libc.unshare(_CLONE_NEWNET))
            try:
                self._namespace = _here()
            finally:
                _check(_libc.setns(home, _CLONE_NEWNET))
        finally:
            os.close(home)
        self.run("ip", "link", "set", "dev", "lo", "up")

    def open_link(self, address: str, *, mtu: int) -> int:
        """Return a descriptor of a device at this address: what it sends is read there, and what is written there arrives."""
        with self.entered():
            # Opened in here, so that the device is in here. It knows no offloads: what comes out are packets as on a wire.
            packets = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            with self.entered():
                fcntl.ioctl(packets, _TUNSETIFF, struct.pack("16sH22x", b"link", _IFF_TUN | _IFF_NO_PI))
            self.run("ip", "address", "add", f"{address}/24", "dev", "link")
            # A sender that goes as fast as it can must not lose packets here: only the link loses any.
            self.run("ip", "link", "set", "dev", "link", "up", "mtu", str(mtu), "txqueuelen", "10000")
        except BaseException:
            os.close(packets)
            raise
        return packets

    def connect(self, address: str, other: Network, other_address: str) -> None:
        """Lay a cable to another network, each end with an address of one /24."""
        names = f"to{other_address}", f"to{address}"
        peer = f"/proc/{os.getpid()}/fd/{other._namespace}"
        self.run("ip", "link", "add", names[0], "type", "veth", "peer", "name", names[1], "netns", peer)
        for network, name, own in ((self, names[0], address), (other, names[1], other_address)):
            network.run("ip", "address", "add", f"{own}/24", "dev", name)
            network.run("ip", "link", "set", "dev", name, "up")

    def run(self, *words: str) -> None:
        """Run a program in this network to its end. Raises `subprocess.CalledProcessError` if it fails."""
        with self.entered():
            subprocess.run(words, check=True, stdin=subprocess.DEVNULL)

    def set(self, name: str, value: object) -> None:
        """Set what holds in this network: the name is one below /proc/sys/net."""
        with self.entered():
            Path("/proc/sys/net", name).write_text(str(value))

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let the sockets and processes that this thread makes meanwhile be of this network."""
        home = _here()
        try:
            _check(_libc.setns(self._namespace, _CLONE_NEWNET))
            yield
        finally:
            _check(_libc.setns(home, _CLONE_NEWNET))
            os.close(home)

    def count(self, name: str) -> int:
        """Return a counter of TCP, such as "RetransSegs" (proc_net_snmp(5))."""
        with self.entered():
            lines = (Path("/proc/thread-self/net") / table for table in ("snmp", "netstat"))
            rows = [line.split() for path in lines for line in path.read_text().splitlines()]
        counters: dict[str, str] = {}
        for names, values in zip(rows[::2], rows[1::2], strict=True):
            if names[0] in ("Tcp:", "TcpExt:"):
                counters |= zip(names, values, strict=True)
        return int(counters[name])

    def close(self) -> None:
        os.close(self._namespace)


class Link(threading.Thread):
    """Two networks, and what lies between: the client's at `CLIENT`, and the server's at `address`.

    Of the packets each way, it drops a part `loss`; others arrive after `delay` seconds, or up to `jitter` later, and so
    overtake each other. All three may be changed at any moment. Drawn from one seed, and yet no two runs are the same, as
    the kernel's timers are not ours. With `loss_back`, this is the part of the packets to the client, and `loss` that of
    the packets from it.

    `routers` are networks between the link and the server, the one beside the link first. They lose and delay nothing.
    """

    def __init__(
        self, *, mtu: int = 1500, loss: float = 0.0, delay: float = 0.0, jitter: float = 0.0, routers: int = 0
    ) -> None:
        super().__init__()
        self.loss, self.delay, self.jitter = loss, delay, jitter
        self.loss_back: float | None = None
        self.lost = self.delivered = self.overtaken = 0  # packets
        self.largest = 0  # bytes of a packet
        self.address = f"10.0.{routers}.2"
        self._over = threading.Event()
        self._random = random.Random(862)
        self._newest: defaultdict[int, int] = defaultdict(int)  # delivered each way
        self._under_way: list[tuple[float, int, int, bytes]] = []  # when due, number, where to, packet: a heap
        with contextlib.ExitStack() as undo:
            self._networks = [undo.enter_context(contextlib.closing(Network())) for _ in range(routers + 2)]
            self.client, *self.routers, self.server = self._networks
            self._ends: list[int] = []
            for network, address in zip(self._networks[:2], (CLIENT, SERVER), strict=True):
                self._ends.append(network.open_link(address, mtu=mtu))
                undo.callback(os.close, self._ends[-1])
            self._join_routers()
            self._undo = undo.pop_all()

    def _join_routers(self) -> None:
        """Connect each network but the client's to the next, by 10.0.N.0/24: the link is 10.0.0.0/24."""
        last = len(self._networks) - 2
        for number, (near, far) in enumerate(itertools.pairwise(self._networks[1:]), start=1):
            near.connect(f"10.0.{number}.1", far, f"10.0.{number}.2")
            near.set("ipv4/ip_forward", 1)
            far.run("ip", "route", "add", "default", "via", f"10.0.{number}.1")
            if number < last:
                near.run("ip", "route", "add", f"10.0.{last}.0/24", "via", f"10.0.{number}.2")
        if last:
            self.client.run("ip", "route", "add", "default", "via", SERVER)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        self._undo.close()

    def socket(self) -> socket.socket:
        """Return a client's socket, for `address`."""
        with self.client.entered():
            return socket.socket()

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for here, there in (self._ends, self._ends[::-1]):
                selector.register(here, selectors.EVENT_READ, there)
            while not self._over.is_set():
                until = self._under_way[0][0] - time.monotonic() if self._under_way else 0.1
                for key, _ in selector.select(max(0, min(until, 0.1))):
                    self._take(key.fd, key.data)
                self._deliver()

    def _take(self, here: int, there: int) -> None:
        """Take what has been sent, and throw the dice over each packet."""
        loss = self.loss if self.loss_back is None or here == self._ends[0] else self.loss_back
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = os.read(here, 1 << 16)
                self.largest = max(self.largest, len(packet))
                number = self.lost + self.delivered + len(self._under_way)
                if self._random.random() < loss:
                    self.lost += 1
                else:
                    due = time.monotonic() + self.delay + self._random.random() * self.jitter
                    heapq.heappush(self._under_way, (due, number, there, packet))

    def _deliver(self) -> None:
        """Hand over what is due."""
        while self._under_way and self._under_way[0][0] <= time.monotonic():
            _, number, there, packet = heapq.heappop(self._under_way)
            os.write(there, packet)
            self.delivered += 1
            self.overtaken += number < self._newest[there]
            self._newest[there] = max(number, self._newest[there])
