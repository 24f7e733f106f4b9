"""Loads a configuration from a text, flags and variables, or returns why it is refused."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from echod.config import load as config
from echod.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def load(
    file: Path | None = None,
    text: str | None = None,
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> config.Loaded:
    if file and text is not None:
        file.write_text(text)
    return config.load(file, flags or {}, environ or {})


def problems(
    file: Path | None = None,
    text: str | None = None,
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the lines with which the configuration is refused, with `FILE` for the path."""
    with pytest.raises(Refusal) as caught:
        load(file, text, flags, environ)
    assert caught.value.exit_code == os.EX_CONFIG
    return [line.replace(str(file), "FILE") for line in caught.value.lines]
