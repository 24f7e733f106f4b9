"""HAProxy, run as a load balancer in front of the daemon."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.harness import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
DEFAULTS = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 20s
    timeout server 20s
"""


@contextlib.contextmanager
def running(proxies: str, folder: Path) -> Iterator[None]:
    """Let it run with these sections after `DEFAULTS`. It may not listen yet. Skips the test if there is no HAProxy."""
    if not PROGRAM:
        pytest.skip("needs haproxy")
    file = folder / "haproxy.cfg"
    file.write_text(DEFAULTS + proxies)
    process = subprocess.Popen([PROGRAM, "-f", str(file), "-db"], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(DEADLINE)
