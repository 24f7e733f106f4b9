"""The manual pages: well-formed, and complete."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from generate import grammar, manual

from echod.config.settings import declared
from tests.support.tools import tool

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = list(declared())
LEAVES = [command for command in grammar.read().all if not command.commands]


def rendered(page: Path) -> str:
    """Return a page as man(1) shows it, on one line, without the overstrikes that make text bold."""
    text = tool("man", "--warnings", "-Tascii", "-l", page)
    return " ".join(re.sub(r".\x08", "", text).split())


@pytest.mark.parametrize("name", ["echod.8", "echod.toml.5"])
def test_mandoc_has_no_complaint(built: Path, name: str) -> None:
    """Also not about style."""
    assert tool("mandoc", "-T", "lint", built / "man" / name) == ""


def test_the_page_of_the_program_names_all_commands_and_flags(built: Path) -> None:
    """Each command with its help text."""
    text = rendered(built / "man/echod.8")
    for command in LEAVES:
        assert " ".join(("echod", *command.words)) in text
        assert f"{command.text[0].upper()}{command.text[1:]}."[:30] in text
    for setting in SETTINGS:
        assert f"--{setting.name} " in text


def test_the_page_of_the_file_names_all_settings_with_their_defaults(built: Path) -> None:
    """In the order of the file."""
    text = rendered(built / "man/echod.toml.5")
    position = 0
    for setting in SETTINGS:
        position = text.index(f"{setting.key} = {setting.default}", position)


def test_a_line_of_text_is_not_taken_for_a_request_of_roff() -> None:
    """A dot at the beginning, quotes and backslashes are printed as they are."""
    assert manual._escaped(".x 'y' \\z a-b") == "\\&.x \\(aqy\\(aq \\ez a\\-b"


def test_the_date_is_that_of_the_newest_release() -> None:
    """An unreleased section has no date."""
    changelog = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2027-01-02\n\n## [0.1.0] - 2026-11-26\n"
    assert manual.released(changelog) == "2027-01-02"
    assert '.TH ECHOD 8 2027-01-02 "echod ' in manual.echod("2027-01-02")
    assert ".TH ECHOD.TOML 5 2027-01-02 " in manual.echod_toml("2027-01-02")


def test_a_changelog_without_a_release_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"CHANGELOG\.md has no line"):
        manual.released("## [Unreleased]\n")
