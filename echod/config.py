"""From the layers of values to the settings in force.

Knows nothing of the command line's grammar, and of what a setting means only what is checked against this machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from echod import descriptors, problems, sources
from echod.errors import Refusal
from echod.settings import ENV_PREFIX, Settings, declared

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from echod.sources import Layer

DEFAULT_FILE = Path("/etc/echod/echod.toml")
ENV_FILE = "ECHOD_CONFIG"


class Loaded(NamedTuple):
    """The settings in force, the file they came from, and warnings: values that work but are surely a mistake."""

    settings: Settings
    file: Path | None
    warnings: list[str]


def load(file: Path | None, flags: Mapping[str, str], environ: Mapping[str, str]) -> Loaded:
    """Merge flags (by dotted name), environment, file and defaults, in this precedence, and validate the result.

    Raises `Refusal` with a line for each problem.
    """
    file = _choose_file(file, environ)
    layers = sources.layers(file, flags, environ)
    try:
        # The keyword reaches settings_customise_sources, which BaseSettings does not let a type checker see.
        settings = Settings(sources=[sources.LayerSource(layer) for layer in layers])  # type: ignore[call-arg]
    except ValidationError as error:
        raise Refusal(*problems.explain(error.errors(), layers)) from None
    _check_descriptors(settings, layers)
    return Loaded(settings, file, list(_cautions(settings, layers)))


def _choose_file(named: Path | None, environ: Mapping[str, str]) -> Path | None:
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


def unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a warning for each `ECHOD_…` variable that names no setting."""
    known = {setting.variable: setting.variable for setting in declared()}
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX) and name != ENV_FILE and name not in known:
            yield f"{name}: unknown variable, ignored{problems.did_you_mean(name, known)}"


def _check_descriptors(settings: Settings, layers: Sequence[Layer]) -> None:
    needed, hard = descriptors.needed(settings.pool.size), descriptors.hard_limit()
    if hard is not None and needed > hard:
        raise Refusal(
            f"{problems.origin(('pool', 'size'), layers)}: pool.size: {settings.pool.size} workers need {needed} file"
            f" descriptors, the hard limit is {hard}: raise it (LimitNOFILE=, ulimit -Hn) or make the pool smaller"
        )


def _cautions(settings: Settings, layers: Sequence[Layer]) -> Iterator[str]:
    if settings.admin.socket not in ("auto", "off"):
        yield f"{problems.origin(('admin', 'socket'), layers)}: admin.socket: this version of echod opens none"
    if settings.admin.http != "off":
        yield f"{problems.origin(('admin', 'http'), layers)}: admin.http: this version of echod opens none"
