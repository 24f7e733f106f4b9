"""What being watched costs: echoes at full speed, alone and beside 100 scrapes a second and `status --watch`, in turn.

    .venv/bin/python -m benchmarks.scrape [ROUNDS]

The daemon has a core of its own if there are two. 1,000 connections are open, of which 50 send as fast as they can. The
ratios are of each round's second phase to its first. Last come the processor time of one scrape, and the longest time for
which an otherwise idle loop was held by one, as a client sees it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import socket
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.daemon import HOST, QUANTILES, Daemon, line, quantiles, running

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 7203
HTTP = 7204
OPEN = 1000
BUSY = 50
SECONDS = 2.5  # of each phase
EVERY = 0.01  # seconds between two scrapes
MESSAGE = bytes(64)
REQUEST = b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
SCRAPES = 500  # for the cost of one


def full_speed(socks: list[socket.socket]) -> list[float]:
    """Return seconds from message to echo: each connection sends its next message when it has its echo."""
    taken = []
    epoll = select.epoll()
    sent = {}
    by_fd = {sock.fileno(): sock for sock in socks}
    for fd, sock in by_fd.items():
        epoll.register(fd, select.EPOLLIN)
        sent[fd] = time.perf_counter()
        sock.send(MESSAGE)
    end = time.perf_counter() + SECONDS
    waiting = len(socks)
    while waiting:
        for fd, _ in epoll.poll():
            sock = by_fd[fd]
            sock.recv(len(MESSAGE))
            now = time.perf_counter()
            taken.append(now - sent[fd])
            if now < end:
                sent[fd] = now
                sock.send(MESSAGE)
            else:
                waiting -= 1
    epoll.close()
    return taken


def scrape(target: bytes = b"/metrics", path: str | None = None) -> None:
    """Ask once, at the TCP port or on the Unix socket at `path`. Each request has a connection of its own."""
    with socket.socket(socket.AF_UNIX if path else socket.AF_INET) as sock:
        sock.connect(path or (HOST, HTTP))
        sock.sendall(REQUEST % target)
        while sock.recv(1 << 16):
            pass


def scrape_forever() -> None:
    """Scrape at fixed intervals."""
    due = time.monotonic()
    while True:
        scrape()
        due += EVERY
        time.sleep(max(0.0, due - time.monotonic()))


@contextlib.contextmanager
def watched(daemon: Daemon) -> Iterator[None]:
    """Have somebody scrape and somebody watch."""
    module = [sys.executable, "-m", "benchmarks.scrape", "scrape"]
    path = str(daemon.directory / "admin.sock")
    screen = [sys.executable, "-m", "echod", "status", "--watch", "--admin.socket", path]
    with subprocess.Popen(module) as first, subprocess.Popen(screen, stdout=subprocess.DEVNULL) as second:
        time.sleep(1)  # until both have started, which takes their processor's time
        try:
            yield
        finally:
            first.kill()
            second.kill()


def cost(daemon: Daemon, target: bytes) -> str:
    """Return the processor time of one request, without other load."""
    path = None if target == b"/metrics" else str(daemon.directory / "admin.sock")
    before = daemon.processor_time()
    for _ in range(SCRAPES):
        scrape(target, path)
    return f"{(daemon.processor_time() - before) / SCRAPES * 1e3:.2f} ms"


def held(daemon: Daemon, echo: socket.socket, target: bytes) -> list[float]:
    """Return the seconds that echoes took while somebody asks again and again, and nobody else sends."""
    code = "import sys; from benchmarks.scrape import ask_forever; ask_forever(*sys.argv[1:])"
    taken = []
    with subprocess.Popen([sys.executable, "-c", code, daemon.directory / "admin.sock", target]) as asking:
        time.sleep(0.5)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            began = time.perf_counter()
            echo.send(MESSAGE)
            echo.recv(len(MESSAGE))
            taken.append(time.perf_counter() - began)
        asking.kill()
    return taken


def ask_forever(path: str, target: str) -> None:
    """Ask about 100 times a second."""
    while True:
        scrape(os.fsencode(target), path)
        time.sleep(EVERY)


def main(rounds: int) -> None:
    """Run the phases in turn and say what came of them."""
    config = (
        f"[listen]\nhost = '{HOST}'\nport = {PORT}\n[admin]\nhttp = '{HOST}:{HTTP}'\nsocket = 'DIRECTORY/admin.sock'\n"
    )
    taken: dict[str, list[float]] = {"alone": [], "watched": []}
    ratios: dict[str, list[float]] = {name: [] for name in [*QUANTILES, "rate"]}
    with running(config) as daemon:
        socks = [socket.create_connection((HOST, PORT)) for _ in range(OPEN)]
        for _ in range(rounds):
            alone = full_speed(socks[:BUSY])
            with watched(daemon):
                beside = full_speed(socks[:BUSY])
            taken["alone"] += alone
            taken["watched"] += beside
            before, after = quantiles(alone), quantiles(beside)
            for name in QUANTILES:
                ratios[name].append(after[name] / before[name])
            ratios["rate"].append(len(beside) / len(alone))
        for name, seconds in taken.items():
            print(line(name, seconds))
        for name, values in ratios.items():
            print(f"ratio    {name:6} median {statistics.median(values):.3f}, {min(values):.3f} to {max(values):.3f}")
        for target in (b"/metrics", b"/status", b"/connections"):
            print(f"{target.decode():13} takes {cost(daemon, target)} of the processor with {OPEN} connections")
            print(line("  echo", held(daemon, socks[0], target)))
        for sock in socks:
            sock.close()


if __name__ == "__main__":
    if sys.argv[1:] == ["scrape"]:
        scrape_forever()
    else:
        parser = argparse.ArgumentParser("python -m benchmarks.scrape", description=(__doc__ or "").partition("\n")[0])
        parser.add_argument("rounds", nargs="?", type=int, default=9)
        main(parser.parse_args().rounds)
