"""How values and untrusted text are written on one line: in messages, TOML files and on terminals."""

from __future__ import annotations

import json


def literal(value: object) -> str:
    """Return a value as TOML writes it, on one line. JSON's form is also TOML's."""
    return printable(json.dumps(value, ensure_ascii=False))


def shown(value: object) -> str:
    """Return a value as TOML writes it, cut to the length that fits in a message."""
    if isinstance(value, bool | str):
        text = literal(value)
    elif isinstance(value, int):
        text = str(value) if abs(value) < 10**18 else hex(value)  # str() refuses an integer of thousands of digits
    elif isinstance(value, list | tuple):
        text = "a list" if value else "[]"
    elif isinstance(value, dict):
        text = "a table"
    else:  # a float, or one of TOML's dates and times
        text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - half of a line


def printable(text: str) -> str:
    """Return the text with escapes for characters that would break the line, or that a terminal would act on."""
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"  # noqa: PLR2004 - four digits' worth
