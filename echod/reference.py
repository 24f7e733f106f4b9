"""The declared settings, written down: as TOML, as JSON Schema, as the shipped file and as the README's table.

Knows nothing of where values come from. `python -m echod.reference` (`make reference`) brings the files up to date.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echod.settings import Settings, declared
from echod.values import literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from echod.settings import Setting

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


def toml(settings: Settings, remark: Callable[[Setting], str] | None = None) -> str:
    """Return the settings as a TOML document, which gives the same settings again; a remark ends its line."""
    written = settings.model_dump(mode="json")
    lines: list[str] = []
    section = None
    for setting in declared():
        if setting.section != section:
            section = setting.section
            lines.append(f"\n[{section}]" if lines else f"[{section}]")
        line = f"{setting.key} = {literal(written[section][setting.key])}"
        lines.append(f"{line}  # {remark(setting)}" if remark else line)
    return "\n".join(lines) + "\n"


def schema() -> str:
    """Return the JSON Schema (draft 7, as most editors know it) of the file."""
    properties: dict[str, Any] = {}
    for section, field in Settings.model_fields.items():
        properties[section] = {
            "type": "object",
            "description": field.annotation.__doc__,
            "additionalProperties": False,
            "properties": {setting.key: _property(setting) for setting in declared() if setting.section == section},
        }
    document = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "The configuration of echod",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _property(setting: Setting) -> dict[str, Any]:
    form = dict(setting.form.schema)
    if "anyOf" in form and setting.bounds:
        form["anyOf"] = [{**way, **setting.bounds} if way["type"] == "integer" else way for way in form["anyOf"]]
    return {"description": described(setting), "default": json.loads(setting.default), **form}


def described(setting: Setting) -> str:
    """Return what a setting means, its bounds, and whether it needs a restart."""
    bounds = setting.bounds
    within = f" {bounds['minimum']} to {bounds['maximum']}." if len(bounds) > 1 else ""
    return f"{setting.field.description}{within}{'' if setting.live else ' A change needs a restart.'}"


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
