"""docs/network.md as a program reads it: each finding with the lines that it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import field_tables

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENT = Path(__file__).parents[2] / "docs" / "network.md"
USUAL = "What is usual"
_EXACT = re.compile(r"reason|error|(client|proxy)\.address|tcp\.(mss|pmtu)|syn\..*")
"""Fields that a test can foresee. The others are times, ports and counts."""


def findings() -> dict[str, list[dict[str, Any]]]:
    """Return the lines by their heading."""
    return {heading: lines for heading, lines in _lines().items() if lines and heading != USUAL}


def usual() -> dict[str, Any]:
    """Return the line of a connection to which no network did anything."""
    (line,) = _lines()[USUAL]
    return line


def _lines() -> dict[str, list[dict[str, Any]]]:
    return {
        heading: [
            json.loads(line)
            for block in re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
            for line in block.splitlines()
        ]
        for heading, text in field_tables.sections(DOCUMENT.read_text()).items()
    }


def test_of(heading: str) -> str:
    """Return the name of the test that makes this finding."""
    return f"test_{re.sub(r'[^a-z0-9]+', '_', heading.lower())}"


def looks_as(shown: dict[str, Any], line: dict[str, Any]) -> bool:
    """Say whether a line has what a line of the document shows, in the fields that can be foreseen."""
    return all(_at(line, path) == value for path, value in _leaves(shown) if _EXACT.fullmatch(path))


def _leaves(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, below in value.items():
        if isinstance(below, dict):
            yield from _leaves(below, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", below


def _at(line: dict[str, Any], path: str) -> Any:
    value: Any = line
    for name in path.split("."):
        value = value.get(name) if value else None
    return value
