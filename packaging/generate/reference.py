"""The shipped configuration file, and the table of settings in the guide to the configuration."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from echod.config.render import described
from echod.config.settings import Settings, declared

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = """\
#:schema ./echod.schema.json
# The configuration of echod: every setting, with its default. `echod check -c FILE` validates a file,
# `echod config show -c FILE` shows the settings that result from it.
#
# A flag (`--pool.size 10`) overrides a variable (`ECHOD_POOL__SIZE=10`), a variable this file, this file the default.
# A duration is written "500ms", "30s", "5m" or "1h30m"; a count 1024, 10_000 or "64Ki". `echod reload`, or signal HUP,
# applies a change of this file without touching a connection; settings that need a restart say so.
"""
_BEGIN = "<!-- settings: written by `make reference` -->\n"
_END = "<!-- end of settings -->\n"
_WIDTH = 118


def shipped() -> str:
    """Return the configuration file with every setting and a comment above each."""
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


def with_table(guide: str) -> str:
    """Return the guide with the table between its two marks; ValueError if they are not there, once each."""
    if guide.count(_BEGIN) != 1 or guide.count(_END) != 1:
        raise ValueError(f"the guide needs each of these lines once: {_BEGIN.strip()} {_END.strip()}")
    before, _, rest = guide.partition(_BEGIN)
    after = rest.partition(_END)[2]
    return f"{before}{_BEGIN}{table()}{_END}{after}"
