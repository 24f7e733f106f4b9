"""What a reload costs open connections: round trips of a quiet daemon and of one that reloads 40 times a second, in turn.

    .venv/bin/python benchmarks/reload.py [ROUNDS]

The daemon has a core of its own if there are two. Half of the files are bad; the good ones move the port and resize the
pool. The last line is what the daemon itself says of the time a reload takes on its loop.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HOST = "127.0.0.1"
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


def line(name: str, seconds: list[float]) -> str:
    """Return the quantiles in milliseconds."""
    ordered = sorted(seconds)
    quantiles = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    shown = (
        f"{q} {ordered[min(int(len(ordered) * part), len(ordered) - 1)] * 1e3:7.3f}" for q, part in quantiles.items()
    )
    return f"{name:8} {'  '.join(shown)}  ms of {len(ordered)}"


def main(rounds: int) -> None:
    """Run the phases in turn and say what came of them."""
    pinned = ["taskset", "-c", "0"] if len(os.sched_getaffinity(0)) > 1 else []
    with tempfile.TemporaryDirectory() as directory:
        file, log = Path(directory, "echod.toml"), Path(directory, "log")
        file.write_text(config(2))
        with log.open("w") as output:
            daemon = subprocess.Popen([*pinned, sys.executable, "-m", "echod", "run", "-c", file], stdout=output)
        while '"daemon.started"' not in log.read_text():
            if daemon.poll() is not None:
                sys.exit("the daemon did not start")
            time.sleep(0.05)
        if pinned:
            os.sched_setaffinity(0, os.sched_getaffinity(0) - {0})
        socks = [socket.create_connection((HOST, PORTS[1])) for _ in range(CLIENTS)]
        taken: dict[str, list[float]] = {"quiet": [], "reloads": []}
        for _ in range(rounds):
            taken["quiet"] += round_trips(socks)
            reloads = subprocess.Popen([sys.executable, __file__, str(file), str(daemon.pid)])
            taken["reloads"] += round_trips(socks)
            reloads.kill()
            reloads.wait()
        for sock in socks:
            sock.close()
        daemon.terminate()
        daemon.wait()
        events = [json.loads(text) for text in log.read_text().splitlines()]
    for name, seconds in taken.items():
        print(line(name, seconds))
    print(line("on loop", [event["seconds"] for event in events if event["event"] == "config.reloaded"]))
    print(f"{sum(event['event'] == 'config.rejected' for event in events)} were refused")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        reload_forever(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
