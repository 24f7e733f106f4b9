"""Where the admin socket is: for the daemon, which listens there, and for the commands that connect to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from echod.config import load
from echod.config.layers import read_layers
from echod.config.settings import Settings
from echod.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NAME = "admin.sock"
SYSTEM = Path("/run/echod", NAME)
"""The socket of the system's service, in its $RUNTIME_DIRECTORY."""
NOWHERE = "no admin socket: neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR is set; set admin.socket"
"""Why "auto" is no path, for the log."""


class Candidates(NamedTuple):
    """Where the daemon may listen."""

    paths: list[Path]
    """Likeliest first."""
    trouble: Refusal | None = None
    """The error in reading the file. The unread file may name another path."""


def of_daemon(setting: str, environ: Mapping[str, str]) -> Path | None:
    """Return the path at which a daemon with this `admin.socket` listens, or `None` for none."""
    if setting == "off":
        return None
    return next(_automatic(environ), None) if setting == "auto" else Path(setting)


def candidates(file: Path | None, flags: Mapping[str, str], environ: Mapping[str, str]) -> Candidates:
    """Return where the daemon may listen.

    Only `admin.socket` is validated: the daemon may run although another setting has become invalid since it started.
    Raises `Refusal` if `admin.socket` is invalid.
    """
    trouble = None
    try:
        layers = read_layers(load.choose_file(file, environ), flags, environ)
    except Refusal as refusal:
        trouble = refusal
        layers = read_layers(None, flags, environ)
    for layer in layers:
        section = layer.values.get("admin")
        if isinstance(section, dict) and "socket" in section:
            alone = layer._replace(values={"admin": {"socket": section["socket"]}})
            found = load.problems_of(alone)
            if found:
                raise Refusal(*found)
            # The default file may have changed since the daemon read it: look where "auto" has the socket, too. With
            # -c, only the daemon of that file is meant.
            edited = layer is layers[-1] and file is None
            return Candidates(_paths(section["socket"], environ, edited=edited))
    return Candidates(_paths(Settings.model_fields["admin"].default.socket, environ), trouble)


def _paths(setting: str, environ: Mapping[str, str], *, edited: bool = False) -> list[Path]:
    named = [] if setting in ("off", "auto") else [Path(setting)]
    automatic = [*_automatic(environ), SYSTEM] if edited or setting == "auto" else []
    return list(dict.fromkeys(named + automatic))


def _automatic(environ: Mapping[str, str]) -> Iterator[Path]:
    runtime = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]  # systemd.exec(5): there may be several
    if runtime:
        yield Path(runtime, NAME)
    if environ.get("XDG_RUNTIME_DIR"):
        yield Path(environ["XDG_RUNTIME_DIR"], "echod", NAME)
