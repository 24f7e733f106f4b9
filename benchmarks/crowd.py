"""What other connections cost one that is active: its echoes alone, beside 15,000 idle ones, and beside 15,000 busy ones.

    .venv/bin/python -m benchmarks.crowd [ROUNDS]

The daemon has a core of its own if there are two. The active connection sends a message each millisecond. Of the busy
ones, each sends one a second. The ratios are of each round's phase to its first one, in which nobody else is there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import socket
import statistics
import threading
import time
from typing import TYPE_CHECKING

from benchmarks import cores
from benchmarks.daemon import HOST, line, quantiles, running
from benchmarks.load import Load

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 7205
CROWD = 15_000
SECONDS = 8.0  # of each phase, with as many checks of the timeouts
EVERY = 0.001
MESSAGE = bytes(64)


def active(sock: socket.socket, seconds: float = SECONDS) -> list[float]:
    """Send a message each millisecond for `seconds`. Return the time until each echo came, in seconds."""
    taken = []
    due = time.perf_counter()
    end = due + seconds
    with cores.first():
        while due < end:
            began = time.perf_counter()
            sock.send(MESSAGE)
            sock.recv(len(MESSAGE))
            taken.append(time.perf_counter() - began)
            due += EVERY
            time.sleep(max(0.0, due - time.perf_counter()))
    return taken


@contextlib.contextmanager
def crowd(*, busy: bool) -> Iterator[None]:
    """Have 15,000 others connected meanwhile."""
    core = max(os.sched_getaffinity(0))
    place = cores.Cores([core], core)  # so that the load does not spin, which would take our own core
    with Load(place, PORT, CROWD, len(MESSAGE), "rate", CROWD, SECONDS + 1) as load:
        time.sleep(1)
        sending = threading.Thread(target=load.go, daemon=True)
        if busy:
            sending.start()
            time.sleep(0.5)
        try:
            yield
        finally:
            if busy:
                sending.join()


def main(rounds: int) -> None:
    """Run the phases in turn and say what came of them."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    config = f"[listen]\nhost = '{HOST}'\nport = {PORT}\n[pool]\nsize = {CROWD + 100}\n[admin]\nsocket = 'off'\n"
    taken: dict[str, list[float]] = {"alone": [], "idle": [], "busy": []}
    ratios: dict[str, list[float]] = {"idle": [], "busy": []}
    with running(config) as daemon:
        for _ in range(rounds):
            with socket.create_connection((HOST, PORT)) as sock:
                alone = active(sock)
                taken["alone"] += alone
                for name, values in ratios.items():
                    with crowd(busy=name == "busy"):
                        before = daemon.processor_time()
                        beside = active(sock)
                        used = (daemon.processor_time() - before) / SECONDS
                    taken[name] += beside
                    values.append(quantiles(beside)["p99.9"] / quantiles(alone)["p99.9"])
                    print(f"beside {name} ones the daemon takes {used:.2%} of a core")
    for name, seconds in taken.items():
        print(line(name, seconds))
    for name, values in ratios.items():
        print(
            f"p99.9 beside {CROWD:,} {name} ones: ratio {statistics.median(values):.2f}, {min(values):.2f} to {max(values):.2f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.crowd", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rounds", nargs="?", type=int, default=3)
    main(parser.parse_args().rounds)
