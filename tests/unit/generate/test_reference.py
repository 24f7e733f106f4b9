"""The shipped configuration file, and the table of settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from generate import reference

from echod.config import render
from echod.config.settings import declared

CONFIG = Path(__file__).parents[3] / "config"
SETTINGS = list(declared())


def test_the_table_has_a_row_for_each_setting() -> None:
    """Each with three cells, whatever the description contains."""
    head, rule, *rows = reference.table().splitlines()
    assert head.count("|") == rule.count("|") == 4
    assert [row.count("|") for row in rows] == [4] * len(SETTINGS)
    for row, setting in zip(rows, SETTINGS, strict=True):
        assert row.startswith(f"| `{setting.name}` | `{setting.default}` | {setting.field.description}")
        assert row.endswith(" A change needs a restart. |") == (not setting.live)


def test_the_guide_keeps_the_text_around_the_table() -> None:
    """Only what is between the two marks is replaced."""
    begin, end = reference._BEGIN, reference._END
    guide = reference.with_table(f"before\n{begin}old\n{end}after\n")
    assert guide == f"before\n{begin}{reference.table()}{end}after\n"
    assert reference.with_table(guide) == guide


def test_a_guide_without_the_marks_is_an_error() -> None:
    """Otherwise its text would be lost."""
    with pytest.raises(ValueError, match="the guide needs"):
        reference.with_table(f"before\n{reference._BEGIN}old\nafter\n")


def test_the_shipped_file_describes_each_setting() -> None:
    """In a comment above it; no line is too long for a wide terminal."""
    text = reference.shipped()
    assert max(map(len, text.splitlines())) <= 120
    comments: list[str] = []
    found = []
    for line in text.splitlines():
        if line.startswith("# "):
            comments.append(line.removeprefix("# "))
        elif " = " in line:
            found.append((" ".join(comments), line))
            comments = []
        else:
            comments = []
    assert found == [(render.described(setting), f"{setting.key} = {setting.default}") for setting in SETTINGS]


def test_the_shipped_file_names_its_schema() -> None:
    """For editors, by a relative path, so that both files can be copied together."""
    first = (CONFIG / "echod.toml").read_text().splitlines()[0]
    assert first == "#:schema ./echod.schema.json"
    assert (CONFIG / "echod.schema.json").is_file()
