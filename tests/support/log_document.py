"""docs/logs.md as a program reads it: each event with its level, fields and examples; and the check of a line against it."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support import field_tables

if TYPE_CHECKING:
    from tests.support.field_tables import Fields

DOCUMENT = Path(__file__).parents[2] / "docs" / "logs.md"
COMMON = "Every line"
"""The heading above the fields that every line has."""
TIMESTAMP = re.compile(r"\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-5]\d\.\d{6}Z")


class Event(NamedTuple):
    """One section. `values` has the values that a field may have, or the keys of an object, where a table lists them."""

    level: str
    fields: Fields
    values: dict[str, list[str]]
    examples: list[dict[str, Any]]


@functools.cache
def events() -> dict[str, Event]:
    """Return what the document says of each event."""
    sections = field_tables.sections(DOCUMENT.read_text())
    common = field_tables.fields(sections[COMMON])
    found: dict[str, Event] = {}
    for title, text in sections.items():
        names = re.findall(r"`([\w.]+)`", title)
        if not names:
            continue
        levels = re.findall(r"`(\w+)`", text.strip().partition(". ")[0])
        assert text.startswith("\nLevel: "), f"{title}: the section begins with the level"
        assert len(names) == len(levels), f"{title}: a level for each event"
        for name, level in zip(names, levels, strict=True):
            assert name not in found, f"{name} is there twice"
            found[name] = Event(level, common | field_tables.fields(text), _values(text), _examples(text))
    return found


def _values(text: str) -> dict[str, list[str]]:
    """Return the first column of each other table, by its head, which is the name of a field."""
    others = (rows for rows in field_tables.tables(text) if rows[0] != field_tables.HEAD)
    return {rows[0][0]: [row[0].strip("`") for row in rows[1:]] for rows in others}


def _examples(text: str) -> list[dict[str, Any]]:
    blocks = re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [json.loads(line) for block in blocks for line in block.splitlines()]


def check_line(line: dict[str, Any]) -> None:
    """Assert that a line of the log is as the document says: level, fields, types, and values where it lists them."""
    assert list(line)[:3] == ["timestamp", "level", "event"], line
    assert TIMESTAMP.fullmatch(line["timestamp"]), line
    assert line["event"] in events(), f"docs/logs.md has no {line['event']}: {line}"
    event = events()[line["event"]]
    assert line["level"] == event.level, line
    field_tables.check(line, event.fields)
    for name, values in event.values.items():
        found = line[name] if isinstance(line[name], dict) else [line[name]]
        assert set(found) <= set(values), f"{name} is none of {values}: {line}"
    if line["event"] == "connection.closed":
        assert ("error" in line) == (line["reason"] == "error"), line
