"""From the layers of values to the settings in force: choose the file, validate each layer, merge, check the result."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from echod.config import checks, explain
from echod.config.layers import LayerSource, read_layers
from echod.config.settings import ENV_FILE, Settings, declared
from echod.errors import Refusal
from echod.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from echod.config.layers import Layer

DEFAULT_FILE = Path("/etc/echod/echod.toml")


class Loaded(NamedTuple):
    """The settings in force, the file and the layers that they come from, and warnings about likely mistakes."""

    settings: Settings
    file: Path | None
    layers: Sequence[Layer]
    warnings: list[str]
    has_keys: bool
    """Whether the file has a key at all. An editor, a full disk or a copy under way leaves a file without any."""

    def document(self) -> dict[str, Any]:
        """Return the values as TOML writes them, by section, and the origin of each by its dotted name."""
        origins = {each.name: printable(explain.origin((each.section, each.key), self.layers)) for each in declared()}
        return {"settings": self.settings.model_dump(mode="json"), "origins": origins}


def load(file: Path | None, flags: Mapping[str, str], environ: Mapping[str, str], *, again: bool = False) -> Loaded:
    """Merge flags (by dotted name), environment, file and defaults, in this order of precedence, and validate them.

    `again` is for a reload: a file that can be read only once is refused. Raises `Refusal` with a line for each problem,
    also in values that a higher layer overrides.
    """
    file = choose_file(file, environ)
    if file and again and _is_read_once(file):
        raise Refusal(f"{file}: a reload needs a regular file, not a pipe or a device", exit_code=os.EX_NOINPUT)
    layers = read_layers(file, flags, environ)
    found = [line for layer in layers if layer.values for line in problems_of(layer)]
    if found:
        raise Refusal(*found)
    settings = _merge(layers)
    found = list(checks.problems(settings, layers))
    if found:
        raise Refusal(*found)
    of_certificates = checks.certificates(settings)
    warnings = [*checks.unknown_variables(environ), *checks.warnings(settings, layers), *of_certificates]
    has_keys = any(isinstance(section, dict) and section for section in layers[-1].values.values())
    return Loaded(settings, file, layers, explain.capped(warnings, len(warnings)), has_keys)


def _is_read_once(file: Path) -> bool:
    try:
        mode = file.stat().st_mode
    except OSError:
        return False  # reading it gives the message
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def problems_of(layer: Layer) -> list[str]:
    """Return a line for each invalid value of a layer."""
    try:
        _merge([layer])
    except ValidationError as error:
        return explain.explain(error.errors(), layer)
    return []


def _merge(layers: Sequence[Layer]) -> Settings:
    # The keyword is for settings_customise_sources; BaseSettings hides it from type checkers.
    return Settings(sources=[LayerSource(layer) for layer in layers])  # type: ignore[call-arg]


def choose_file(named: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Return the named file, else that of $ECHOD_CONFIG, else the default file if it exists."""
    if named:
        return named
    if environ.get(ENV_FILE):
        return Path(environ[ENV_FILE])
    try:
        DEFAULT_FILE.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass  # it may exist: reading it gives the message
    return DEFAULT_FILE
