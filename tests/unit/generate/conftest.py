"""The files that the build generates, in a folder of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from generate import files

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that stands for build/."""
    folder = tmp_path_factory.mktemp("generated")
    for path, text in files.built(ROOT).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder / "build"


@pytest.fixture
def source(tmp_path: Path) -> Callable[[str], Path]:
    """Return what copies a file of the source tree to the same place below `tmp_path`."""

    def copy(path: str) -> Path:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text((ROOT / path).read_text())
        return tmp_path / path

    return copy
