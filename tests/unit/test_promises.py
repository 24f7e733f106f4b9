"""docs/reliability.md promises nothing without a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "reliability.md"


def rows() -> list[list[str]]:
    """Return the cells of each row of its tables, without heads and rules."""
    tables = re.findall(r"^\|.*\|\n\|[-|: ]+\|\n((?:\|.*\|\n)+)", DOCUMENT.read_text(), re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for table in tables for line in table.splitlines()]


def existing() -> set[str]:
    return {
        name
        for file in TESTS.rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }


def test_there_are_promises() -> None:
    assert len(rows()) > 20


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_each_promise_names_tests_that_exist(row: list[str]) -> None:
    """Fault, promise, tests, peers; a test that was renamed has to be renamed there."""
    _, promise, proof, _ = row
    assert promise
    named = re.findall(r"`(test_\w+)`", proof)
    assert named
    assert set(named) <= existing()
