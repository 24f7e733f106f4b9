"""Reading TOML: the line of each key, and messages for what is not TOML."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path

import pytest

from echod.config import toml
from echod.errors import Refusal
from tests.support.in_process import without_privileges


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "echod.toml"


def refusal(file: Path, raw: bytes) -> Refusal:
    """Return the refusal of these bytes, which has one line and exit code 78."""
    file.write_bytes(raw)
    with pytest.raises(Refusal) as caught:
        toml.read(file)
    assert len(caught.value.lines) == 1
    assert caught.value.exit_code == os.EX_CONFIG
    return caught.value


CONSTRUCTS = {
    "nothing": ("", {}),
    "only space and comments": (" \t\n# a = 1\n", {}),
    "pairs at the top": ("a = 1\n\nb=2", {("a",): 1, ("b",): 3}),
    "a comment behind a value": ("a = 1 # b = 2\nc = 3 # end", {("a",): 1, ("c",): 2}),
    "tables": ("[a]\nb = 1\n\n [c] # comment\nd = 2", {("a",): 1, ("a", "b"): 2, ("c",): 4, ("c", "d"): 5}),
    "an empty table at the end": ("\n[a]", {("a",): 2}),
    "a table within a table": ("[a]\n[a.b]\nc = 1", {("a",): 1, ("a", "b"): 2, ("a", "b", "c"): 3}),
    "a table whose parents have no header": (
        "\n[a.b.c]\nd = 1",
        {("a",): 2, ("a", "b"): 2, ("a", "b", "c"): 2, ("a", "b", "c", "d"): 3},
    ),
    "a parent's header after its child": ("[a.b]\n[a]\nc = 1", {("a",): 1, ("a", "b"): 1, ("a", "c"): 3}),
    "dotted keys": (
        "a.b = 1\na . c = 2\n[d]\ne.f = 3",
        {("a",): 1, ("a", "b"): 1, ("a", "c"): 2, ("d",): 3, ("d", "e"): 4, ("d", "e", "f"): 4},
    ),
    "quoted keys": (
        '"a.b" = 1\n\'c = # [\' = 2\n"" = 3\n[ "x\\ty" . \'z\\t\' ]\n"\\u00e9\\"" = 4',
        {
            ("a.b",): 1,
            ("c = # [",): 2,
            ("",): 3,
            ("x\ty",): 4,
            ("x\ty", "z\\t"): 4,
            ("x\ty", "z\\t", 'é"'): 5,
        },
    ),
    "keys that look like numbers": ("1.2 = 3\n-_ = 4", {("1",): 1, ("1", "2"): 1, ("-_",): 2}),
    "an array on one line": (
        "a = [1, 'x', true]\nb = 2",
        {("a",): 1, ("a", 0): 1, ("a", 1): 1, ("a", 2): 1, ("b",): 2},
    ),
    "an empty array": ("a = [ # nothing\n]\nb = 1", {("a",): 1, ("b",): 3}),
    "an array over several lines with comments": (
        'a = [ # one, two ]\n  "1]", # three\n\n  # four\n  "2" ,\n]\nb = 1',
        {("a",): 1, ("a", 0): 2, ("a", 1): 5, ("b",): 7},
    ),
    "arrays in arrays": (
        "a = [\n[1],\n[\n2]\n]\nb = 1",
        {("a",): 1, ("a", 0): 2, ("a", 0, 0): 2, ("a", 1): 3, ("a", 1, 0): 4, ("b",): 6},
    ),
    "an inline table": (
        "a = { b = 1, c.d = '}' }\ne = {}\nf = 1",
        {("a",): 1, ("a", "b"): 1, ("a", "c"): 1, ("a", "c", "d"): 1, ("e",): 2, ("f",): 3},
    ),
    "inline tables in an array": (
        "a = [\n{ b = 1 },\n{ b = [\n2] },\n]",
        {("a",): 1, ("a", 0): 2, ("a", 0, "b"): 2, ("a", 1): 3, ("a", 1, "b"): 3, ("a", 1, "b", 0): 4},
    ),
    "arrays of tables, which count as one": (
        "[[a]]\nb = 1\n[[a]]\n[a.c]\nd = 2\n[[a]]\n[[a.e]]",
        {("a",): 1, ("a", "b"): 2, ("a", "c"): 4, ("a", "c", "d"): 5, ("a", "e"): 7},
    ),
    "strings with what has a meaning elsewhere": (
        'a = "\\"# [ \\\\" # "\nb = \'\\\' # \'\nc = \'\'\nd = ""\ne = 1',
        {("a",): 1, ("b",): 2, ("c",): 3, ("d",): 4, ("e",): 5},
    ),
    "a multi-line string": ('a = """\n[b]\n\\""" c = 1\n# \\\n  """\nd = 1', {("a",): 1, ("d",): 6}),
    "a multi-line literal string": ("a = '''\n[b]\n\\ '' c = 1\n#'''\nd = 1", {("a",): 1, ("d",): 5}),
    "dates": (
        "a = 1979-05-27 07:32:00.5\nb = 1979-05-27 07:32:00 # space\nc = [1979-05-27 07:32:00Z, 07:32:00]\nd = 1979-05-27",
        {("a",): 1, ("b",): 2, ("c",): 3, ("c", 0): 3, ("c", 1): 3, ("d",): 4},
    ),
    "numbers": ("a = +1_0.5e-3\nb = -inf\nc = 0xff", {("a",): 1, ("b",): 2, ("c",): 3}),
}


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize(("text", "lines"), CONSTRUCTS.values(), ids=CONSTRUCTS)
def test_each_key_path_has_its_line(file: Path, text: str, lines: dict[toml.KeyPath, int], newline: str) -> None:
    """Whatever the construct, with either end of line, it is the line on which the key appears first."""
    file.write_text(text, newline=newline)
    assert toml.read(file).lines == lines


