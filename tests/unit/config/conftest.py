"""Fixtures that the tests of the configuration share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from echod.config import load as config

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "echod.toml"


@pytest.fixture(autouse=True)
def default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the default file, in a directory of the test: this machine may have one."""
    path = tmp_path / "etc" / "echod.toml"
    monkeypatch.setattr(config, "DEFAULT_FILE", path)
    return path
