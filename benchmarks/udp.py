"""What a datagram costs: echod beside others, each in turn, as ratio to a floor in C with recvmmsg and sendmmsg.

    .venv/bin/python -m benchmarks.udp [ROUNDS]
    .venv/bin/python -m benchmarks.udp flood [PAIRS]

The second form measures what a flood of datagrams from forged sources does to TCP; it needs root. The clients of the first are in a closed loop, one datagram of 64 B each under way. The server has a core of its own if there are two.
echod's rates are off. Each other server has no guards: it answers whoever asks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from benchmarks import build, cores, measure
from benchmarks.servers import HOST, ROOT
from benchmarks.summary import absolute, relative, spread

if TYPE_CHECKING:
    from benchmarks.summary import Rounds

PORT = 7206
SIZE = 64
SECONDS = 1.0
"""Of each run."""
CLIENTS = (1, 50)
PATIENCE = 10.0
"""Seconds until a server answers."""
ROUNDS = 5

FLOOD, ECHOES, CONNECTIONS = 60_000, 2_000, 16
"""Of the flood: datagrams a second, echoes over TCP a second beside it, and their connections."""
PAIRS, WINDOW = 40, 0.8
"""Windows with the flood, each beside one without it, and the seconds of each."""
DISTURBED = 0.01
"""Of a window: if the server waited longer than that for its core, something else ran there, and the pair does not count."""

_ECHOD = ["--listen.host", HOST, "--listen.port", "0", "--udp.port", str(PORT), "--udp.rate", "off"]


class Echo(asyncio.DatagramProtocol):
    """The least that echoes."""

    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override] # of UDP only
        """Keep the transport."""
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:  # noqa: ANN401 - whatever it is, it goes back
        """Send back."""
        self.transport.sendto(data, addr)


async def serve() -> None:
    """Serve with uvloop's datagram transport."""
    await asyncio.get_running_loop().create_datagram_endpoint(Echo, (HOST, PORT))
    await asyncio.Event().wait()


def commands(directory: Path) -> dict[str, list[str | Path]]:
    """Return how to start each server that can be had here, the floor first."""
    floor, go = build.built("udp_floor.c"), build.built("udp_echo.go")
    xinetd, socat = shutil.which("xinetd", path=f"{os.environ['PATH']}:/usr/sbin"), shutil.which("socat")
    found: dict[str, list[str | Path]] = {}
    if floor:
        found["floor"] = [floor, str(PORT)]
    found["echod"] = [sys.executable, "-m", "echod", "run", "-c", os.devnull, *_ECHOD, "--udp.total_rate", "off"]
    found["uvloop"] = [sys.executable, "-m", "benchmarks.udp", "serve"]
    if go:
        found["go"] = [go, str(PORT)]
    if xinetd:
        file = directory / "xinetd.conf"
        user = pwd.getpwuid(os.getuid()).pw_name
        file.write_text(
            f"defaults\n{{\n instances = UNLIMITED\n per_source = UNLIMITED\n cps = 100000000 1\n}}\n"
            f"service echo\n{{\n type = INTERNAL UNLISTED\n id = echo-dgram\n socket_type = dgram\n protocol = udp\n"
            f" wait = yes\n user = {user}\n port = {PORT}\n bind = {HOST}\n disable = no\n}}\n"
        )
        found["xinetd"] = [xinetd, "-dontfork", "-f", file, "-pidfile", directory / "xinetd.pid"]
    if socat:
        found["socat"] = [socat, f"UDP-RECVFROM:{PORT},bind={HOST},fork", "PIPE"]
    return found


def run(command: list[str | Path], places: cores.Cores, clients: int) -> dict[str, float]:
    """Return the processor time and the number of datagrams, of one server under this load."""
    with (
        cores.on(places.server[0]),
        subprocess.Popen(
            command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as server,
    ):
        try:
            _await_echo()
            before = measure.settled([server.pid])
            load = build.built("udp_load.c")
            if load is None:
                sys.exit("needs a C compiler (gcc)")
            words = [str(word) for word in (PORT, clients, SIZE, SECONDS)]
            with cores.on(places.load):
                done = subprocess.run([load, *words], check=True, stdout=subprocess.PIPE)
            used = measure.settled([server.pid]).processor - before.processor
        finally:
            os.killpg(server.pid, signal.SIGKILL)
    counts = json.loads(done.stdout)
    messages = max(1, counts["messages"])
    return {"cpu": used / 1000 / messages, "rate": messages / counts["seconds"], "lost": counts["lost"]}


def _await_echo() -> None:
    end = time.monotonic() + PATIENCE
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.05)
        while time.monotonic() < end:
            try:
                sock.sendto(b"?", (HOST, PORT))
                if sock.recv(9) == b"?":
                    return
            except (TimeoutError, ConnectionRefusedError):
                time.sleep(0.01)
    raise TimeoutError(f"nobody answers within {PATIENCE:.0f} s")