@pytest.mark.parametrize("quote", ['"', "'"], ids=["basic", "literal"])
@pytest.mark.parametrize(
    "content",
    ["", "{q}", "{q}{q}", "x", "\n\nx\n", "{q}x", "{q}{q}x", "x{q}", "\nx{q}{q}", "{q}{q}x{q}{q}", "x{q}{q}y"],
)
def test_a_multi_line_string_may_hold_its_quote(file: Path, quote: str, content: str) -> None:
    """Up to two at either end, so that it begins or ends with 4 or 5 quotes; the next key is found."""
    file.write_text(f"a = {quote * 3}{content.format(q=quote)}{quote * 3}\nb = 1")
    document = toml.read(file)
    assert document.values == {"a": content.format(q=quote).removeprefix("\n"), "b": 1}
    assert document.lines == {("a",): 1, ("b",): 2 + content.count("\n")}


def test_lines_are_in_the_order_of_the_file(file: Path) -> None:
    """So that problems are reported from top to bottom."""
    file.write_text("z = 1\n[b.c]\ny = [\n2]\n[b]\nx = 1\n[a]\n")
    assert list(toml.read(file).lines.values()) == [1, 2, 2, 3, 4, 6, 7]


def test_the_values_are_those_of_the_standard_library(file: Path) -> None:
    """They are plain Python objects."""
    file.write_text('[a]\nb = 1\nc = ["x", 0.5, true]\n')
    assert toml.read(file).values == {"a": {"b": 1, "c": ["x", 0.5, True]}}


def test_a_byte_order_mark_is_ignored(file: Path) -> None:
    """Editors on Windows write one."""
    file.write_bytes(b"\xef\xbb\xbfa = 1\n")
    assert toml.read(file) == ({"a": 1}, {("a",): 1})


def test_a_user_without_a_name_is_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container, there may be no entry for it."""
    file = tmp_path / "echod.toml"
    file.touch(mode=0)

    def getpwuid(uid: int) -> object:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    with without_privileges(), pytest.raises(Refusal, match=rf"Permission denied \(as uid {os.geteuid()}\)$"):
        toml.read(file)


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    """The exit code is 66; the message has the path and the system's error."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path, reason in (
        (tmp_path / "missing", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (loop, "Too many levels of symbolic links"),
    ):
        with pytest.raises(Refusal) as caught:
            toml.read(path)
        assert caught.value.lines == (f"{path}: can't be read: {reason}",)
        assert caught.value.exit_code == os.EX_NOINPUT


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_bytes_that_are_not_utf_8_are_refused_with_their_line(file: Path, mark: bytes, newline: bytes) -> None:
    """Latin 1 in a comment is the usual case."""
    raw = mark + newline.join((b"a = 1", b"# caf\xe9", b"", b"\xff"))
    assert refusal(file, raw).lines == (f"{file}:2: not UTF-8: byte 0xe9",)


def test_a_file_of_the_maximum_size_is_read(file: Path) -> None:
    """The limit is inclusive."""
    file.write_bytes(b"#" * toml.MAX_SIZE)
    assert toml.read(file).values == {}


def test_a_file_above_the_maximum_size_is_refused(file: Path) -> None:
    """It is not parsed."""
    refused = refusal(file, b"#" * (toml.MAX_SIZE + 1))
    assert refused.lines == (f"{file}: larger than 1048576 bytes: not a configuration of echod",)


def test_an_endless_device_is_refused() -> None:
    """No more than the maximum is read."""
    with pytest.raises(Refusal, match="larger than"):
        toml.read(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [("a", 1, 2), ("[a]\nb = 1\nc d = 2\n", 3, 3), ("a = 1\na = 2\nb = 3", 2, 6), ("\n\n[a]\n[a]\nb = 1", 4, 3)],
    ids=["no value", "two keys", "a key twice", "a table twice"],
)
def test_a_syntax_error_has_line_and_column(file: Path, text: str, line: int, column: int) -> None:
    """Those of the standard library; the line follows the path, as editors expect it."""
    (message,) = refusal(file, f"{text}\n".encode()).lines
    assert re.fullmatch(rf"{re.escape(str(file))}:{line}: .+ \(column {column}\)", message)


