"""The README and the guides in docs/ as a program reads them: their commands, files, and links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDES = [README, ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
_NUMBER = r"\d[\d.,]*(?: ?(?:µs|ms|s|m|h|d|B|kB|MB|GB|%)\b)?"


class Command(NamedTuple):
    """What a reader types, and the lines that the guide shows below it; "..." stands for any lines."""

    text: str
    output: list[str]


def blocks(guide: Path, language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", guide.read_text(), re.MULTILINE | re.DOTALL)


def commands(guide: Path) -> list[Command]:
    """Return what stands in blocks of `console`, in order."""
    found: list[Command] = []
    for block in blocks(guide, "console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Command(line.removeprefix("$ "), []))
            else:
                found[-1].output.append(line)
    return found


def inline(guide: Path) -> list[str]:
    """Return what stands in backquotes within the text."""
    text = re.sub(r"^```.*?^```", "", guide.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [found.replace("\n", " ").replace("\\|", "|") for found in re.findall(r"`([^`]+)`", text)]


def links(guide: Path) -> list[str]:
    """Return the targets of links that are no URLs."""
    return [target for target in re.findall(r"\]\(([^)]+)\)", guide.read_text()) if "://" not in target]


def anchors(guide: Path) -> set[str]:
    """Return what a link can name behind `#`, as Markdown viewers make it of the headings."""
    headings = re.findall(r"^#+ (.*)$", guide.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def matches(output: str, expected: list[str]) -> bool:
    """Say whether an output has the lines that a guide shows. Numbers, with their units, may be others."""
    pattern = "".join(r"(?:.*\n)*" if line == "..." else re.escape(_form(line)) + r"\n" for line in expected)
    return re.fullmatch(pattern, "".join(f"{_form(line)}\n" for line in output.splitlines())) is not None


def _form(line: str) -> str:
    """Return a line without what changes from run to run."""
    line = re.sub(r"tcp://\S+", "tcp://0", line)
    line = re.sub(r"\[[#.]*\]", "[]", line)  # the bar of the pool
    line = re.sub(rf"{_NUMBER}(?: {_NUMBER})*", "0", line)
    return re.sub(r" +", " ", line).strip()
