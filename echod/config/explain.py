"""Errors of pydantic as lines for people: `FILE:LINE: pool.size: must be at least 1, got 0`."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from echod.config.settings import Settings, declared
from echod.text import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic_core import ErrorDetails

    from echod.config.layers import Layer
    from echod.config.toml import KeyPath

_TYPES = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "model_type": "a table",
    "string_type": "a string",
    "string_unicode": "valid Unicode",
}
_BARE = re.compile(r"[\w-]+", re.ASCII)
MOST = 100
"""Lines for one layer. A file with more problems is not a configuration of echod."""


def explain(errors: Sequence[ErrorDetails], layer: Layer) -> list[str]:
    """Return a line for each error of a layer, in the layer's order (a file's: from top to bottom), capped."""
    order = {path: number for number, path in enumerate(layer.origins)}
    located = sorted(((_located(error["loc"], layer), error) for error in errors), key=lambda each: order[each[0]])
    # Only the lines that are shown are made: the search for the nearest known key is slow.
    lines = [f"{layer.origins[path]}: {_key(error['loc'])}: {_message(error)}" for path, error in located[:MOST]]
    return capped(lines, len(located))


def capped(lines: list[str], number: int) -> list[str]:
    """Return at most `MOST` lines of this number, and a line that says how many are left out."""
    return [*lines[:MOST], f"and {number - MOST} more"] if number > MOST else lines


def origin(loc: KeyPath, layers: Sequence[Layer]) -> str:
    """Return where the value in force comes from: a flag, a variable, `FILE:LINE`, or "default"."""
    for layer in layers:
        if loc[:2] in layer.origins:
            return layer.origins[_located(loc, layer)]
    return "default"


def _located(loc: KeyPath, layer: Layer) -> KeyPath:
    """Return the longest part of the path that has an origin. Pydantic's own path components have none."""
    while loc not in layer.origins:
        loc = loc[:-1]
    return loc


def _key(loc: KeyPath) -> str:
    """Return the dotted name of the setting, without pydantic's own path components."""
    return ".".join(part if _BARE.fullmatch(part) else shown(part) for part in map(str, loc[:2]))


def _message(error: ErrorDetails) -> str:
    got, context = error["input"], error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return _unknown(error["loc"], got)
        case "value_error":
            return str(context["error"])
        case "literal_error":
            choices = {choice: f'"{choice}"' for choice in re.findall(r"'(\w+)'", context["expected"])}
            return f"must be {' or '.join(choices.values())}, got {shown(got)}{did_you_mean(got, choices)}"
        case "greater_than_equal":
            must = f"at least {context['ge']}"
        case "less_than_equal":
            must = f"at most {context['le']}"
        case kind:
            must = _TYPES[kind]
    return f"must be {must}, got {shown(got)}"


def _unknown(loc: KeyPath, value: object) -> str:
    name = str(loc[-1])
    others = [setting.name for setting in declared() if setting.key == name.casefold().replace("-", "_")]
    elsewhere = f"; did you mean {' or '.join(others)}?" if others else ""
    if len(loc) == 1:
        sections = {section: f"[{section}]" for section in Settings.model_fields}
        what = "section" if isinstance(value, dict | list) else "key"
        return f"unknown {what}{did_you_mean(name, sections) or elsewhere or _known(sections)}"
    here = {setting.key: setting.name for setting in declared() if setting.section == loc[0]}
    return f"unknown key{did_you_mean(name, here) or elsewhere or _known(here)}"


def _known(names: Mapping[str, str]) -> str:
    return f"; known: {', '.join(names.values())}"


def did_you_mean(name: object, known: Mapping[str, str]) -> str:
    """Return a hint if the name is similar to a known one, else nothing. The values of `known` are the names to show."""
    if not isinstance(name, str):
        return ""
    names = {each.casefold(): display for each, display in known.items()}
    near = difflib.get_close_matches(name.casefold(), names, n=1)
    return f"; did you mean {names[near[0]]}?" if near else ""
