"""The settings as text: as a TOML document, and the JSON Schema of the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from echod.config.settings import Settings, declared
from echod.text import literal, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from echod.config.settings import Setting


def toml(settings: Mapping[str, Mapping[str, Any]], origins: Mapping[str, str] | None = None) -> str:
    """Return a TOML document that is read as the same settings; with their origins, each is a comment after its value."""
    sections = []
    for section, values in settings.items():
        lines = [f"[{section}]"]
        for key, value in values.items():
            line = f"{key} = {literal(value)}"
            lines.append(f"{line}  # {printable(origins[f'{section}.{key}'])}" if origins else line)
        sections.append("".join(f"{line}\n" for line in lines))
    return "\n".join(sections)


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
