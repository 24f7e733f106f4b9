"""echod and others, measured against the least that an echo costs: what `make bench` runs.

    .venv/bin/python -m benchmarks [--quick] [--rounds N] [--only WORKLOAD,...] [--servers NAME,...] [--out DIRECTORY]

A full run of everything writes its results into docs/; any other into benchmarks/results/, as it is no evidence.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import build, cores, machine, plots, report, targets
from benchmarks.bench import FULL, QUICK, Bench, Extent
from benchmarks.progress import Progress
from benchmarks.servers import KINDS, ROOT
from benchmarks.workloads import WORKLOADS, Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

DOCS = ROOT / "docs"
RESULTS = Path(__file__).parent / "results"
BESIDE = {
    "The scrape beside load": "benchmarks.scrape",
    "The reload beside load": "benchmarks.reload",
    "One connection beside 15,000": "benchmarks.crowd",
    "UDP": "benchmarks.udp",
    "TLS": "benchmarks.tls",
}
LONGEST = 900
"""Seconds that one of these may take."""
Plan = list[tuple[Workload, tuple[str, ...]]]


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, servers and workloads: under two minutes")
    parser.add_argument("--rounds", type=int, help="how many, instead of 9 or 3")
    parser.add_argument("--seconds", type=float, help="of each run")
    parser.add_argument("--only", type=_names, help=f"of {','.join(work.name for work in WORKLOADS)},beside")
    parser.add_argument("--servers", type=_names, help=f"of {','.join(KINDS)}")
    parser.add_argument("--out", type=Path, help="where the results go")
    return parser.parse_args(words)


def _names(text: str) -> list[str]:
    known = {*KINDS, *(work.name for work in WORKLOADS), "beside"}
    names = text.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(sorted(known))}")
    return names


def plan(chosen: argparse.Namespace) -> Plan:
    """Return the workloads, each with its servers."""
    planned = []
    for work in WORKLOADS:
        if work.name not in chosen.only if chosen.only else chosen.quick and not work.quick:
            continue
        kinds = work.kinds[:4] if chosen.quick and not chosen.servers and work is not WORKLOADS[0] else work.kinds
        # Without the floor there is no ratio.
        kinds = tuple(name for name in kinds if not chosen.servers or name in ("floor", *chosen.servers))
        planned.append((work, kinds))
    return planned


def beside() -> dict[str, list[str]]:
    """Return what these benchmarks say."""
    said = {}
    for title, module in BESIDE.items():
        with subprocess.Popen([sys.executable, "-m", module], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            try:
                said[title] = process.communicate(timeout=LONGEST)[0].splitlines()
            finally:  # also after Ctrl-C: it ends its daemon itself
                process.send_signal(signal.SIGINT)
    return said


def main() -> None:
    """Measure and report."""
    chosen = arguments()
    places = cores.available()
    extent = _extent(chosen)
    planned = plan(chosen)
    whole = not (chosen.quick or chosen.rounds or chosen.seconds or chosen.only or chosen.servers)
    out = chosen.out or (DOCS / "benchmark" if whole else RESULTS)
    heads = machine.about(places)
    kind = "all" if whole else "QUICK or partial, no evidence:"
    heads.append(f"{kind} {extent.rounds} rounds of {extent.seconds:g} s, each server started anew for each")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped
    began = time.monotonic()
    progress = Progress(1)
    bench = Bench(extent, places, progress)
    with_beside = "beside" in chosen.only if chosen.only else whole
    progress.steps = sum(bench.steps(*each) for each in planned) + with_beside
    with cores.on(places.load):
        outcomes = [bench.run(*each) for each in planned]
    if with_beside:
        progress.step("scrape, reload and crowd beside load, UDP, and TLS, some minutes")
    besides = beside() if with_beside else {}
    progress.end()
    heads.append(f"took {time.monotonic() - began:.0f} s")
    # To a floor in Python, ratios say nothing of the targets.
    judged = targets.judge({outcome.workload.name: outcome for outcome in outcomes}) if build.built("floor.c") else []
    print(report.text(heads, judged, outcomes, besides))
    out.mkdir(parents=True, exist_ok=True)
    document = {"about": heads, "whole": whole, "workloads": report.as_json(outcomes), "beside": besides}
    (out / "results.json").write_text(json.dumps(document) + "\n")
    for name, svg in plots.drawings(outcomes).items():
        (out / name).write_text(svg)
    results = report.markdown(heads, judged, outcomes, besides)
    if whole:
        file = DOCS / "performance.md"
        file.write_text(report.replaced(file.read_text(), results))
    else:
        (out / "results.md").write_text(results)
    print(f"\nWritten to {out}: {', '.join(sorted(path.name for path in out.iterdir() if path.is_file()))}")


def _extent(chosen: argparse.Namespace) -> Extent:
    extent = QUICK if chosen.quick else FULL
    if chosen.rounds:
        extent = dataclasses.replace(extent, rounds=chosen.rounds)
    if chosen.seconds:
        extent = dataclasses.replace(extent, seconds=chosen.seconds, idle=min(extent.idle, 10 * chosen.seconds))
    return extent


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped, and all servers with it")
