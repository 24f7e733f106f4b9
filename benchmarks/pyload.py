"""The load where there is no C compiler: as load.c, with its words, its output, and its checks.

    python -m benchmarks.pyload PORT CONNECTIONS SIZE spin|wait loop SECONDS | rate PER_SECOND SECONDS | churn CYCLES

Slower than load.c, so that it and not the server may be the limit.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import resource
import select
import signal
import socket
import sys
import time

from benchmarks.summary import quantile

HOST = "127.0.0.1"
BUFFER = 512 * 1024
PERIOD = 4096
WARM = 0.2  # seconds
WARM_CYCLES = 200
GIVE_UP = 20  # seconds
LONGEST = 120  # seconds, of all
HELLO = 64
EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class Connection:
    """One that sends and verifies."""

    def __init__(self, load: Load, index: int) -> None:
        self.load = load
        self.index = index
        self.number = 0  # of messages begun
        self.state = "free"

    def connect(self, *, at_once: bool) -> None:
        """Connect; `at_once` waits for nothing."""
        self.sock = socket.socket()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began = time.perf_counter()
        if at_once:
            self.state = "connecting"
            self.sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                self.sock.connect((HOST, self.load.port))
        else:
            hello = self.load.pattern[:HELLO]
            self.sock.settimeout(GIVE_UP)
            self.sock.connect((HOST, self.load.port))
            self.sock.sendall(hello)
            if self.sock.recv(HELLO, socket.MSG_WAITALL) != hello:
                sys.exit(f"load: connection {self.index + 1} has got no echo")
            self.sock.setblocking(False)
        self.load.watch(self)

    def begin(self, when: float) -> None:
        """Send the next message."""
        offset = (self.index * 131 + self.number * 17) % PERIOD
        self.message = memoryview(self.load.pattern)[offset : offset + self.load.size]
        self.number += 1
        self.began = when
        self.sent = self.got = 0
        self.state = "echoing"
        self.push()

    def push(self) -> None:
        """Send what is left of the message."""
        with contextlib.suppress(BlockingIOError):
            while self.sent < self.load.size:
                self.sent += self.sock.send(self.message[self.sent :])

    def ready(self, events: int) -> None:
        """Do what can be done now."""
        if self.state == "connecting" and events & select.EPOLLOUT:
            self.begin(self.began)
        elif self.state == "echoing" and events & select.EPOLLOUT:
            self.push()
        if self.state != "connecting" and events & ~select.EPOLLOUT:
            self.pull()

    def pull(self) -> None:
        """Receive and verify."""
        try:
            data = self.sock.recv(BUFFER)
        except BlockingIOError:
            return
        if not data and self.state == "closing":
            self.sock.close()
            self.load.finished(self)
            return
        if self.state != "echoing" or self.message[self.got : self.got + len(data)] != data or not data:
            sys.exit("load: what came back is not what was sent")
        self.got += len(data)
        if self.got == self.load.size and self.load.churns:
            self.state = "closing"
            self.sock.shutdown(socket.SHUT_WR)
        elif self.got == self.load.size:
            self.load.finished(self)


class Load:
    """All connections, and what they have measured."""

    def __init__(self, port: int, count: int, size: int, *, spin: bool, churns: bool) -> None:
        self.port = port
        self.size = size
        self.churns = churns
        self.timeout = 0.0 if spin else 0.01
        self.pattern = random.Random(862).randbytes(PERIOD + size + HELLO)
        self.poll = select.epoll()
        self.connections = [Connection(self, index) for index in range(count)]
        self.by_fd: dict[int, Connection] = {}
        self.rate = 0.0
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.taken: list[float] = []
        self.left = self.due = self.under_way = 0
        self.began = time.perf_counter()
        self.until = 0.0

    def watch(self, connection: Connection) -> None:
        """Hear of what happens there."""
        self.by_fd[connection.sock.fileno()] = connection
        self.poll.register(connection.sock, EVENTS)

    def turn(self) -> None:
        """Handle what is ready."""
        for fd, events in self.poll.poll(self.timeout):
            connection = self.by_fd[fd]
            if connection.state != "free":
                connection.ready(events)
            elif events & select.EPOLLRDHUP:
                sys.exit("load: the server has closed an idle connection")

    def finished(self, connection: Connection) -> None:
        """Book an echo, and begin what comes next."""
        now = time.perf_counter()
        self.taken.append(now - connection.began)
        self.under_way -= 1
        connection.state = "free"
        if self.churns:
            self.cycle(connection)
        elif self.rate:
            if connection.number * len(self.connections) + connection.index < self.due:
                self.arrive(connection)
        elif now < self.until:
            self.under_way += 1
            connection.begin(now)

    def cycle(self, connection: Connection) -> None:
        """Connect once more, if that is to be done."""
        if self.left:
            self.left -= 1
            self.under_way += 1
            connection.connect(at_once=True)

    def arrive(self, connection: Connection) -> None:
        """Begin a message that is due."""
        self.under_way += 1
        number = connection.number * len(self.connections) + connection.index
        connection.begin(self.began + number / self.rate)

    def loop(self, seconds: float) -> None:
        """Send at full speed."""
        self.forget()
        self.until = self.began + seconds
        for connection in self.connections:
            self.under_way += 1
            connection.begin(time.perf_counter())
        while self.under_way:
            self.turn()

    def fixed_rate(self, per_second: float, seconds: float) -> None:
        """Send when it is due."""
        self.forget()
        self.rate = per_second
        total = math.floor(per_second * seconds)
        for connection in self.connections:
            connection.number = 0
        while self.due < total or self.under_way:
            now = time.perf_counter()
            if self.due < total and self.began + self.due / per_second <= now:
                connection = self.connections[self.due % len(self.connections)]
                self.due += 1
                if connection.state == "free":
                    self.arrive(connection)
            else:
                self.timeout = 0.0
                self.turn()
            if now > self.began + seconds * 3 + 5:
                sys.exit(f"load: it does not keep up with {per_second:.0f} a second")

    def churn(self, cycles: int) -> None:
        """Connect again and again."""
        self.forget()
        self.left = cycles
        for connection in self.connections:
            self.cycle(connection)
        while self.under_way:
            self.turn()

    def result(self) -> dict[str, float]:
        """Return what came of it, times in microseconds."""
        seconds = time.perf_counter() - self.began
        parts = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
        ordered = sorted(self.taken)
        shown = {name: quantile(ordered, part) * 1e6 for name, part in parts.items()}
        return {"messages": len(ordered), "seconds": seconds, **shown}


def main(port: str, connections: str, size: str, wait: str, mode: str, *amounts: str) -> None:
    """Do as load.c."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.alarm(LONGEST)
    load = Load(int(port), int(connections), int(size), spin=wait == "spin", churns=mode == "churn")
    if load.churns:
        load.churn(WARM_CYCLES)
    else:
        for connection in load.connections:
            connection.connect(at_once=False)
        load.loop(WARM)
    print("ready", flush=True)
    sys.stdin.readline()
    if mode == "churn":
        load.churn(int(amounts[0]))
    elif mode == "rate":
        load.fixed_rate(float(amounts[0]), float(amounts[1]))
    else:
        load.loop(float(amounts[0]))
    print(json.dumps(load.result()), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
