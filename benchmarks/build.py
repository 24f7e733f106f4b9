"""Compiles what is written in C and Go, if there is a compiler, and only if the source is newer than what was made."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
BUILT = HERE / "results" / "build"
COMMANDS = {
    ".c": ["gcc", "-O2", "-Wall", "-Wextra", "-o"],
    ".go": ["go", "build", "-o"],
}
LIBRARIES = {"tls_load.c": ["-lssl", "-lcrypto"]}


def built(source: str) -> Path | None:
    """Return the program made of this file; `None` if its compiler is missing or fails."""
    path = HERE / source
    program = BUILT / path.stem
    command = COMMANDS[path.suffix]
    if program.exists() and program.stat().st_mtime > path.stat().st_mtime:
        return program
    if not shutil.which(command[0]):
        return None
    BUILT.mkdir(parents=True, exist_ok=True)
    made = subprocess.run([*command, program, path, *LIBRARIES.get(source, [])], check=False, timeout=120)
    return program if made.returncode == 0 else None
