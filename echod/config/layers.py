"""The layers of values: flags, environment variables and the file, each with the origin of every value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_settings import PydanticBaseSettingsSource

from echod.config import toml
from echod.config.settings import Settings, declared

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pydantic.fields import FieldInfo

    from echod.config.settings import Setting
    from echod.config.toml import KeyPath


class Layer(NamedTuple):
    """The values of one layer, and the origin of each: a flag, a variable or `FILE:LINE`."""

    values: dict[str, Any]
    origins: Mapping[KeyPath, str]


def read_layers(file: Path | None, flags: Mapping[str, str], environ: Mapping[str, str]) -> list[Layer]:
    """Return the flags (by dotted name), the environment and the file, in the order of precedence.

    Raises `Refusal` if the file can't be read or is not TOML.
    """
    return [
        _text_layer(flags, lambda setting: (setting.name, f"--{setting.name}")),
        _text_layer(environ, lambda setting: (setting.variable, setting.variable)),
        _file_layer(file),
    ]


def _text_layer(texts: Mapping[str, str], names: Callable[[Setting], tuple[str, str]]) -> Layer:
    values: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    for setting in declared():
        name, origin = names(setting)
        if name in texts:
            values.setdefault(setting.section, {})[setting.key] = setting.from_text(texts[name])
            origins[setting.section, setting.key] = origin
    return Layer(values, origins)


def _file_layer(file: Path | None) -> Layer:
    if file is None:
        return Layer({}, {})
    document = toml.read(file)
    return Layer(document.values, {path: f"{file}:{line}" for path, line in document.lines.items()})


class LayerSource(PydanticBaseSettingsSource):
    """Passes a layer to pydantic-settings."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(Settings)
        self._layer = layer

    def __call__(self) -> dict[str, Any]:  # noqa: D102 - the base class documents it
        return self._layer.values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Never called: `__call__` returns all values at once."""
        raise NotImplementedError  # pragma: no cover - abstract in the base class, which calls it in its own __call__
