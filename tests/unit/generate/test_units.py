"""How echod@.service is made from echod.service. tests/unit/test_units.py checks what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from generate import units

SERVICE = (Path(__file__).parents[3] / "systemd/echod.service").read_text()


def test_an_instance_keeps_the_comments_but_has_its_own_head() -> None:
    made = units.instance(SERVICE)
    assert made.startswith("# One of several echod processes")
    assert SERVICE.splitlines()[0] not in made
    comments = [line for line in SERVICE.partition("[Unit]")[2].splitlines() if line.startswith("#")]
    assert [line for line in comments if line not in made.splitlines()] == []


@pytest.mark.parametrize("line", [*units._CHANGED, *units._ADDED])
@pytest.mark.parametrize("lines", [[], ["{}", "{}"]], ids=["missing", "twice"])
def test_a_difference_that_does_not_apply_once_is_an_error(line: str, lines: list[str]) -> None:
    """So an edit of echod.service cannot drop a difference unnoticed."""
    edited = SERVICE.replace(f"\n{line}\n", "".join(f"\n{text.format(line)}" for text in lines) + "\n")
    with pytest.raises(ValueError, match=r"packaging/generate/units\.py"):
        units.instance(edited)
