"""The TOML file: its values, and the line of each key.

The standard library parses the file but keeps no positions, and no maintained TOML library for Python has them. So a
scanner walks the text a second time. It only gets text that `tomllib` has accepted, and relies on its grammar
(https://toml.io/en/v1.0.0).
"""

from __future__ import annotations

import ast
import codecs
import os
import pwd
import re
import tomllib
from typing import TYPE_CHECKING, Any, NamedTuple

from echod.errors import Refusal

if TYPE_CHECKING:
    from pathlib import Path

KeyPath = tuple[str | int, ...]
"""The names of the tables and of the key that lead to a value, and its index within an array."""

MAX_SIZE = 1 << 20
"""Bytes. A configuration has a few hundred; a file a thousand times larger was named by mistake."""


class Document(NamedTuple):
    """A parsed file: its tables as nested dictionaries, and the line (from 1) of each key path."""

    values: dict[str, Any]
    lines: dict[KeyPath, int]


def read(path: Path) -> Document:
    """Read and parse the file.

    Raises `Refusal` with exit code 66 if it can't be read, 78 if it is not TOML (`FILE:LINE: message`).
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_SIZE + 1)
    except PermissionError as error:
        line = (
            f"{path}: can't be read: {error.strerror} (as {user()})"  # a check by root succeeds where the service fails
        )
        raise Refusal(line, exit_code=os.EX_NOINPUT) from None
    except OSError as error:
        raise Refusal(f"{path}: can't be read: {error.strerror}", exit_code=os.EX_NOINPUT) from None
    if len(raw) > MAX_SIZE:
        raise Refusal(f"{path}: larger than {MAX_SIZE} bytes: not a configuration of echod")
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise Refusal(f"{path}:{number}: not UTF-8: byte 0x{raw[error.start]:02x}") from None
    try:
        return Document(tomllib.loads(text), _Scanner(text.replace("\r\n", "\n")).scan())
    except tomllib.TOMLDecodeError as error:
        number, message = _position(str(error), text)
        raise Refusal(f"{path}:{number}: {message}") from None
    except ValueError:  # int() refuses it
        raise Refusal(f"{path}: a number has thousands of digits") from None
    except RecursionError:
        raise Refusal(f"{path}: nested too deeply") from None


def user() -> str:
    """Return the user of this process, for messages."""
    uid = os.geteuid()
    try:
        return f"user {pwd.getpwuid(uid).pw_name}, uid {uid}"
    except KeyError:  # a container's user may have no name
        return f"uid {uid}"


def _position(message: str, text: str) -> tuple[int, str]:
    """Split the message of tomllib into the line and the rest, and add what is probably wrong."""
    what, _, place = message.rpartition(" (at ")
    position = re.match(r"line (\d+), column (\d+)", place)
    number = int(position[1]) if position else text.count("\n") + 1
    if what.startswith(("Invalid value", "Expected newline", "Unclosed array")):
        what += _hint(text.split("\n")[number - 1])
    elif twice := re.fullmatch(r"Cannot declare (\(.*\)) twice", what):
        table = ".".join(ast.literal_eval(twice[1]))
        what = f"[{table}] is defined twice; put all its keys under the first one"
    elif what == r"Illegal character '\n'":
        what += "; the closing quote is missing"
    elif what == "Cannot overwrite a value":
        what = "The key is defined twice"
    return number, f"{what} ({f'column {position[2]}' if position else 'at the end of the file'})"


def _hint(line: str) -> str:
    """Return what is probably wrong with the value on this line, or nothing."""
    found = re.fullmatch(r"\s*[\w.\"'-]+\s*=\s*([^#]*?)\s*(?:#.*)?", line)
    if found is None:
        return ""
    if re.fullmatch(r"[+-]?0[0-9_]+", found[1]):
        return "; a number has no leading zeros"
    if re.fullmatch(r"(?=.*[A-Za-z.:])[\w.:/*%, \[\]-]+", found[1]):
        return "; strings need quotes, true and false are lowercase"
    return ""


class _Scanner:
    """Finds the line of each key path in a valid TOML text.

    Of an array of tables, which no setting is, all tables count as one.
    """

    _GAP = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
    _KEY_PART = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\])*"|'[^']*'""")
    _SCALAR = re.compile(
        r'"""(?:\\.|[^\\])*?"{3,5}'
        r"|'''(?:.)*?'{3,5}"
        r'|"(?:\\.|[^"\\])*"'
        r"|'[^']*'"
        r"|[^,\]}#\n]+",
        re.DOTALL,
    )

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._lines: dict[KeyPath, int] = {}

    def scan(self) -> dict[KeyPath, int]:
        """Return the line on which each path appears first, in the order of the file."""
        table: KeyPath = ()
        while self._skip_gap():
            line = self._line
            if self._take("[["):
                table = self._key((), line)
                self._take("]]")
            elif self._take("["):
                table = self._key((), line)
                self._take("]")
            else:
                self._pair(table)
        return self._lines

    def _pair(self, table: KeyPath) -> None:
        path = self._key(table, self._line)
        self._take("=")
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        if self._take("["):
            index = 0
            while not self._take("]"):
                self._lines[*path, index] = self._line
                self._value((*path, index))
                self._take(",")
                index += 1
        elif self._take("{"):
            while not self._take("}"):
                self._pair(path)
                self._take(",")
        else:
            self._advance(self._SCALAR)

    def _key(self, path: KeyPath, line: int) -> KeyPath:
        """Read a dotted key below `path`, and note the line of each of its parts."""
        while True:
            path = (*path, self._key_part())
            self._lines.setdefault(path, line)
            if not self._take("."):
                return path

    def _key_part(self) -> str:
        self._skip_gap()
        part = self._advance(self._KEY_PART)
        return str(tomllib.loads(f"key = {part}")["key"]) if part[0] in "\"'" else part

    def _skip_gap(self) -> bool:
        """Skip space, newlines and comments; return whether anything is left."""
        self._advance(self._GAP)
        return self._at < len(self._text)

    def _take(self, token: str) -> bool:
        """Skip the gap and this token; return whether the token was there."""
        self._skip_gap()
        if not self._text.startswith(token, self._at):
            return False
        self._at += len(token)
        return True

    def _advance(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        assert found, "tomllib accepted text outside of this grammar"  # noqa: S101 - the invariant of this class
        self._at = found.end()
        self._line += found[0].count("\n")
        return found[0]
