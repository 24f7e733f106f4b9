"""docs/reliability.md promises nothing without a test, and docs/network.md shows nothing without one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import field_tables, network_document

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


def test_each_finding_of_a_network_has_a_test_of_its_name() -> None:
    """And a row in the table at the top of the page."""
    headings = list(network_document.findings())
    assert len(headings) == 10
    assert {network_document.test_of(heading) for heading in headings} <= existing()
    (table,) = field_tables.tables(network_document.DOCUMENT.read_text())
    assert [row[0].partition("]")[0].strip("[") for row in table[1:]] == headings
