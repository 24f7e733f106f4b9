"""The benchmark as it is run by hand, as short as it can be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.harness import DEADLINE, environment

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_short_run_measures_echod_against_the_floor(tmp_path: Path) -> None:
    """It reports, leaves samples and plots, and its servers are gone; docs/ stays as it is."""
    before = (ROOT / "docs" / "performance.md").read_bytes()
    short = ["--rounds", "1", "--seconds", "0.1", "--only", "64B-50,churn,idle", "--servers", "echod"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *short, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=4 * DEADLINE,
        check=False,
        cwd=ROOT,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert "64 B x 50 connections" in done.stdout
    document = json.loads((tmp_path / "results.json").read_text())
    for workload in document["workloads"]:
        assert workload["failed"] == {}
        for server in ("floor", "echod"):
            assert len(workload["servers"][server]["samples"]) == 1
    assert document["workloads"][0]["servers"]["echod"]["ratio_to_floor"]["cpu"]["median"] > 0
    assert list(tmp_path.glob("*.svg"))
    assert (ROOT / "docs" / "performance.md").read_bytes() == before


@pytest.mark.parametrize("name", ["crowd", "proxies", "reload", "scrape", "tls", "udp"])
def test_each_measurement_says_how_to_run_it(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--help"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m benchmarks.{name} ")
