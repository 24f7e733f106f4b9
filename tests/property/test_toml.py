"""Any TOML document has the line of each key; any other bytes are refused."""

from __future__ import annotations

import itertools
import re
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from echod.config import toml
from echod.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

# Documents. Every key ends in a unique number, so that no document defines one twice.

_SPACE = st.text(" \t", max_size=2)
_PRINTABLE = st.characters(exclude_categories=["Cs", "Cc"])
_COMMENT = st.one_of(
    st.just(""), st.text(st.one_of(_PRINTABLE, st.sampled_from("\t\"'[]{}#=\\")), max_size=8).map("#{}".format)
)
_NEWLINE = st.sampled_from(["\n", "\r\n"])
_ODD = st.text(
    st.one_of(st.sampled_from("\"'[]{}#=,.\\ \t\nkx1"), st.characters(exclude_categories=["Cs"])), max_size=8
)
_BARE = st.text("kx_-19", min_size=1, max_size=3)


def _basic(text: str, *, keep: str = "") -> str:
    """Return the text as the inside of a basic string; characters in `keep` are not escaped."""
    return "".join(
        char if char in keep or (char >= " " and char not in '"\\\x7f') else f"\\u{ord(char):04x}" for char in text
    )


def _single_line(text: str) -> str:
    return "".join(char for char in text if char >= " " and char not in "'\x7f")


def _multi_line(text: str) -> str:
    text = "".join(char for char in text if char >= " " or char in "\t\n").replace("\x7f", "")
    return re.sub("'{3,}", "''", text)


_STRING = st.one_of(
    _ODD.map(lambda text: f'"{_basic(text)}"'),
    _ODD.map(lambda text: f"'{_single_line(text)}'"),
    st.tuples(_ODD, st.integers(0, 2)).map(lambda it: f'"""{_basic(it[0], keep=chr(10))}{it[1] * chr(34)}"""'),
    st.tuples(_ODD, st.integers(0, 2)).map(lambda it: f"'''{_multi_line(it[0])}x{it[1] * chr(39)}'''"),
)
_SCALAR = st.one_of(
    _STRING,
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.floats().map(repr),
    st.sampled_from(["true", "false", "0xf", "1_000", "07:32:00", "1979-05-27"]),
    st.sampled_from(["1979-05-27T07:32:00Z", "1979-05-27 07:32:00.5", "1979-05-27 07:32:00-07:00"]),
)


class _Writer:
    """Writes one document, and draws its choices."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw
        self._keys = 0

    def _key_part(self) -> str:
        self._keys += 1
        return self._draw(
            st.one_of(
                _BARE.map(lambda text: f"{text}_{self._keys}"),
                _ODD.map(lambda text: f'"{_basic(text)}_{self._keys}"'),
                _ODD.map(lambda text: f"'{_single_line(text)}_{self._keys}'"),
            )
        )

    def _join(self, *tokens: str) -> str:
        return "".join(f"{self._draw(_SPACE)}{token}" for token in tokens) + self._draw(_SPACE)

    def _gap(self) -> str:
        """Draw what may be between the elements of an array."""
        return "".join(self._end() for _ in range(self._draw(st.integers(0, 2))))

    def _key(self) -> str:
        first, *rest = (self._key_part() for _ in range(self._draw(st.integers(1, 3))))
        return self._join(first, *itertools.chain.from_iterable((".", part) for part in rest))

    def _value(self, depth: int) -> str:
        kind = self._draw(st.sampled_from(["scalar", "scalar", "array", "table"])) if depth else "scalar"
        length = self._draw(st.integers(0, 3))
        if kind == "array":
            items = [f"{self._gap()}{self._value(depth - 1)}{self._gap()}" for _ in range(length)]
            comma = self._draw(st.sampled_from(["", ","])) if items else ""
            return f"[{','.join(items)}{comma}{self._gap()}]"
        if kind == "table":
            return f"{{{','.join(self._pair(depth - 1) for _ in range(length)) or self._draw(_SPACE)}}}"
        return self._draw(_SCALAR)

    def _pair(self, depth: int) -> str:
        return self._join(self._key(), "=", self._value(depth))

    def _end(self) -> str:
        return f"{self._draw(_SPACE)}{self._draw(_COMMENT)}{self._draw(_NEWLINE)}"

    def document(self) -> str:
        text = ""
        headers: list[str] = [""]
        arrays: list[str] = []
        for kind in self._draw(
            st.lists(st.sampled_from(["blank", "pair", "pair", "table", "array", "again"]), max_size=8)
        ):
            above = self._draw(st.sampled_from(headers))
            name = f"{above}.{self._key()}" if above else self._key()
            if kind == "pair":
                text += self._pair(2)
            elif kind == "table":
                headers.append(name)
                text += self._join("[", name, "]")
            elif kind == "array" or (kind == "again" and arrays):
                name = self._draw(st.sampled_from(arrays)) if kind == "again" else name
                headers, arrays = [*headers, name], [*arrays, name]
                text += f"{self._draw(_SPACE)}[[{self._join(name)}]]"
            text += self._end()
        return text


@st.composite
def documents(draw: st.DrawFn) -> str:
    return _Writer(draw).document()


# The properties of the lines.


def keys(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the names that lead to every table and key below the value; items of an array are not distinguished."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            yield from keys(item, (*path, key))
    elif isinstance(value, list):
        for item in value:
            yield from keys(item, path)


def names(path: toml.KeyPath) -> tuple[str, ...]:
    return tuple(part for part in path if isinstance(part, str))


def is_on(line: str, key: str) -> bool:
    """Return whether one of the words of the line, bare or quoted, is this key."""
    for start in range(len(line)):
        for form in (r"[A-Za-z0-9_-]+", r'"(?:\\.|[^"\\])*"', r"'[^']*'"):
            word = re.compile(form).match(line, start)
            if word and _decoded(word[0]) == key:
                return True
    return False


def _decoded(word: str) -> str | None:
    if word[0] not in "\"'":
        return word
    try:
        return str(tomllib.loads(f"key = {word}")["key"])
    except tomllib.TOMLDecodeError:
        return None


def read(raw: bytes) -> toml.Document:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(raw)
        return toml.read(Path(file.name))


def check(document: toml.Document, text: str) -> None:
    lines = text.split("\n")
    for path, line in document.lines.items():
        assert isinstance(path[-1], int) or is_on(lines[line - 1], path[-1])
    assert set(keys(document.values)) == set(map(names, document.lines)) - {()}


@settings(max_examples=100)
@given(documents())
@example("[a.b]\n[[c]]\n[c.d]\n[[c]]\n[c.d]\n")
def test_every_key_of_a_document_is_on_its_line(text: str) -> None:
    """However the document is written."""
    document = read(text.encode())
    assert document.values == tomllib.loads(text) or "nan" in text
    check(document, text)


@settings(max_examples=150)
@given(st.one_of(st.binary(), st.text("ab.=[]{}\"'\\\n\r#, 01-:TZ\t\ufeff\x00é").map(str.encode)))
@example(b"\r\r\na = 1")
@example(b"\xef\xbb\xbf\n\xff")
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """With one line, never a traceback."""
    try:
        document = read(raw)
    except Refusal as refusal:
        assert len(refusal.lines) == 1  # noqa: PT017 - the other outcome is as good
    else:
        check(document, raw.decode("utf-8-sig"))
