"""The tables of fields in docs/: what JSON has, with types and units, and the check of an object against such a table.

A table has the head `field | type | unit | meaning`. A dot in a name leads into an object, and a name in capitals stands for
any key. docs/logs.md explains the types to users.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

HEAD = ["field", "type", "unit", "meaning"]
_TYPES: dict[str, type] = {
    "int": int,
    "float": float,
    "bool": bool,
    "text": str,
    "object": dict,
    "list": list,
    "objects": list,
}
_TYPE = re.compile(r"(?P<name>\w+)(?P<null> or null)?(?P<optional>, optional)?")
_TABLE = re.compile(r"^(\|.*\|)\n\|[-|: ]+\|\n((?:\|.*\|\n?)+)", re.MULTILINE)

CLIENTS = ({"address", "port"}, {"pid", "uid"})
"""What an object `client` has: the one or the other, though in a table each of these is optional."""


class Field(NamedTuple):
    """One row. `type` is a key of `_TYPES`, or "any"."""

    type: str
    nullable: bool
    optional: bool


Fields = dict[str, Field]
"""By dotted name."""


def sections(text: str) -> dict[str, str]:
    """Return the text below each heading of a page, up to the next heading of any level."""
    parts = re.split(r"^#+ (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def tables(text: str) -> list[list[list[str]]]:
    """Return the tables of a text as rows of cells, the head first."""
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *rows.splitlines())]
        for head, rows in _TABLE.findall(text)
    ]


def fields(text: str) -> Fields:
    """Return the one table of fields in a text."""
    (table,) = (rows for rows in tables(text) if rows[0] == HEAD)
    found: Fields = {}
    for name, kind, unit, meaning in table[1:]:
        parsed = _TYPE.fullmatch(kind)
        assert parsed, f"{name}: {kind} is no type"
        assert parsed["name"] in _TYPES or parsed["name"] == "any", f"{name}: {kind} is no type"
        assert unit or parsed["name"] != "float", f"{name}: a float has a unit"
        assert meaning.endswith("."), f"{name}: its meaning is a sentence"
        found[name.strip("`")] = Field(parsed["name"], bool(parsed["null"]), bool(parsed["optional"]))
    return found


def check(value: Mapping[str, Any], fields: Fields) -> None:
    """Assert that an object has these fields, with these types, and no others."""
    _check_object(value, fields, "")


def _check_object(value: Mapping[str, Any], fields: Fields, prefix: str) -> None:
    below = {name.removeprefix(prefix): field for name, field in fields.items() if name.startswith(prefix)}
    here = {name: field for name, field in below.items() if "." not in name}
    any_key = next((field for name, field in here.items() if name.isupper()), None)
    expected = dict.fromkeys(value, any_key) if any_key else here
    for name in value:
        assert name in expected, f"{prefix}{name} is not documented: {value}"
    if prefix.endswith("client."):
        assert value.keys() in CLIENTS, f"{prefix}: has neither an address nor a user: {value}"
    for name, field in expected.items():
        if name in value:
            _check_value(value[name], field, fields, f"{prefix}{name}")
        else:
            assert field.optional, f"{prefix}{name} is missing: {value}"


def _check_value(value: Any, field: Field, fields: Fields, name: str) -> None:
    if value is None:
        assert field.nullable, f"{name} is null"
    elif field.type != "any":
        assert type(value) is _TYPES[field.type], f"{name} is no {field.type}: {value!r}"
        if isinstance(value, dict):
            _check_object(value, fields, f"{name}.")
        if isinstance(value, list):
            for item in value:
                if field.type == "objects":
                    _check_object(item, fields, f"{name}.")
                else:
                    assert isinstance(item, str), f"{name} is no list of texts: {value}"
