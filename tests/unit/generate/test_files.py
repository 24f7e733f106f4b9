"""Which files are generated, and where they go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from generate import files

from tests.support.harness import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[3]
SOURCES = ("CHANGELOG.md", "docs/configuration.md", "systemd/echod.service")
"""What the generated files are made from, beside the declarations."""


def run(*words: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'packaging'}"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


@pytest.mark.parametrize("path", files.committed(ROOT))
def test_the_committed_files_are_up_to_date(path: str) -> None:
    """After a change of a setting or a command, `make reference` has to be run."""
    assert (ROOT / path).read_text() == files.committed(ROOT)[path]


@pytest.mark.parametrize(("target", "expected"), [("reference", files.committed), ("build", files.built)])
def test_a_target_writes_its_files_and_no_other(
    target: str, expected: Callable[[Path], dict[str, str]], tmp_path: Path, source: Callable[[str], Path]
) -> None:
    """Below the current folder; missing folders are made."""
    for path in SOURCES:
        source(path)
    done = run("-m", "generate", target, directory=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path: text for path, text in found.items() if path not in SOURCES or path in expected(ROOT)} == expected(
        ROOT
    )


def test_the_folder_packaging_does_not_hide_the_library_packaging() -> None:
    """Pip, pytest and hatchling import that library, and the top folder may be on the path before it."""
    done = run("-c", "import packaging.version; print(packaging.__file__)", directory=ROOT)
    assert done.stderr == ""
    assert not done.stdout.startswith(str(ROOT / "packaging"))
