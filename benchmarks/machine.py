"""Where and with what something is measured, and what makes it less worth.

Knows nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import build

if TYPE_CHECKING:
    from benchmarks.cores import Cores


def about(places: Cores) -> list[str]:
    """Return where and with what this is measured, and what makes it less worth."""
    name = platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    prefix = sys.base_prefix.replace(str(Path.home()), "~")  # builds differ: Debian's is optimised by profile
    python = f"Python {platform.python_version()} of {prefix}"
    versions = f"Linux {platform.release()}, {python}, uvloop {version('uvloop')}"
    heads = [f"{time.strftime('%Y-%m-%d')}, {name}, {os.cpu_count()} cores, {versions}"]
    if places.apart:
        heads.append(f"servers on core {places.server[0]}, load on core {places.load}, all on 127.0.0.1")
    else:
        heads.append("ONE CORE for server and load: latencies and rates say little")
    if len(places.server) == 1:
        heads.append("two processes of one server share its core: that shows their cost, not their gain")
    if build.built("load.c") is None:
        heads.append("NO C COMPILER (gcc): the load is Python, and may be the limit; rates and latencies are its own")
    if build.built("floor.c") is None:
        heads.append("NO C COMPILER (gcc): the floor is Python, so ratios are smaller than they would be")
    busy = os.getloadavg()[0]
    if busy > 0.5:  # of a core
        heads.append(f"THE MACHINE WAS BUSY at the start: load average {busy:.2f}")
    return heads
