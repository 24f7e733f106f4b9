"""Any configuration is valid or refused with an exit code and lines, never with a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st

from echod import cli
from echod.config import load as config
from echod.config.settings import Setting, Settings, declared

if TYPE_CHECKING:
    from collections.abc import Sequence

SETTINGS = list(declared())
FINE = {os.EX_OK, os.EX_NOINPUT, os.EX_CONFIG}

# TOML with any values, and with known and unknown names.


def _string(text: str) -> str:
    return '"' + "".join(c if c.isalnum() and c.isascii() else _escape(c) for c in text) + '"'


def _escape(char: str) -> str:
    number = ord(char)
    return f"\\U{number if not 0xD800 <= number < 0xE000 else 0xFFFD:08x}"


_TEXT = st.text(max_size=12)
_TEMPTING = st.sampled_from(
    [
        "*",
        "off",
        "auto",
        "::1",
        "127.0.0.1",
        "10.0.0.0/8",
        "fe80::1%lo",
        "5m",
        "0s",
        "500/s",
        "json",
        "wait",
        "64Ki",
        "/x",
    ]
)
_SCALARS = st.one_of(
    st.integers(-(2**80), 2**80).map(str),
    st.integers(0, 70_000).map(str),
    st.floats().map(repr),
    st.sampled_from(["true", "false", "0xff", "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z"]),
    st.one_of(_TEXT, _TEMPTING).map(_string),
)
_NAMES = st.one_of(
    st.sampled_from([*Settings.model_fields, *(setting.key for setting in SETTINGS)]), st.text(max_size=8)
)


def _inline(items: dict[str, str]) -> str:
    return "{" + ", ".join(f"{_string(name)} = {value}" for name, value in items.items()) + "}"


_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: f"[{', '.join(items)}]"),
        st.dictionaries(_NAMES, inner, max_size=4).map(_inline),
    ),
    max_leaves=8,
)


def _values_of(setting: Setting) -> st.SearchStrategy[str]:
    """Return values for the setting, most of them of the right type."""
    if "enum" in setting.form.schema:
        return st.sampled_from(setting.form.schema["enum"]).map(_string)
    return st.one_of(_TEMPTING.map(_string), _VALUES, st.just(setting.default))


_KNOWN = st.sampled_from(SETTINGS).flatmap(
    lambda setting: _values_of(setting).map(lambda value: (setting.section, setting.key, value))
)
_JUNK = st.tuples(_NAMES, _NAMES, _VALUES)


@st.composite
def _documents(draw: st.DrawFn) -> str:
    """Draw sections with distinct keys, and sometimes a key outside of them."""
    sections: dict[str, dict[str, str]] = {}
    for section, key, value in draw(st.lists(st.one_of(_KNOWN, _KNOWN, _KNOWN, _JUNK), max_size=8)):
        sections.setdefault(section, {})[key] = value
    beside = draw(st.dictionaries(_NAMES, _VALUES, max_size=1))
    lines = [f"{_string(name)} = {value}" for name, value in beside.items() if name not in sections]
    for section, keys in sections.items():
        lines += [f"[{_string(section)}]", *(f"{_string(key)} = {value}" for key, value in keys.items())]
    return "\n".join(lines)


# The properties.


def run(*words: str) -> tuple[int, str, str]:
    """Return the exit code, output and errors of a command, on a machine without a configuration."""
    out, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, clear=True),
        mock.patch.object(config, "DEFAULT_FILE", Path("/nonexistent/echod.toml")),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        code = cli.run(words)
    return code, out.getvalue(), errors.getvalue()


def check(raw: bytes, flags: Sequence[str] = ()) -> int:
    """Check a file with these bytes; if it is valid, what `config show` prints must give the same settings."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "echod.toml")
        file.write_bytes(raw)
        code, out, errors = run("check", "-c", str(file), *flags)
        assert code in FINE, errors
        assert "Traceback" not in errors
        assert errors.replace("\n", "").isprintable()
        if code != os.EX_OK:
            assert out == ""
            assert all(line.startswith((f"{file}:", "--", "and ")) for line in errors.splitlines())
            assert errors
            return code
        assert out == f"{file}: ok\n"
        assert all(line.startswith("warning: ") for line in errors.splitlines())
        shown = run("config", "show", "-c", str(file), *flags)
        assert shown[0] == os.EX_OK
        file.write_text(shown[1])
        assert run("config", "show", "-c", str(file))[:2] == shown[:2]
    return code


@settings(max_examples=80)
@given(st.one_of(st.binary(), st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))))
@example(b"\xff\xfe[\x00p\x00")
@example(b"")
@example(b"\x00")
def test_any_bytes_are_a_configuration_or_refused(raw: bytes) -> None:
    """With a documented exit code."""
    check(raw)


@settings(max_examples=80)
@given(_documents())
def test_any_toml_is_a_configuration_or_refused(text: str) -> None:
    """Known names with any values, and unknown names."""
    check(text.encode())


@settings(max_examples=50)
@given(_documents(), st.integers(min_value=0), st.text(max_size=3))
def test_a_configuration_with_a_typing_error_is_valid_or_refused(text: str, place: int, slip: str) -> None:
    """It was valid TOML before."""
    at = place % (len(text) + 1)
    check((text[:at] + slip + text[at + len(slip) :]).encode("utf-8", "surrogatepass"))


_ARGUMENTS = st.one_of(
    _TEXT,
    _TEMPTING,
    st.integers(-10, 70_000).map(str),
    st.lists(_TEMPTING, max_size=3).map(",".join),
    st.lists(st.one_of(_TEMPTING, st.integers(), st.none(), st.lists(st.none())), max_size=3).map(json.dumps),
    st.text('[]{}",:1e-. ', max_size=8),
    st.binary(max_size=6).map(os.fsdecode),
)


@settings(max_examples=80)
@given(st.dictionaries(st.sampled_from(SETTINGS).map(lambda setting: setting.name), _ARGUMENTS, max_size=4))
def test_any_flag_is_valid_or_refused(flags: dict[str, str]) -> None:
    """Also bytes that are not UTF-8."""
    check(b"", [f"--{name}={text}" for name, text in flags.items()])


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(SETTINGS).flatmap(lambda it: _values_of(it).map(lambda value: (it, value))), max_size=3)
)
def test_any_values_of_known_settings_are_valid_or_refused(values: list[tuple[Setting, str]]) -> None:
    """Without other keys, so that many are valid, alone and together."""
    check("".join({setting.name: f"{setting.name} = {value}\n" for setting, value in values}.values()).encode())
