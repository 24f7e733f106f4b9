"""What a datagram costs: echod beside others, each in turn, as ratio to a floor in C with recvmmsg and sendmmsg.

    .venv/bin/python -m benchmarks.udp [ROUNDS]

The clients are in a closed loop, one datagram of 64 B each under way. The server has a core of its own if there are two.
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
from benchmarks.summary import absolute, relative

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


def main() -> None:
    """Measure with few clients and with many."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.udp", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rounds", metavar="ROUNDS", nargs="?", default=str(ROUNDS))
    rounds = parser.parse_args().rounds
    if rounds == "serve":  # by `commands`
        uvloop.run(serve())
    places = cores.available()
    for clients in CLIENTS:
        compare(places, int(rounds), clients)


if __name__ == "__main__":
    main()
