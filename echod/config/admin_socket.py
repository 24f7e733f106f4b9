"""Where the admin socket is: for the daemon, which listens there, and for the commands that connect to it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from echod.config import load
from echod.config.layers import read_layers
from echod.config.settings import Settings
from echod.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

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
    directories: Sequence[Path] = ()
    """Where instances have their sockets, each in a directory of its own below. None if one daemon is meant."""


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
            return _candidates(section["socket"], environ, None, edited=edited)
    return _candidates(Settings.model_fields["admin"].default.socket, environ, trouble)


def _candidates(
    setting: str, environ: Mapping[str, str], trouble: Refusal | None, *, edited: bool = False
) -> Candidates:
    named = [] if setting in ("off", "auto") else [Path(setting)]
    if setting != "auto" and not edited:
        return Candidates(named, trouble)
    paths = dict.fromkeys([*named, *_automatic(environ), SYSTEM])
    # Inside a service, as in ExecReload=, only that service's own daemon is meant.
    inside = environ.get("RUNTIME_DIRECTORY")
    return Candidates(list(paths), trouble, () if inside else directories(environ))


def directories(environ: Mapping[str, str]) -> list[Path]:
    """Return where instances have their sockets, in directories of their own: the user's and the system's."""
    user = [Path(environ["XDG_RUNTIME_DIR"], "echod")] if environ.get("XDG_RUNTIME_DIR") else []
    return [*user, SYSTEM.parent]


def instances(directory: Path) -> dict[str, Path]:
    """Return where instances below this directory may listen, by their names: numbers in order, then others.

    A name that would break a line, or that a terminal would act on, is none.
    """
    try:
        names = [path.name for path in directory.iterdir()]
    except OSError:  # it does not exist, or is closed to this user
        return {}
    names.sort(key=lambda name: (int(name) if name.isdecimal() else math.inf, name))
    return {name: directory / name / NAME for name in names if name != NAME and name.isprintable()}


def _automatic(environ: Mapping[str, str]) -> Iterator[Path]:
    runtime = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]  # systemd.exec(5): there may be several
    if runtime:
        yield Path(runtime, NAME)
    if environ.get("XDG_RUNTIME_DIR"):
        yield Path(environ["XDG_RUNTIME_DIR"], "echod", NAME)
