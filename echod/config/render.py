"""The settings as text: as a TOML document, and the JSON Schema of the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from echod.config.settings import Settings, declared
from echod.text import literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from echod.config.settings import Setting


def toml(settings: Settings, comment: Callable[[Setting], str] | None = None) -> str:
    """Return the settings as a TOML document that is read as the same settings, with a comment after each value."""
    written = settings.model_dump(mode="json")
    lines: list[str] = []
    section = None
    for setting in declared():
        if setting.section != section:
            section = setting.section
            lines.append(f"\n[{section}]" if lines else f"[{section}]")
        line = f"{setting.key} = {literal(written[section][setting.key])}"
        lines.append(f"{line}  # {comment(setting)}" if comment else line)
    return "\n".join(lines) + "\n"


def schema() -> str:
    """Return the JSON Schema of the file, in draft 7, which most editors support."""
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
    """Return a setting's description, its bounds, and whether a change needs a restart."""
    bounds = setting.bounds
    between = f" From {bounds['minimum']} to {bounds['maximum']}." if len(bounds) > 1 else ""
    return f"{setting.field.description}{between}{'' if setting.live else ' A change needs a restart.'}"
