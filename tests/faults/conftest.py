"""What the tests of faults share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import inject

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def _compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inject.compiled(tmp_path_factory.mktemp("inject"))


@pytest.fixture
def injection(_compiled: Path, tmp_path: Path) -> inject.Injection:
    """Return what makes system calls fail in a daemon that is started with its environment."""
    return inject.Injection(_compiled, tmp_path / "inject")