HINT = "; strings need quotes, true and false are lowercase"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a]\nb = localhost\n", f"2: Invalid value{HINT} (column 5)"),
        ("[a]\nb = True\n", f"2: Invalid value{HINT} (column 5)"),
        ("[a]\nb = 5m\n", f"2: Expected newline or end of document after a statement{HINT} (column 6)"),
        ("[a]\nb = 127.0.0.1\n", f"2: Expected newline or end of document after a statement{HINT} (column 10)"),
        ("[a]\nb = [off]\n", f"2: Invalid value{HINT} (column 6)"),
        ("[a]\nb = [1.2.3.4]\n", f"2: Unclosed array{HINT} (column 9)"),
        (
            "[a]\nb = 007 # bond\n",
            "2: Expected newline or end of document after a statement; a number has no leading zeros (column 6)",
        ),
        ("[a]\nb = 80 80\n", "2: Expected newline or end of document after a statement (column 8)"),
        ('[a]\nb = "x\nc = 1\n', "2: Illegal character '\\n'; the closing quote is missing (column 7)"),
        ("[a] b = 1\n", "1: Expected newline or end of document after a statement (column 5)"),
        ("[a]\nb = 1;\n", "2: Expected newline or end of document after a statement (column 6)"),
        ("[a]\nb =\n", "2: Invalid value (column 4)"),
        ("[a]\nb =", "2: Invalid value (at the end of the file)"),
    ],
)
def test_an_invalid_value_gives_a_hint(file: Path, text: str, problem: str) -> None:
    """Above all, missing quotes, which YAML does not need."""
    assert refusal(file, text.encode()).lines == (f"{file}:{problem}",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a]\n[b]\n[a]\n", "3: [a] is defined twice; put all its keys under the first one (column 3)"),
        ("[a.b]\n[c]\n[a.b]\nd = 1\n", "3: [a.b] is defined twice; put all its keys under the first one (column 5)"),
        ("a.b = 1\n[a]\n", "2: [a] is defined twice; put all its keys under the first one (column 3)"),
        ("a = {}\n[a]\n", "2: [a] is defined twice; put all its keys under the first one (column 3)"),
        ('["a b"]\n["a b"]', "2: [a b] is defined twice; put all its keys under the first one (column 7)"),
        ("[a]\nb = 1\nc = 2\nb = 1\n", "4: The key is defined twice (column 6)"),
        ("a = 1\na = 2", "2: The key is defined twice (at the end of the file)"),
    ],
)
def test_a_second_definition_is_reported(file: Path, text: str, problem: str) -> None:
    """A table with its name, a key by its line."""
    assert refusal(file, text.encode()).lines == (f"{file}:{problem}",)


def test_the_second_definition_of_a_table_with_an_apostrophe_is_reported(file: Path) -> None:
    """tomllib then quotes the name differently."""
    assert "[it's] is defined twice" in refusal(file, b'["it\'s"]\n["it\'s"]\n').lines[0]


@pytest.mark.parametrize(
    ("text", "line"), [("a =", 1), ("a = 1\nb = [\n1,", 3), ('a = 1\nb = """\n\n', 4)], ids=["value", "array", "string"]
)
def test_a_document_that_ends_too_early_is_refused_with_its_last_line(file: Path, text: str, line: int) -> None:
    """It has no column."""
    (message,) = refusal(file, text.encode()).lines
    assert re.fullmatch(rf"{re.escape(str(file))}:{line}: .+ \(at the end of the file\)", message)


@pytest.mark.parametrize("text", ["\r\r\na = 1", "a = 1\r\r\nb = 2", "a = 1\rb = 2", "# a\rb\n"])
def test_a_carriage_return_alone_is_a_syntax_error(file: Path, text: str) -> None:
    """TOML allows it only before a newline."""
    refusal(file, text.encode())


def test_an_integer_of_thousands_of_digits_is_refused(file: Path) -> None:
    """Python refuses to convert it, and gives no position."""
    assert refusal(file, b"[pool]\n\nsize = " + b"1" * 5000).lines == (f"{file}: a number has thousands of digits",)


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 100_000, "a = " + "[" * 100_000 + "]" * 100_000, "a = " + "{a=" * 100_000 + "1" + "}" * 100_000],
    ids=["arrays without end", "arrays", "inline tables"],
)
def test_nesting_too_deeply_is_refused(file: Path, text: str) -> None:
    """Python's RecursionError becomes a message, not a traceback."""
    assert refusal(file, text.encode()).lines == (f"{file}: nested too deeply",)
