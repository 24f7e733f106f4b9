"""Writes the shipped configuration, its schema, and the table of settings in the guide."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from echod.config.render import described, schema
from echod.config.settings import Settings, declared

if TYPE_CHECKING:
    from collections.abc import Iterator

SHIPPED = Path("config/echod.toml")
SCHEMA = SHIPPED.with_suffix(".schema.json")
README = Path("README.md")

_HEAD = f"""\
#:schema ./{SCHEMA.name}
# The configuration of echod: every setting, with its default. `echod check -c FILE` says whether a file is right,
# `echod config show -c FILE` what is in force with it.
#
# A flag (`--pool.size 10`) wins over a variable (`ECHOD_POOL__SIZE=10`), a variable over this file, this file over the
# default. Durations are written "500ms", "30s", "5m" or "1h30m"; counts 1024, 10_000 or "64Ki". After a change,
# `kill -HUP` reloads the file without touching a connection; what needs a restart says so.
"""
_TABLE = "<!-- settings: written by `make reference` -->\n", "<!-- end of settings -->\n"
_WIDTH = 118


def shipped() -> str:
    """Return the commented file."""
    lines = [_HEAD]
    section = None
    for setting in declared():
        if setting.section != section:
            section = setting.section
            lines += [*_comment(Settings.model_fields[section].annotation.__doc__), f"[{section}]"]
        lines += [*_comment(described(setting)), f"{setting.key} = {setting.default}", ""]
    return "\n".join(lines)


def _comment(text: str | None) -> list[str]:
    return textwrap.wrap(text or "", _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def table() -> str:
    """Return the settings as a table in Markdown."""
    return "".join(["| setting | default | meaning |\n", "|---|---|---|\n", *_rows()])


def _rows() -> Iterator[str]:
    for setting in declared():
        cells = (f"`{setting.name}`", f"`{setting.default}`", described(setting))
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"


def write(root: Path) -> None:
    """Bring the files up to date that are generated, wholly or in part."""
    (root / SHIPPED).write_text(shipped())
    (root / SCHEMA).write_text(schema())
    readme = (root / README).read_text()
    begin, end = _TABLE
    before, _, rest = readme.partition(begin)
    after = rest.partition(end)[2]
    (root / README).write_text(f"{before}{begin}{table()}{end}{after}")


if __name__ == "__main__":
    write(Path())