def compare(places: cores.Cores, rounds: int, clients: int) -> None:
    """Print a line for each server: the processor time of a datagram, its ratio to the floor's, and how many a second."""
    taken: dict[str, Rounds] = {}
    with tempfile.TemporaryDirectory() as directory:
        found = commands(Path(directory))
        for number in range(rounds):
            for name, command in found.items():
                taken.setdefault(name, {})[number] = run(command, places, clients)
    print(f"{SIZE} B, {clients} under way: CPU of a datagram, ratio to the floor, datagrams a second, lost")
    for name, samples in taken.items():
        here = absolute(samples)
        ratio = relative(samples, taken["floor"]).get("cpu") if "floor" in taken else None
        against = f"x{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})" if ratio else ""
        print(
            f"  {name:<8} {here['cpu'].median:7.2f} us {against:<20} {here['rate'].median:9,.0f}/s {here['lost'].median:6.0f}"
        )


def flood(places: cores.Cores, pairs: int) -> None:
    """Print what a flood does to echoes over TCP: the ratio of each window with it to the one beside it without it."""
    load = build.built("udp_flood.c")
    if load is None:
        sys.exit("needs a C compiler (gcc)")
    flags = ["--listen.host", HOST, "--listen.port", str(PORT), "--udp.port", str(PORT)]  # with the rates as shipped
    taken: list[tuple[dict[str, float], dict[str, float]]] = []
    with (
        cores.on(places.server[0]),
        subprocess.Popen(
            [sys.executable, "-m", "echod", "run", "-c", os.devnull, *flags],
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as server,
    ):
        try:
            # Ahead of whatever else runs on its core, as if nothing did.
            os.sched_setscheduler(server.pid, os.SCHED_FIFO, os.sched_param(1))
            _await_echo()
            words = [str(each) for each in (PORT, PORT, CONNECTIONS, ECHOES, FLOOD, WINDOW)]
            with (
                cores.on(places.load),
                subprocess.Popen([load, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client,
            ):
                for number in range(pairs):
                    first = _window(server, client, with_flood=number % 2 == 1)  # which one comes first alternates
                    second = _window(server, client, with_flood=number % 2 == 0)
                    taken.append((second, first) if number % 2 else (first, second))
        finally:
            os.killpg(server.pid, signal.SIGKILL)
    _print_flood(taken)


def _window(server: subprocess.Popen[bytes], client: subprocess.Popen[str], *, with_flood: bool) -> dict[str, float]:
    """Return what the client has measured in a window; and the parts of it for which the server ran, and waited for its core."""
    before = measure.usage([server.pid])
    assert client.stdin and client.stdout  # noqa: S101, PT018 - both are pipes
    client.stdin.write(f"{with_flood:d}\n")
    client.stdin.flush()
    line = client.stdout.readline()
    if not line:
        sys.exit("the client has ended, see above")
    after = measure.usage([server.pid])
    parts = (after.processor - before.processor, after.waited - before.waited)
    return {
        **json.loads(line),
        **{name: part / 1e9 / WINDOW for name, part in zip(("ran", "waited"), parts, strict=True)},
    }


def _print_flood(pairs: list[tuple[dict[str, float], dict[str, float]]]) -> None:
    """Print the ratios of all pairs in which nothing else ran on the server's core."""
    calm = [pair for pair in pairs if max(each["waited"] for each in pair) < DISTURBED]
    print(
        f"{len(calm)} of {len(pairs)} pairs of windows of {WINDOW} s count; in the others, the server waited for its core"
    )
    if not calm:
        sys.exit("none counts: too much else runs on this machine")
    rate = spread([flooded["datagrams"] / WINDOW for _, flooded in calm])
    print(f"{ECHOES:,} echoes/s over TCP beside {rate.median:,.0f} forged datagrams/s:")
    for metric in ("p50", "p99"):
        before, after = (spread([pair[side][metric] for pair in calm]) for side in (0, 1))
        ratio = spread([flooded[metric] / quiet[metric] for quiet, flooded in calm])
        print(
            f"  {metric} {before.median:6.1f} us without, {after.median:6.1f} us with: x{ratio.median:.2f}"
            f" ({ratio.low:.2f}-{ratio.high:.2f})"
        )
    ran = spread([flooded["ran"] - quiet["ran"] for quiet, flooded in calm])
    print(f"  the flood takes {ran.median:.0%} of a core")


def main() -> None:
    """Measure with few clients and with many."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.udp", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rounds", metavar="ROUNDS", nargs="?", default=str(ROUNDS))
    parser.add_argument("pairs", metavar="PAIRS", nargs="?", type=int, default=PAIRS, help="of `flood`")
    asked = parser.parse_args()
    rounds = asked.rounds
    if rounds == "serve":  # by `commands`
        uvloop.run(serve())
    places = cores.available()
    if rounds == "flood":
        flood(places, asked.pairs)
        return
    for clients in CLIENTS:
        compare(places, int(rounds), clients)


if __name__ == "__main__":
    main()
