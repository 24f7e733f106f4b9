"""Says how far it is: a bar on a terminal, a line for each step elsewhere.

Knows nothing of what is done.
"""

from __future__ import annotations

import shutil
import sys
import time

WIDTH = 24


class Progress:
    """Of a known number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._done = 0
        self._began = time.monotonic()
        self._bar = sys.stderr.isatty()

    def step(self, what: str) -> None:
        """Say what begins now."""
        if self._bar:
            filled = WIDTH * self._done // self.steps
            text = f"[{'#' * filled}{'.' * (WIDTH - filled)}] {self._done}/{self.steps} {what}{self._left()}"
            columns = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{text[:columns]}")
            sys.stderr.flush()
        else:
            print(f"{self._done + 1}/{self.steps} {what}", file=sys.stderr, flush=True)
        self._done += 1

    def end(self) -> None:
        """Take the bar away."""
        if self._bar:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _left(self) -> str:
        if not self._done:
            return ""
        seconds = (time.monotonic() - self._began) / self._done * (self.steps - self._done)
        return f", {seconds // 60:.0f}:{seconds % 60:02.0f} left"
