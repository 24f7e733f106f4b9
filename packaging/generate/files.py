"""Which files are generated, and what each is made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from echod.config import render
from generate import completion, manual, reference, units

if TYPE_CHECKING:
    from pathlib import Path


def committed(root: Path) -> dict[str, str]:
    """Return path and text of each file that is committed: people read these without building echod first."""
    guide = "docs/configuration.md"
    return {
        "config/echod.toml": reference.shipped(),
        "config/echod.schema.json": render.schema(),
        guide: reference.with_table((root / guide).read_text()),
    }


def built(root: Path) -> dict[str, str]:
    """Return path and text of each file that `make install` and `make deb` need beside the committed ones."""
    date = manual.released((root / "CHANGELOG.md").read_text())
    return {
        "build/echod.toml": reference.shipped(),  # config/echod.toml may be edited: `make run` serves it
        "build/man/echod.8": manual.echod(date),
        "build/man/echod.toml.5": manual.echod_toml(date),
        "build/completions/echod.bash": completion.bash(),
        "build/completions/_echod": completion.zsh(),
        "build/completions/echod.fish": completion.fish(),
        "build/systemd/echod@.service": units.instance((root / "systemd/echod.service").read_text()),
    }


_TARGETS = {"reference": committed, "build": built}


def write(root: Path, target: str) -> None:
    """Write the files of one target, "reference" or "build", below `root`."""
    for path, text in _TARGETS[target](root).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
