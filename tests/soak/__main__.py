"""The soak: the real daemon under every kind of client, for minutes or hours, and what is left of it afterwards.

    python -m tests.soak [--minutes 10 | --connections 1000000]

What it has found goes to standard output, and with all numbers and a drawing into build/soak. The exit code is 1 if a
promise was broken. Ctrl-C ends it early, with a report of what there is.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import orjson

from tests.soak import report
from tests.soak.soak import soak

RESULTS = Path(__file__).parent.parent.parent / "build" / "soak"


def main() -> int:
    """Run it, and say what came of it."""
    parser = argparse.ArgumentParser(prog="make soak", description="Load a daemon for long, and look what is left.")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=10.0)
    length.add_argument("--connections", type=int, help="go on until so many were served, however long that takes")
    options = parser.parse_args()
    told: list[int] = []

    def tell(number: int, _: object) -> None:
        told.append(number)
        signal.signal(number, signal.default_int_handler)  # who says it twice means it

    def over(seconds: float, served: int) -> bool:
        enough = served >= options.connections if options.connections else seconds >= 60 * options.minutes
        return enough or bool(told)

    signal.signal(signal.SIGINT, tell)
    run = report.Run()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        soak(run, Path(directory), over)
    seconds, served = (run.samples[-1].at, run.samples[-1].served) if run.samples else (0.0, 0)
    versions = f"Linux {platform.release()}, Python {platform.python_version()}, uvloop {version('uvloop')}"
    run.about = [
        f"echod under load for {seconds / 60:.1f} minutes: {served:,} connections",
        f"{time.strftime('%Y-%m-%d')}, {versions}, {os.cpu_count()} cores, load average {before:.1f} before",
    ]
    text = report.text(run)
    print(text)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "soak.txt").write_text(f"{text}\n")
    (RESULTS / "soak.json").write_bytes(orjson.dumps(report.as_json(run)))
    if run.samples:
        (RESULTS / "soak.svg").write_text(report.drawing(run))
    return 0 if all(check.kept for check in run.checks) else 1


if __name__ == "__main__":
    sys.exit(main())
