"""From the layers of values to the settings in force.

Knows nothing of the command line's grammar, and of what a setting means only what is checked against this machine.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from echod.config import checks, explain
from echod.config.layers import LayerSource, read_layers
from echod.config.settings import ENV_FILE, Settings
from echod.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from echod.config.layers import Layer

DEFAULT_FILE = Path("/etc/echod/echod.toml")


class Loaded(NamedTuple):
    """The settings in force, where their values stand, and warnings: values that work but are surely a mistake."""

    settings: Settings
    file: Path | None
    layers: Sequence[Layer]
    warnings: list[str]


def load(file: Path | None, flags: Mapping[str, str], environ: Mapping[str, str], *, again: bool = False) -> Loaded:
    """Merge flags (by dotted name), environment, file and defaults, in this precedence, and validate the result.

    With `again`, a file that can be read only once is refused. Raises `Refusal` with a line for each problem, also for
    those in values that a higher source overrides.
    """
    file = choose_file(file, environ)
    if file and again and _can_be_read_once(file):
        raise Refusal(f"{file}: a reload needs a regular file, not a pipe or a device", exit_code=os.EX_NOINPUT)
    layers = read_layers(file, flags, environ)
    found = [line for layer in layers if layer.values for line in problems_of(layer)]
    if found:
        raise Refusal(*found)
    settings = _merge(layers)
    found = list(checks.problems(settings, layers))
    if found:
        raise Refusal(*found)
    warnings = [*checks.unknown_variables(environ), *checks.cautions(settings, layers)]
    return Loaded(settings, file, layers, explain.capped(warnings, len(warnings)))


def _can_be_read_once(file: Path) -> bool:
    try:
        mode = file.stat().st_mode
    except OSError:
        return False  # reading it says what is wrong
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def problems_of(layer: Layer) -> list[str]:
    """Return a line for each value of a layer that is wrong by itself."""
    try:
        _merge([layer])
    except ValidationError as error:
        return explain.explain(error.errors(), layer)
    return []


def _merge(layers: Sequence[Layer]) -> Settings:
    # The keyword reaches settings_customise_sources, which BaseSettings does not let a type checker see.
    return Settings(sources=[LayerSource(layer) for layer in layers])  # type: ignore[call-arg]


def choose_file(named: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Return the file that was named, else that of $ECHOD_CONFIG, else the default file if it exists."""
    if named:
        return named
    if environ.get(ENV_FILE):
        return Path(environ[ENV_FILE])
    try:
        DEFAULT_FILE.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass  # it may be there: reading it says what is wrong
    return DEFAULT_FILE
