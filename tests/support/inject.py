"""Faults of the system, made in the running daemon: calls of the C library that fail as a test wants it, see inject.c."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import pytest

if TYPE_CHECKING:
    import socket
Call = Literal[
    "accept", "read", "write", "allocate", "io_uring", "tcp_info", "send_queue", "reset_on_close", "save_syn"
]
CALLS: tuple[Call, ...] = get_args(Call)
ALWAYS = 2**31 - 1
STOP = -1

# As in inject.c:
_RULE = struct.Struct("=6i")
_AHEAD = struct.Struct("=q")
_HITS = 5


def compiled(directory: Path) -> Path:
    """Compile what is preloaded; skip the test where that can't be done."""
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler: cc")
    path = directory / "inject.so"
    source = Path(__file__).with_name("inject.c")
    subprocess.run([compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", path, source], check=True)
    return path


class Injection:
    """What is to fail in a process that has `environment`. Nothing is, until `arm` says so."""

    def __init__(self, library: Path, file: Path) -> None:
        file.write_bytes(bytes(mmap.PAGESIZE))
        with file.open("r+b") as opened:
            self._shared = mmap.mmap(opened.fileno(), mmap.PAGESIZE)
        self.environment = {"LD_PRELOAD": str(library), "TEST_INJECT": str(file)}

    def arm(
        self,
        call: Call,
        error: int = 0,
        *,
        at_most: int = 0,
        client: socket.socket | None = None,
        skip: int = 0,
        times: int = ALWAYS,
    ) -> None:
        """Let the call fail with this errno, or read or write `at_most` bytes; on the connection of one client, or on all.

        With `STOP` for `at_most`, the process stops in the middle of it (SIGSTOP).
        """
        port = client.getsockname()[1] if client else 0
        place = CALLS.index(call) * _RULE.size
        self.disarm(call)
        _RULE.pack_into(self._shared, place, error, at_most, port, skip, 0, 0)
        _RULE.pack_into(self._shared, place, error, at_most, port, skip, times, 0)  # what makes it so comes last

    def disarm(self, call: Call) -> None:
        """Let it be done well again."""
        rule = self._rule(call)
        _RULE.pack_into(self._shared, CALLS.index(call) * _RULE.size, *rule[:4], 0, rule[_HITS])

    def hits(self, call: Call) -> int:
        """Return how often it has failed since it was armed."""
        return self._rule(call)[_HITS]

    def _rule(self, call: Call) -> tuple[int, ...]:
        return _RULE.unpack_from(self._shared, CALLS.index(call) * _RULE.size)

    def turn_clock(self, seconds: int) -> None:
        """Let the wall clock be so many seconds ahead of the true one, or behind."""
        _AHEAD.pack_into(self._shared, len(CALLS) * _RULE.size, seconds)
