"""From the layers of values to the settings in force.

Knows nothing of the command line's grammar, and of what a setting means only what is checked against this machine.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from echod import limits
from echod.config import explain
from echod.config.layers import LayerSource, read_layers
from echod.config.settings import ENV_PREFIX, Listen, Settings, Timeouts, declared
from echod.config.types import duration_text, shown, split_endpoint
from echod.errors import Refusal
from echod.server.access import EVERYONE, Ranges

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from echod.config.layers import Layer

    _Address = ipaddress.IPv4Address | ipaddress.IPv6Address

DEFAULT_FILE = Path("/etc/echod/echod.toml")
ENV_FILE = "ECHOD_CONFIG"
_SOMAXCONN = Path("/proc/sys/net/core/somaxconn")


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
    file = _choose_file(file, environ)
    if file and again and _can_be_read_once(file):
        raise Refusal(f"{file}: a reload needs a regular file, not a pipe or a device", exit_code=os.EX_NOINPUT)
    layers = read_layers(file, flags, environ)
    found = [line for layer in layers if layer.values for line in _problems_of(layer)]
    if found:
        raise Refusal(*found)
    settings = _merge(layers)
    found = [
        *_too_many_workers(settings, layers),
        *_no_interface(settings, layers),
        *_nobody(settings, layers),
        *_taken(settings, layers),
    ]
    if found:
        raise Refusal(*found)
    warnings = [*unknown_variables(environ), *_cautions(settings, layers)]
    return Loaded(settings, file, layers, explain.capped(warnings, len(warnings)))


class Where(NamedTuple):
    """What is known of `admin.socket`: the value, why there may be another one, and whether the file has it."""

    setting: str
    trouble: Refusal | None = None
    of_file: bool = False


def admin_socket(file: Path | None, flags: Mapping[str, str], environ: Mapping[str, str]) -> Where:
    """Return `admin.socket` alone, for who asks a daemon that may run although something else is wrong by now.

    If the file can't be read, that is its trouble, and the value is what there is without it.
    """
    trouble = None
    try:
        layers = read_layers(_choose_file(file, environ), flags, environ)
    except Refusal as refusal:
        trouble = refusal
        layers = read_layers(None, flags, environ)
    for layer in layers:
        section = layer.values.get("admin")
        if isinstance(section, dict) and "socket" in section:
            alone = layer._replace(values={"admin": {"socket": section["socket"]}})
            found = _problems_of(alone)
            if found:
                raise Refusal(*found)
            return Where(section["socket"], of_file=layer is layers[-1])
    return Where(Settings.model_fields["admin"].default.socket, trouble)


def _can_be_read_once(file: Path) -> bool:
    try:
        mode = file.stat().st_mode
    except OSError:
        return False  # reading it says what is wrong
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _problems_of(layer: Layer) -> list[str]:
    try:
        _merge([layer])
    except ValidationError as error:
        return explain.explain(error.errors(), layer)
    return []


def _merge(layers: Sequence[Layer]) -> Settings:
    # The keyword reaches settings_customise_sources, which BaseSettings does not let a type checker see.
    return Settings(sources=[LayerSource(layer) for layer in layers])  # type: ignore[call-arg]


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
    known = {setting.variable.removeprefix(ENV_PREFIX): setting.variable for setting in declared()}
    for name in sorted(environ):
        key = name.removeprefix(ENV_PREFIX)
        if key != name != ENV_FILE and key not in known:
            yield f"{name}: unknown variable, ignored{explain.did_you_mean(key, known)}"


# What is wrong with values that are right by themselves, on this machine or together. Each yields lines.


def _too_many_workers(settings: Settings, layers: Sequence[Layer]) -> Iterator[str]:
    needed, hard = limits.needed(settings.pool.size), limits.hard_limit()
    if hard is not None and needed > hard:
        yield (
            f"{explain.origin(('pool', 'size'), layers)}: pool.size: {settings.pool.size} workers need {needed} file"
            f" descriptors, the hard limit is {hard}: raise it (LimitNOFILE=, ulimit -Hn) or make the pool smaller"
        )


def _no_interface(settings: Settings, layers: Sequence[Layer]) -> Iterator[str]:
    for number, host in enumerate(settings.listen.host):
        zone = host.partition("%")[2]
        try:
            if zone.isdecimal():
                socket.if_indextoname(int(zone))
            elif zone:
                socket.if_nametoindex(zone)
        except (OSError, OverflowError):
            where = explain.origin(("listen", "host", number), layers)
            yield f"{where}: listen.host: this machine has no interface {shown(zone)}"


def _nobody(settings: Settings, layers: Sequence[Layer]) -> Iterator[str]:
    access, hosts = settings.access, settings.listen.host
    versions = {4, 6} if hosts == ("*",) else {ipaddress.ip_address(host).version for host in hosts}
    allowed = [network for network in access.allow or EVERYONE if network.version in versions]
    if not allowed:
        where = explain.origin(("access", "allow"), layers)
        yield f"{where}: access.allow: has no network of IPv{versions.pop()}, on which alone is listened: nobody could connect"
    elif Ranges(access.deny).covers_all(allowed):
        what = "all that access.allow holds" if access.allow else "every address"
        yield f"{explain.origin(('access', 'deny'), layers)}: access.deny: covers {what}: nobody could connect"


def _taken(settings: Settings, layers: Sequence[Layer]) -> Iterator[str]:
    host, port = split_endpoint(settings.admin.http)
    if not port or port != settings.listen.port:
        return
    address = ipaddress.ip_address(host)
    for other in settings.listen.host:
        if other == "*" or _overlap(address, ipaddress.ip_address(other)):
            where = explain.origin(("admin", "http"), layers)
            yield f"{where}: admin.http: listen.port is {port} too, on {other}: take another port for one of them"
            return


def _overlap(one: _Address, other: _Address) -> bool:
    return one.version == other.version and (one == other or one.is_unspecified or other.is_unspecified)


def _cautions(settings: Settings, layers: Sequence[Layer]) -> Iterator[str]:
    def line(text: str, *path: str | int) -> str:
        return f"{explain.origin(path, layers)}: {path[0]}.{path[1]}: {text}"

    most = _somaxconn()
    if most < settings.listen.backlog != Listen().backlog:
        yield line(f"the kernel caps {settings.listen.backlog} at {most} (net.core.somaxconn)", "listen", "backlog")
    idle, write = settings.timeouts.idle, settings.timeouts.write
    if idle and write and write > idle and write != Timeouts().write:
        text = f"{duration_text(write)} has no effect, timeouts.idle ({duration_text(idle)}) comes first"
        yield line(text, "timeouts", "write")
    denied = Ranges(settings.access.deny)
    for number, network in enumerate(settings.access.allow):
        if denied.covers(network):
            yield line(f'"{network}" has no effect, access.deny covers it', "access", "allow", number)


def _somaxconn() -> float:
    try:
        return int(_SOMAXCONN.read_text())
    except (OSError, ValueError):
        return float("inf")
