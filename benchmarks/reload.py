"""What a reload costs open connections: round trips of a quiet daemon and of one that reloads 40 times a second, in turn.

    .venv/bin/python -m benchmarks.reload [ROUNDS]

The daemon has a core of its own if there are two. Half of the files are bad; the good ones move the port and resize the
pool. The last line is what the daemon itself says of the time a reload takes on its loop.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.daemon import HOST, line, running

PORTS = (7201, 7202)
SIZES = (10, 2000, 300)
CLIENTS = 200
SECONDS = 2.5  # of each phase
MESSAGE = bytes(64)


def config(number: int) -> str:
    """Return a good file, or for odd numbers a bad one."""
    size = 0 if number % 2 else SIZES[number // 2 % len(SIZES)]
    return f"[listen]\nhost = '{HOST}'\nport = {PORTS[number // 2 % 2]}\n[pool]\nsize = {size}\n"


def reload_forever(file: Path, pid: int) -> None:
    """Write the file and send HUP, again and again."""
    for number in itertools.count():
        file.write_text(config(number))
        os.kill(pid, signal.SIGHUP)
        time.sleep(0.025)


def round_trips(socks: list[socket.socket]) -> list[float]:
    """Return seconds from message to echo, one connection after another in random order."""
    taken = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        sock = random.choice(socks)
        began = time.perf_counter()
        sock.sendall(MESSAGE)
        sock.recv(len(MESSAGE))
        taken.append(time.perf_counter() - began)
        time.sleep(0.0003)
    return taken


def main(rounds: int) -> None:
    """Run the phases in turn and say what came of them."""
    taken: dict[str, list[float]] = {"quiet": [], "reloads": []}
    with running(config(2)) as daemon:
        socks = [socket.create_connection((HOST, PORTS[1])) for _ in range(CLIENTS)]
        for _ in range(rounds):
            taken["quiet"] += round_trips(socks)
            module = [sys.executable, "-m", "benchmarks.reload", str(daemon.file), str(daemon.process.pid)]
            with subprocess.Popen(module) as reloads:
                taken["reloads"] += round_trips(socks)
                reloads.kill()
        for sock in socks:
            sock.close()
        reloaded, rejected = daemon.events("config.reloaded"), daemon.events("config.rejected")
    for name, seconds in taken.items():
        print(line(name, seconds))
    print(line("on loop", [event["seconds"] for event in reloaded]))
    print(f"{len(rejected)} were refused")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        reload_forever(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        parser = argparse.ArgumentParser("python -m benchmarks.reload", description=(__doc__ or "").partition("\n")[0])
        parser.add_argument("rounds", nargs="?", type=int, default=9)
        main(parser.parse_args().rounds)
