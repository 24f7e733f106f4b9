"""How values and text of unknown origin are written on one line: in messages, in TOML, on a terminal."""

from __future__ import annotations

import json


def literal(value: object) -> str:
    """Return a value as TOML writes it: JSON's form, which is TOML's too (without a break in the line)."""
    return printable(json.dumps(value, ensure_ascii=False))


def shown(value: object) -> str:
    """Return the value as TOML writes it, cut to a length that fits a message."""
    if isinstance(value, bool | str):
        text = literal(value)
    elif isinstance(value, int):
        text = str(value) if abs(value) < 10**18 else hex(value)  # Python does not write thousands of digits
    elif isinstance(value, list | tuple):
        text = "a list" if value else "[]"
    elif isinstance(value, dict):
        text = "a table"
    else:  # a float, or one of TOML's dates and times
        text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - a line's worth


def printable(text: str) -> str:
    """Return the text with escapes for what would break a line, or what a terminal would obey or refuse."""
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"  # noqa: PLR2004 - four digits' worth
