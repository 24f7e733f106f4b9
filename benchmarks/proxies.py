"""What a PROXY header costs a connection: `.venv/bin/python -m benchmarks.proxies`.

Connect, 64 B, close, with 50 connections at a time, as in the workload `churn`: once as it is, and once with a header of
version 2 in front, in rounds that take turns.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks import build, cores, measure
from benchmarks.load import Load
from benchmarks.servers import KINDS, Command, Kind, Order, Server
from benchmarks.summary import spread

CONNECTIONS, SIZE = 50, 64
PROXY = "127.0.0.77"
"""The address of the load, see load.c."""
ROUNDS, CYCLES = 11, 10_000

PLAIN = KINDS["echod"]


def _behind_proxies(order: Order) -> Command:
    """Return the command of the daemon as shipped, and with the load as a load balancer."""
    return [*(PLAIN.command(order) or ()), "--access.proxies", PROXY]


PROXIED = Kind("echod-proxied", "this daemon behind a load balancer", _behind_proxies, "")


def cost(kind: Kind, places: cores.Cores, cycles: int) -> float:
    """Return the processor time of a connection in microseconds."""
    words: tuple[str | float, ...] = ("churn", cycles, *(["proxy"] if kind is PROXIED else []))
    with (
        Server(kind, places, connections=CONNECTIONS, processes=1) as server,
        Load(places, server.port, CONNECTIONS, SIZE, *words) as load,
    ):
        before = measure.settled(server.sessions)
        messages = load.go()["messages"]
        return (measure.settled(server.sessions).processor - before.processor) / messages / 1e3


def main() -> None:
    """Print the cost of both, and their ratio by round."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proxies", description="What a PROXY header costs.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--cycles", type=int, default=CYCLES, help="connections in a round")
    asked = parser.parse_args()
    rounds, cycles = asked.rounds, asked.cycles
    if not build.built("load.c"):
        sys.exit("needs a C compiler")
    places = cores.available()
    pairs = []
    with cores.on(places.load):
        for number in range(rounds):
            first, second = (PLAIN, PROXIED) if number % 2 else (PROXIED, PLAIN)
            found = {kind.name: cost(kind, places, cycles) for kind in (first, second)}
            pairs.append((found[PLAIN.name], found[PROXIED.name]))
    ratio = spread([proxied / plain for plain, proxied in pairs])
    for name, values in zip(("plain", "PROXY v2"), zip(*pairs, strict=True), strict=True):
        print(f"{name:10} {spread(list(values))[0]:.1f} µs")
    print(f"ratio      {ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f}), {rounds} rounds of {cycles} connections")


if __name__ == "__main__":
    main()
