"""From what pydantic found wrong to lines for people: `FILE:LINE: pool.size: must be at least 1, got 0`.

Knows nothing of files and variables beyond what the layers say of them.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from echod.settings import Settings, declared
from echod.values import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic_core import ErrorDetails

    from echod.sources import Layer
    from echod.toml import KeyPath

_TYPES = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "model_type": "a table",
    "string_type": "a string",
    "string_unicode": "a text in Unicode",
}
_BARE = re.compile(r"[\w-]+", re.ASCII)


def explain(errors: Sequence[ErrorDetails], layers: Sequence[Layer]) -> list[str]:
    """Return a line for each error: flags first, then variables, then the file from top to bottom."""
    order = [{path: number for number, path in enumerate(layer.origins)} for layer in layers]
    stands = [_stand(error["loc"], layers) for error in errors]
    lines = [
        (rank, order[rank][path], f"{_origin(rank, path, layers)}: {_key(error['loc'])}: {_message(error)}")
        for error, (rank, path) in zip(errors, stands, strict=True)
    ]
    return [line for _, _, line in sorted(lines)]


def origin(loc: KeyPath, layers: Sequence[Layer]) -> str:
    """Return where the value in force stands: a flag, a variable, `FILE:LINE`, or "default"."""
    return _origin(*_stand(loc, layers), layers)


def _origin(rank: int, path: KeyPath, layers: Sequence[Layer]) -> str:
    return layers[rank].origins[path] if rank < len(layers) else "default"


def _stand(loc: KeyPath, layers: Sequence[Layer]) -> tuple[int, KeyPath]:
    """Return the highest layer with a value for this setting, and the path in it that comes nearest."""
    for rank, layer in enumerate(layers):
        path = loc
        while path and path not in layer.origins:
            path = path[:-1]  # what pydantic adds below a key, and in a higher layer the section alone, stand nowhere
        if path[:2] == loc[:2]:
            return rank, path
    return len(layers), ()


def _key(loc: KeyPath) -> str:
    """Return the dotted name; below the setting, pydantic names its own types."""
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
            return f"must be {' or '.join(choices.values())}, got {shown(got)}{did_you_mean(str(got), choices)}"
        case "greater_than_equal":
            must = f"at least {context['ge']}"
        case "less_than_equal":
            must = f"at most {context['le']}"
        case kind:
            must = _TYPES[kind]
    return f"must be {must}, got {shown(got)}"


def _unknown(loc: KeyPath, value: object) -> str:
    name = str(loc[-1])
    elsewhere = {setting.key: setting.name for setting in declared()}
    if len(loc) == 1:
        sections = {section: f"[{section}]" for section in Settings.model_fields}
        what = "section" if isinstance(value, dict | list) else "key"
        return f"unknown {what}{did_you_mean(name, sections) or did_you_mean(name, elsewhere) or _known(sections)}"
    here = {setting.key: setting.name for setting in declared() if setting.section == loc[0]}
    return f"unknown key{did_you_mean(name, here) or did_you_mean(name, elsewhere) or _known(here)}"


def _known(names: Mapping[str, str]) -> str:
    return f"; known are {', '.join(names.values())}"


def did_you_mean(name: str, known: Mapping[str, str]) -> str:
    """Return a hint if the name is near a known one, else nothing. The values are what to call those."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {known[near[0]]}?" if near else ""
