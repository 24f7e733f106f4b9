"""What the benchmarks of the running daemon share: the daemon, on a core of its own if there are two, and quantiles."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


class Daemon:
    """A running daemon, with its file, its log, and the directory of both, which `config` may name as DIRECTORY."""

    def __init__(self, directory: Path, config: str) -> None:
        self.directory = directory
        self.file = directory / "echod.toml"
        self.file.write_text(config.replace("DIRECTORY", str(directory)))
        self._log = directory / "log"
        pinned = ["taskset", "-c", "0"] if len(os.sched_getaffinity(0)) > 1 else []
        with self._log.open("w") as output:
            self.process = subprocess.Popen(
                [*pinned, sys.executable, "-m", "echod", "run", "-c", self.file], stdout=output
            )

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of one event so far."""
        lines = [json.loads(text) for text in self._log.read_text().splitlines() if text.endswith("}")]
        return [line for line in lines if line["event"] == name]

    def processor_time(self) -> float:
        """Return the seconds of user and system time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(config: str) -> Iterator[Daemon]:
    """Have a daemon run on this configuration, and keep to the other cores meanwhile."""
    with tempfile.TemporaryDirectory() as directory:
        daemon = Daemon(Path(directory), config)
        try:
            while not daemon.events("daemon.started"):
                if daemon.process.poll() is not None:
                    sys.exit("the daemon did not start")
                time.sleep(0.05)
            cores = os.sched_getaffinity(0)
            if len(cores) > 1:
                os.sched_setaffinity(0, cores - {0})
            yield daemon
        finally:
            daemon.process.terminate()
            daemon.process.wait()


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return the quantiles in milliseconds."""
    ordered = sorted(seconds)
    return {name: ordered[min(int(len(ordered) * part), len(ordered) - 1)] * 1e3 for name, part in QUANTILES.items()}


def line(name: str, seconds: list[float]) -> str:
    """Return the quantiles as a line of a report."""
    shown = (f"{quantile} {value:7.3f}" for quantile, value in quantiles(seconds).items())
    return f"{name:8} {'  '.join(shown)}  ms of {len(seconds)}"
