"""docs/logs.md as a program reads it: the events with their levels, fields and types, and the check of a line against it."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

DOCUMENT = Path(__file__).parents[2] / "docs" / "logs.md"
COMMON = "Every line"
"""The heading above the fields that every line has."""
TIMESTAMP = re.compile(r"\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-5]\d\.\d{6}Z")
_TYPES: dict[str, type] = {"int": int, "float": float, "text": str, "object": dict, "list": list}
_TABLE = re.compile(r"^(\|.*\|)\n\|[-|: ]+\|\n((?:\|.*\|\n)+)", re.MULTILINE)
_TYPE = re.compile(r"(?P<name>\w+)(?P<null> or null)?(?P<optional>, optional)?")


class Field(NamedTuple):
    """One row of a table of fields."""

    type: str
    unit: str
    nullable: bool
    optional: bool


class Event(NamedTuple):
    """One section: `fields` by dotted name, and the values that a field may have, where a table lists them."""

    level: str
    fields: dict[str, Field]
    values: dict[str, list[str]]
    examples: list[dict[str, Any]]


@functools.cache
def events() -> dict[str, Event]:
    """Return what the document says of each event."""
    sections = re.split(r"^## ", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]
    titled = dict(section.split("\n", 1) for section in sections)
    common = _fields(titled[COMMON])
    found: dict[str, Event] = {}
    for title, text in titled.items():
        names = re.findall(r"`([\w.]+)`", title)
        if not names:
            continue
        levels = re.findall(r"`(\w+)`", text.strip().partition(". ")[0])
        assert text.startswith("\nLevel: "), f"{title}: the section begins with the level"
        assert len(names) == len(levels), f"{title}: a level for each event"
        for name, level in zip(names, levels, strict=True):
            assert name not in found, f"{name} is there twice"
            found[name] = Event(level, common | _fields(text), _values(text), _examples(text))
    return found


def _tables(text: str) -> list[list[list[str]]]:
    """Return the tables of a section as rows of cells, the head first."""
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *rows.splitlines())]
        for head, rows in _TABLE.findall(text)
    ]


def _fields(text: str) -> dict[str, Field]:
    (table,) = (rows for rows in _tables(text) if rows[0][0] == "field")
    assert table[0] == ["field", "type", "unit", "meaning"]
    fields: dict[str, Field] = {}
    for name, kind, unit, meaning in table[1:]:
        found = _TYPE.fullmatch(kind)
        assert found, f"{name}: {kind} is no type"
        assert found["name"] in _TYPES or found["name"] == "any", f"{name}: {kind} is no type"
        assert meaning.endswith("."), f"{name}: its meaning is a sentence"
        fields[name.strip("`")] = Field(found["name"], unit, bool(found["null"]), bool(found["optional"]))
    return fields


def _values(text: str) -> dict[str, list[str]]:
    return {rows[0][0]: [row[0].strip("`") for row in rows[1:]] for rows in _tables(text) if rows[0][0] != "field"}


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
    _check_object(line, event.fields, "", line)
    for name, values in event.values.items():
        assert line[name] in values, f"{name} is none of {values}: {line}"
    if line["event"] == "connection.closed":
        assert ("error" in line) == (line["reason"] == "error"), line


def _check_object(value: dict[str, Any], fields: dict[str, Field], prefix: str, line: dict[str, Any]) -> None:
    """Check the fields directly below `prefix`, and what is below these."""
    here = {name.removeprefix(prefix): field for name, field in fields.items() if name.startswith(prefix)}
    here = {name: field for name, field in here.items() if "." not in name}
    for name, field in here.items():
        if name.isupper():  # any key
            here = here | dict.fromkeys(value, field)
    for name in value:
        assert name in here, f"docs/logs.md has no field {prefix}{name}: {line}"
    for name, field in here.items():
        if name in value:
            _check_type(value[name], field, fields, f"{prefix}{name}", line)
        else:
            assert field.optional or name.isupper(), f"{prefix}{name} is missing: {line}"


def _check_type(value: Any, field: Field, fields: dict[str, Field], name: str, line: dict[str, Any]) -> None:
    if value is None:
        assert field.nullable, f"{name} is null: {line}"
        return
    if field.type == "any":
        return
    assert type(value) is _TYPES[field.type], f"{name} is no {field.type}: {line}"
    if isinstance(value, dict):
        _check_object(value, fields, f"{name}.", line)
    if isinstance(value, list):
        assert all(isinstance(item, str) for item in value), f"{name} is no list of texts: {line}"
