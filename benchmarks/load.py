"""The load generator as a process: ready, go, and what came of it.

Knows nothing of who serves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Self

from benchmarks import build, cores

if TYPE_CHECKING:
    from benchmarks.summary import Sample


class LoadError(Exception):
    """It could not be done, or what came back was wrong."""


class Load:
    """A load that is connected and warm, until the context is left."""

    def __init__(
        self, place: cores.Cores, port: int, connections: int, size: int, *mode: str | float, source: str = "load.c"
    ) -> None:
        program = build.built(source)
        command = [program] if program else [sys.executable, "-m", "benchmarks.pyload"]
        spin = "spin" if place.apart else "wait"
        words = [str(word) for word in (port, connections, size, spin, *mode)]
        with cores.on(place.load):
            self._process = subprocess.Popen(
                [*command, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        try:
            self._line()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def go(self) -> Sample:
        """Run it and return messages, seconds, and quantiles in microseconds."""
        if self._process.stdin is not None:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        result: Sample = json.loads(self._line())
        return result

    def give_way(self) -> None:
        """Let everyone else go first on its core, at once: with a low priority alone, they would wait for its slice's end."""
        os.sched_setscheduler(self._process.pid, os.SCHED_IDLE, os.sched_param(0))

    def stop(self) -> None:
        """End it, and with it its connections."""
        self._process.kill()
        self._process.communicate()

    def _line(self) -> str:
        """Return its next line. It gives up by itself if it takes too long."""
        if self._process.stdout is None or self._process.stderr is None:  # both are pipes, made above
            raise LoadError("no output")
        line = self._process.stdout.readline()
        if not line:
            raise LoadError(self._process.stderr.read().strip() or "the load ended without a word")
        return line
