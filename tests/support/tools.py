"""Programs that a test needs and that may not be installed."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.harness import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path


def tool(*words: str | Path, text: str = "") -> str:
    """Run a program to its end and return its output. Skip the test if it is not installed."""
    if not shutil.which(str(words[0])):
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run(
        [str(word) for word in words], input=text, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout
