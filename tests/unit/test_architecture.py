"""docs/architecture.md shows the packages as they are."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_picture_has_the_layers_that_are_checked() -> None:
    """From top to bottom, as import-linter reads them in `make lint`."""
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [set(re.findall(r"\w+", layer)) for layer in contract["layers"]]
    rows = re.split(r"^ +[├└].*\n", PAGE.partition("```text\n")[2].partition("```")[0], flags=re.MULTILINE)[:-1]
    drawn = [
        {name for cell in row.rpartition("┐\n")[2].splitlines()[0].split("│")[1:-1] for name in names(cell)}
        for row in rows
    ]
    assert drawn == layers


def names(cell: str) -> list[str]:
    return re.split(r"  +", cell.strip())[0].split(", ")


def test_each_module_of_a_package_is_in_the_table() -> None:
    """And no other."""
    table = PAGE.partition("| package | module | what it has |")[2].partition("\n\n")[0]
    listed: set[str] = set()
    package = ""
    for row in table.splitlines()[2:]:
        first, modules = row.split("|")[1:3]
        package = first.strip(" `") or package
        listed |= {f"{package}/{name}" for name in re.findall(r"`(\w+)`", modules)}
    folders = {each.partition("/")[0] for each in listed}
    files = {f"{file.parent.name}/{file.stem}" for each in folders for file in (ROOT / "echod" / each).glob("*.py")}
    assert listed == {file for file in files if not file.endswith("__init__")}
