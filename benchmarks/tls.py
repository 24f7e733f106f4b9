"""What TLS costs: echod beside others, each in turn, as ratio to uvloop's own TLS; and what a flood of handshakes costs others.

    .venv/bin/python -m benchmarks.tls [ROUNDS]

It prints the tables of docs/performance.md. All servers get the same clients, cipher and P-256 certificate, and give no session
tickets. HAProxy and stunnel are in front of echod's plain port, and their cost is that of both processes. The server has a
core of its own if there are two.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import shutil
import socket
import ssl
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import trustme

from benchmarks import build, cores, measure, report
from benchmarks.crowd import active
from benchmarks.load import Load
from benchmarks.servers import HOST, KINDS, Command, Kind, Order, Server, free_port, missing
from benchmarks.summary import absolute, quantile, relative, spread

if TYPE_CHECKING:
    from benchmarks.summary import Rounds, Sample

SECONDS = 0.5
"""Of each run."""
CONNECTIONS = 50
CYCLES = 5_000
"""Connections of a run without TLS that ends each."""
HELD = 1000
"""Connections for which memory is measured."""
FLOOD = 2.0
"""Seconds of each phase with a flood."""
ROUNDS = 5

PLAIN = KINDS["echod"]
WITHOUT = "echod without TLS"
REFERENCE = "uvloop"
WORKLOADS = {"64 B": (64, "loop"), "16 KiB": (16 << 10, "loop"), "connect, 64 B, close": (64, "churn")}
MEMORY = {"memory after 64 B": 64, "after 16 KiB": 16 << 10}
FLOODS = {"handshakes": "churn", "half-handshakes": "half"}


def certificate(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """Return a file with a certificate and its key, and the context of a client that trusts it."""
    authority = trustme.CA()
    file = directory / "server.pem"
    authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(str(file))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return file, context


def servers(file: Path) -> dict[str, Kind]:
    """Return the servers, the first without TLS."""

    def uvloop(order: Order) -> Command:
        return [sys.executable, "-m", "benchmarks.peers", "tls", str(order.port), file]

    def go(order: Order) -> Command | None:
        program = build.built("tls_echo.go")
        return [program, str(order.port), file] if program else None

    def haproxy(order: Order) -> Command | None:
        port = free_port()
        config = (
            f"global\n nbthread 1\n maxconn 4000\n"
            f"defaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n"
            f"listen echo\n bind {HOST}:{order.port} ssl crt {file} no-tls-tickets\n server echod {HOST}:{port}\n"
        )
        return _in_front("haproxy", order, port, config, "-f")

    def stunnel(order: Order) -> Command | None:
        port = free_port()
        config = (
            f"foreground = quiet\nsyslog = no\npid =\noptions = NO_TICKET\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n"
            f"[echo]\naccept = {HOST}:{order.port}\nconnect = {HOST}:{port}\ncert = {file}\n"
        )
        return _in_front("stunnel", order, port, config)

    return {
        kind.name: kind
        for kind in (
            Kind(WITHOUT, "this daemon as shipped", PLAIN.command, ""),
            Kind("echod", "the same, on its port for TLS", lambda order: _with_tls(order, free_port(), file), ""),
            Kind(REFERENCE, "uvloop's own TLS with the least Protocol", uvloop, ""),
            Kind("Go", "crypto/tls, a goroutine for each connection", go, "go"),
            Kind("HAProxy, echod", "one thread, in front of the plain port", haproxy, "haproxy"),
            Kind("stunnel, echod", "a thread for each connection, in front of the plain port", stunnel, "stunnel"),
        )
    }


def _plain(order: Order, port: int) -> Command:
    return PLAIN.command(dataclasses.replace(order, port=port)) or []


def _with_tls(order: Order, plain: int, file: Path) -> Command:
    return [*_plain(order, plain), "--tls.port", str(order.port), "--tls.certificate", file]


def _in_front(name: str, order: Order, behind: int, config: str, *flags: str) -> Command | None:
    """Return how to start this and echod behind it, in one session."""
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    file = order.directory / f"{name}.conf"
    file.write_text(config)
    echod = shlex.join(map(str, _plain(order, behind)))
    return ["sh", "-c", f"{echod} & exec {shlex.join([program, *flags, str(file)])}"] if program else None


class Bench:
    """All runs: on these cores, with this certificate."""

    def __init__(self, places: cores.Cores, directory: Path) -> None:
        self._places = places
        self._file, self._context = certificate(directory)
        kinds = servers(self._file)
        self.skipped = {name: reason for name, kind in kinds.items() if (reason := missing(kind))}
        self.kinds = {name: kind for name, kind in kinds.items() if name not in self.skipped}

    def _server(self, name: str, connections: int) -> Server:
        context = None if name == WITHOUT else self._context
        return Server(self.kinds[name], self._places, connections=connections, context=context)

    def _load(self, name: str, port: int, connections: int, size: int, mode: str) -> Load:
        if name == WITHOUT:
            return Load(self._places, port, connections, size, mode, CYCLES if mode == "churn" else SECONDS)
        return Load(self._places, port, connections, size, mode, SECONDS, source="tls_load.c")

    def cost(self, name: str, size: int, mode: str) -> float:
        """Return the processor time of a message, or of a connection, in microseconds."""
        with (
            self._server(name, CONNECTIONS) as server,
            self._load(name, server.port, CONNECTIONS, size, mode) as load,
        ):
            before = measure.settled(server.sessions)
            messages = load.go()["messages"]
            return (measure.settled(server.sessions).processor - before.processor) / messages / 1e3

    def memory(self, name: str, size: int) -> float:
        """Return the KiB that a connection holds which has echoed messages of this size."""
        with self._server(name, HELD) as server:
            before = measure.settled(server.sessions).resident
            with self._load(name, server.port, HELD, size, "loop"):
                return (measure.settled(server.sessions).resident - before) / HELD / 1024

    def sample(self, name: str) -> Sample:
        """Measure one server once."""
        found = {title: self.cost(name, *workload) for title, workload in WORKLOADS.items()}
        return found | {title: self.memory(name, size) for title, size in MEMORY.items()}

    def flooded(self) -> dict[str, Sample]:
        """Return the quantiles of plain echoes, alone and beside each flood."""
        plain = free_port()
        kind = Kind("echod", "", lambda order: _with_tls(order, plain, self._file), "")
        place = cores.Cores([self._places.load], self._places.load)  # so that the flood doesn't spin beside the echoes
        found: dict[str, Sample] = {}
        with (
            Server(kind, self._places, context=self._context) as server,
            socket.create_connection((HOST, plain)) as sock,
            ThreadPoolExecutor() as threads,
        ):
            found["alone"] = _quantiles(sorted(active(sock, FLOOD)))
            for title, mode in FLOODS.items():
                with Load(place, server.port, CONNECTIONS, 64, mode, FLOOD + 1, source="tls_load.c") as load:
                    load.give_way()
                    flood = threads.submit(load.go)
                    time.sleep(0.5)
                    beside = _quantiles(sorted(active(sock, FLOOD)))
                    done = flood.result()
                found[title] = beside | {"rate": done["messages"] / done["seconds"]}
        return found


def _quantiles(taken: list[float]) -> Sample:
    return {name: 1e6 * quantile(taken, part) for name, part in (("p50", 0.5), ("p99", 0.99))}


def costs(samples: dict[str, Rounds]) -> report.Table:
    """Return a row for each server."""
    rows = [["", *(f"{title}: us" for title in WORKLOADS), *(f"{title}: KiB" for title in MEMORY)]]
    for name, rounds in samples.items():
        values, ratios = absolute(rounds), relative(rounds, samples[REFERENCE])
        row = [name]
        for title in WORKLOADS:
            ratio = ratios[title]
            among = "" if name == REFERENCE else f" x{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"
            row.append(f"{values[title].median:.1f}{among}")
        rows.append([*row, *(f"{values[title].median:.1f}" for title in MEMORY)])
    return rows


def surplus(samples: dict[str, Rounds]) -> list[str]:
    """Return what TLS adds to echod: to an echo, to a byte, and to a connection."""
    plain, tls = samples[WITHOUT], samples["echod"]
    more = {title: spread([tls[number][title] - plain[number][title] for number in tls]).median for title in WORKLOADS}
    small, large, connection = more.values()
    return [
        f"TLS adds {small:.1f} us to an echo of 64 B, and {connection:.0f} us to a connection.",
        f"A byte costs {1e3 * (large - small) / (16 << 10):.2f} ns more, decrypted and encrypted.",
    ]


def beside(samples: dict[str, Rounds]) -> report.Table:
    """Return a row for each flood."""
    rows = [["", "p50 us", "p99 us", "a second"]]
    for name, rounds in samples.items():
        values, ratios = absolute(rounds), relative(rounds, samples["alone"])
        among = [f" x{ratios[part].median:.1f}" if name != "alone" else "" for part in ("p50", "p99")]
        cells = [f"{values[part].median:.0f}{each}" for part, each in zip(("p50", "p99"), among, strict=True)]
        rows.append([name, *cells, f"{values['rate'].median:,.0f}" if "rate" in values else ""])
    return rows


def main() -> None:
    """Measure in rounds, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tls", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rounds", metavar="ROUNDS", nargs="?", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    if not (build.built("load.c") and build.built("tls_load.c")):
        sys.exit("needs a C compiler and OpenSSL's headers (gcc, libssl-dev)")
    places = cores.available()
    taken: dict[str, Rounds] = {}
    floods: dict[str, Rounds] = {}
    with tempfile.TemporaryDirectory() as directory, cores.on(places.load):
        bench = Bench(places, Path(directory))
        names = list(bench.kinds)
        taken = {name: {} for name in names}
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                taken[name][number] = bench.sample(name)
            for title, sample in bench.flooded().items():
                floods.setdefault(title, {})[number] = sample
    for lines in (report.piped(costs(taken)), surplus(taken), report.piped(beside(floods))):
        print(*lines, "", sep="\n")
    for name, reason in bench.skipped.items():
        print(f"{name}: skipped, {reason}")


if __name__ == "__main__":
    main()
