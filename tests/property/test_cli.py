"""Any words on the command line give a documented exit code, and printable lines."""

from __future__ import annotations

import os
from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st

from echod.client import paths
from echod.config.settings import declared
from echod.errors import Refusal
from tests.property.test_check import run

KNOWN = {os.EX_OK, os.EX_USAGE, os.EX_DATAERR, os.EX_NOINPUT, os.EX_UNAVAILABLE, os.EX_NOPERM, os.EX_CONFIG}
COMMANDS = ["check", "config", "show", "schema", "status", "connections", "kill", "reload", "ready", "lame-duck"]
PROBE_WORDS = [
    "-c",
    "-s",
    "-i",
    "-W",
    "-q",
    "-4",
    "--warn",
    "--crit",
    "--json",
    "--rate",
    "--yes",
    "1",
    "0.5",
    "0.1,20%",
    "h",
    "[::1]:7",
]
OPTIONS = [
    "--version",
    "--help",
    "-h",
    "-c",
    "-p",
    "-n",
    "-q",
    "--sources",
    "--json",
    "--sort",
    "--source",
    "--instance",
    "--",
    "-",
    "--p",
]
TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8) | st.binary(max_size=4).map(
    lambda raw: os.fsdecode(raw.replace(b"\0", b""))
)
FLAGS = st.sampled_from([f"--{setting.name}" for setting in declared()])
WORDS = st.one_of(
    st.sampled_from(COMMANDS), st.sampled_from(OPTIONS), FLAGS, st.tuples(FLAGS, TEXTS).map("=".join), TEXTS
).filter(lambda word: word != "run")


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([*COMMANDS, None]), st.lists(WORDS, max_size=4))
@example("kill", ["²"])
@example("kill", ["9" * 5000])
@example("connections", ["--source", "::/999999999999999999999"])
def test_any_words_give_a_known_exit_code(command: str | None, words: list[str]) -> None:
    """Never a traceback."""
    try:
        code, _, errors = run(*([command] if command else []), *words)
    except SystemExit as ended:  # argparse, after --help
        assert ended.code == os.EX_OK  # noqa: PT017 - the other outcome is as good
        return
    assert code in KNOWN, (words, errors)
    assert "Traceback" not in errors
    assert errors.replace("\n", "").isprintable()
    assert (code == os.EX_OK) <= (not errors or "warning: " in errors)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(["ping", "bench"]), st.lists(st.one_of(st.sampled_from(PROBE_WORDS), TEXTS), max_size=5))
def test_any_words_of_ping_and_bench_give_a_known_exit_code(command: str, words: list[str]) -> None:
    """Nobody is asked here: no name has an address."""
    nobody = mock.Mock(side_effect=Refusal("nobody", exit_code=2))
    with mock.patch.object(paths, "resolve", nobody):
        try:
            code, _, errors = run(command, *words)
        except SystemExit as ended:
            assert ended.code == os.EX_OK  # noqa: PT017 - the other outcome is as good
            return
    assert code in (2, 3), (words, errors)
    assert "Traceback" not in errors
    assert errors.count("\n") == 1
