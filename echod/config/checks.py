"""Checks of valid values against this machine and against each other."""

from __future__ import annotations

import ipaddress
import math
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from echod import limits
from echod.config import explain
from echod.config.settings import (
    ENV_FILE,
    ENV_INSTANCE,
    ENV_PREFIX,
    VERIFIES,
    Listen,
    Settings,
    Timeouts,
    declared,
)
from echod.config.toml import user
from echod.config.types import duration_text, mode_text, rate_text, split_http_address
from echod.networks import EVERYONE, Ranges
from echod.text import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from echod.config.layers import Layer
    from echod.config.settings import Access
    from echod.networks import Network

    _Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_CGROUP, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
LARGEST_READ = 256 << 10
"""Bytes that uvloop reads at once, which a connection holds if its client does not read the echo."""
OVERHEAD = 8 << 10
"""Bytes that a connection takes besides, at most."""
TLS_OVERHEAD = 38 << 10
"""Bytes that one with TLS takes besides that, at most: OpenSSL's own, and the echo of a record that has begun in another read."""
_SOMAXCONN = Path("/proc/sys/net/core/somaxconn")
_WRITERS = 0o222
"""Bits of a mode: who may write, and with that connect (unix(7))."""
_MOST = 3
"""Values of a list in a warning."""


def problems(settings: Settings, layers: Sequence[Layer]) -> Iterator[str]:
    """Yield a line for each value that is valid by itself but impossible on this machine or with other values."""
    yield from _too_many_workers(settings, layers)
    yield from (text for is_numbered, text in _missing_interfaces(settings, layers) if is_numbered)
    yield from _nobody_can_connect(settings, layers)
    yield from _port_used_twice(settings, layers)
    yield from _path_used_twice(settings, layers)
    yield from _missing_certificates(settings, layers)


def _too_many_workers(settings: Settings, layers: Sequence[Layer]) -> Iterator[str]:
    proxied = bool(settings.access.proxies)
    needed, hard = limits.needed(settings.pool.size, proxied=proxied), limits.hard_limit()
    if hard is not None and needed > hard:
        yield (
            f"{explain.origin(('pool', 'size'), layers)}: pool.size: {settings.pool.size} workers"
            f"{', and as many connections without a PROXY header,' * proxied} need {needed} file descriptors, the hard limit is {hard}: raise it (LimitNOFILE=, ulimit -Hn) or make the pool smaller"
        )


def _missing_interfaces(settings: Settings, layers: Sequence[Layer]) -> Iterator[tuple[bool, str]]:
    """Yield whether the interface is given by number, and a line, for each link-local address whose interface is missing.

    An interface that is made later can have the name that was given. Its number is the kernel's choice.
    """
    for index, host in enumerate(settings.listen.host):
        zone = host.partition("%")[2]
        if not zone:
            continue
        is_numbered = zone.isdecimal()
        try:
            if is_numbered:
                socket.if_indextoname(int(zone))
            else:
                socket.if_nametoindex(zone)
        except (OSError, OverflowError):
            where = explain.origin(("listen", "host", index), layers)
            yield is_numbered, f"{where}: listen.host: this machine has no interface {shown(zone)}"


def _nobody_can_connect(settings: Settings, layers: Sequence[Layer]) -> Iterator[str]:
    access, hosts = settings.access, settings.listen.host
    if settings.listen.unix != "off":  # its clients have no address
        return
    # Behind an IPv4 address, a proxy may have IPv6 clients, and the other way round.
    versions = {4, 6} if hosts == ("*",) or access.proxies else {ipaddress.ip_address(host).version for host in hosts}
    allowed = [network for network in access.allow or EVERYONE if network.version in versions]
    if not allowed:
        where, version = explain.origin(("access", "allow"), layers), versions.pop()
        yield f"{where}: access.allow: has no IPv{version} network, and listen.host no other address: nobody could connect"
    elif Ranges(access.deny).covers_all(allowed):
        what = "all of access.allow" if access.allow else "every address"
        yield f"{explain.origin(('access', 'deny'), layers)}: access.deny: covers {what}: nobody could connect"


def _port_used_twice(settings: Settings, layers: Sequence[Layer]) -> Iterator[str]:
    if settings.tls.port and settings.tls.port == settings.listen.port:
        where = explain.origin(("tls", "port"), layers)
        yield f"{where}: tls.port: port {settings.tls.port} is also listen.port: change one of them"
    host, port = split_http_address(settings.admin.http)
    used = {settings.tls.port: "tls.port", settings.listen.port: "listen.port"}
    if not port or port not in used:
        return
    for other in settings.listen.host:
        if "*" in (host, other) or _overlap(ipaddress.ip_address(host), ipaddress.ip_address(other)):
            where = explain.origin(("admin", "http"), layers)
            yield f"{where}: admin.http: port {port} is also {used[port]}, on {other}: change one of them"
            return


def _path_used_twice(settings: Settings, layers: Sequence[Layer]) -> Iterator[str]:
    paths = settings.listen.unix, settings.admin.socket
    if all(path.startswith("/") for path in paths) and os.path.realpath(paths[0]) == os.path.realpath(paths[1]):
        where = explain.origin(("listen", "unix"), layers)
        yield f"{where}: listen.unix: {shown(settings.listen.unix)} is also admin.socket: change one of them"


def _missing_certificates(settings: Settings, layers: Sequence[Layer]) -> Iterator[str]:
    tls = settings.tls
    if tls.port is None:
        return
    if not tls.certificate:
        where = explain.origin(("tls", "port"), layers)
        yield f"{where}: tls.certificate: must name a PEM file, because tls.port is set"
    if tls.verify != "none" and not tls.client_ca:
        where = explain.origin(("tls", "verify"), layers)
        yield f'{where}: tls.client_ca: must name a PEM file, because tls.verify is "{tls.verify}"'


def certificates(settings: Settings) -> list[str]:
    """Return a warning for each thing about the certificate that needs attention. Raises `Refusal` if it can't be used."""
    if settings.tls.port is None:
        return []
    from echod.config import certificates as files  # noqa: PLC0415 - with OpenSSL, which commands do without

    return list(files.warnings(settings.tls, files.load(settings.tls).certificate))


def obstacles(settings: Settings, layers: Sequence[Layer]) -> Iterator[tuple[bool, str]]:
    """Yield whether it is certain, and a line, for each path at which a start could not make its socket, as things are now.

    A running daemon does not mind: it has its sockets, or says why it can't make one anew.
    """
    for section, key, path in (("listen", "unix", settings.listen.unix), ("admin", "socket", settings.admin.socket)):
        if not path.startswith("/"):
            continue
        where = f"{explain.origin((section, key), layers)}: {section}.{key}: {shown(path)}"
        if not os.access(Path(path).parent, os.W_OK | os.X_OK, effective_ids=True):
            why = f"its directory does not exist, or is closed to {user()} (RuntimeDirectory=, ReadWritePaths=)"
            yield False, f"{where}: a start would fail now: {why}"
        elif os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
            yield True, f"{where}: exists and is not a socket: remove it, or set another path"


def _overlap(one: _Address, other: _Address) -> bool:
    return one.version == other.version and (one == other or one.is_unspecified or other.is_unspecified)


def unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a warning for each `ECHOD_…` variable that names no setting."""
    known = {setting.variable.removeprefix(ENV_PREFIX): setting.variable for setting in declared()}
    for name in sorted(environ):
        key = name.removeprefix(ENV_PREFIX)
        if key != name and name not in (ENV_FILE, ENV_INSTANCE) and key not in known:
            yield f"{name}: unknown variable, ignored{explain.did_you_mean(key, known)}"


def warnings(settings: Settings, layers: Sequence[Layer]) -> Iterator[str]:
    """Yield a warning for each value that works but is probably a mistake."""

    def line(text: str, *path: str | int) -> str:
        return f"{explain.origin(path, layers)}: {path[0]}.{path[1]}: {text}"

    yield from (text for is_numbered, text in _missing_interfaces(settings, layers) if not is_numbered)
    most = _somaxconn()
    if most < settings.listen.backlog != Listen().backlog:
        yield line(f"the kernel caps {settings.listen.backlog} at {most} (net.core.somaxconn)", "listen", "backlog")
    idle, write = settings.timeouts.idle, settings.timeouts.write
    if idle and write and write > idle and write != Timeouts().write:
        text = f"{duration_text(write)} has no effect, timeouts.idle ({duration_text(idle)}) comes first"
        yield line(text, "timeouts", "write")
    limit = _memory_limit()
    buffer = settings.listen.receive_buffer if settings.listen.unix == "off" else None  # a Unix socket has the sender's
    each = OVERHEAD + min(LARGEST_READ, 2 * (buffer or LARGEST_READ))
    each += TLS_OVERHEAD if settings.tls.port is not None else 0
    if settings.pool.size * each > limit:
        needed, least = math.ceil(settings.pool.size * each / 1e6), math.floor(limit / 1e6)
        text = (
            f"if no client reads its echo, {settings.pool.size} connections take {needed} MB, the memory limit of this"
            f" control group is {least} MB: make the pool or listen.receive_buffer smaller"
        )
        yield line(text, "pool", "size")
    if settings.listen.unix.startswith("@") and settings.listen.unix_mode != Listen().unix_mode:
        yield line("has no effect, an abstract socket has no file: every user may connect", "listen", "unix_mode")
    if settings.udp.port is not None and settings.udp.rate is None:
        text = "two echo servers that one forged datagram points at each other would go on for ever"
        yield line(text, "udp", "rate")
    if settings.tls.client_ca and settings.tls.verify == "none":
        yield line('has no effect, tls.verify is "none"', "tls", "client_ca")
    denied = Ranges(settings.access.deny)
    for number, network in enumerate(settings.access.allow):
        if denied.covers(network):
            yield line(f'"{network}" has no effect, access.deny covers it', "access", "allow", number)


def widened(before: Settings, after: Settings, layers: Sequence[Layer], *, binds: bool) -> Iterator[str]:
    """Yield a warning for each setting by which a reload lets in clients that could not connect before.

    `binds` says whether `[listen]` has an effect.
    """

    def line(text: str, section: str, key: str) -> str:
        return f"{explain.origin((section, key), layers)}: {section}.{key}: lets in more clients than before: {text}"

    yield from _access_widened(before.access, after.access, line)
    rates = (("rate", before.udp.rate, after.udp.rate), ("total_rate", before.udp.total_rate, after.udp.total_rate))
    for key, was, now in rates:
        if was and not now and before.udp.port is not None:
            yield line(f'no limit, it was "{rate_text(was)}"', "udp", key)
    old, new = before.tls.verify, after.tls.verify
    if None not in (before.tls.port, after.tls.port) and VERIFIES.index(new) < VERIFIES.index(old):
        yield line(f'certificates of clients are "{new}", they were "{old}"', "tls", "verify")
    if not binds:
        return
    if hosts := [host for host in after.listen.host if not _listened(host, before.listen.host)]:
        yield line(f"also listens on {_some(hosts)}", "listen", "host")
    if after.udp.port is not None and before.udp.port is None:
        yield line("also answers UDP", "udp", "port")
    path, mode = after.listen.unix, after.listen.unix_mode
    if path not in ("off", before.listen.unix):
        yield line(f"also listens on {_some([f'unix:{path}'])}", "listen", "unix")
    elif path.startswith("/") and mode & ~before.listen.unix_mode & _WRITERS:
        yield line(f"mode {mode_text(mode)}, it was {mode_text(before.listen.unix_mode)}", "listen", "unix_mode")


def more_authorities(subjects: Sequence[str], layers: Sequence[Layer]) -> str:
    """Return a warning, as of `widened`, for a file of `tls.client_ca` with authorities that it did not have before."""
    where = explain.origin(("tls", "client_ca"), layers)
    return f"{where}: tls.client_ca: lets in more clients than before: those that {_some(subjects)} has certified"


def _access_widened(old: Access, new: Access, line: Callable[[str, str, str], str]) -> Iterator[str]:
    if old.allow and not new.allow:
        yield line(f"everyone, not only {_some(old.allow)}", "access", "allow")
    elif more := _uncovered(new.allow, old.allow or EVERYONE):
        yield line(f"also {_some(more)}", "access", "allow")
    if freed := _uncovered(old.deny, new.deny):
        yield line(f"no longer denies {_some(freed)}", "access", "deny")
    if old.per_source and not new.per_source:
        yield line(f"no limit for one source, it was {old.per_source}", "access", "per_source")
    if old.accept_rate and not new.accept_rate:
        yield line(f'no limit, it was "{rate_text(old.accept_rate)}"', "access", "accept_rate")
    if trusted := _uncovered(new.proxies, old.proxies):
        yield line(f"{_some(trusted)} may name any client", "access", "proxies")
    if freed := _uncovered(old.proxies, new.proxies):
        yield line(f"{_some(freed)} may connect without a PROXY header", "access", "proxies")


def _uncovered(networks: Iterable[Network], others: Iterable[Network]) -> list[Network]:
    """Return the networks that have an address which is in none of the others."""
    ranges = Ranges(others)
    return [network for network in networks if not ranges.covers(network)]


def _some(values: Sequence[object]) -> str:
    shown = ", ".join(f'"{value}"' for value in values[:_MOST])
    return f"{shown} and {len(values) - _MOST} more" if len(values) > _MOST else shown


def _listened(host: str, before: Sequence[str]) -> bool:
    """Say whether a client that reaches this address could reach one of those before; a loopback address adds no client."""
    if "*" in before or host in before:
        return True
    if host == "*":
        return False
    address = ipaddress.ip_address(host)
    return address.is_loopback or any(_overlap(address, ipaddress.ip_address(each)) for each in before if _is_any(each))


def _is_any(host: str) -> bool:
    return ipaddress.ip_address(host).is_unspecified


def _memory_limit() -> float:
    """Return the bytes that the control group of this process may have, or one that it is part of (cgroups(7))."""
    try:
        own = next(line[3:] for line in _CGROUP.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return math.inf
    group = _CGROUPS / own.strip("/")
    limits = []
    for each in (group, *group.parents):
        try:
            limits.append(int((each / "memory.max").read_text()))
        except (OSError, ValueError):  # it has none: "max"
            continue
    return min(limits, default=math.inf)


def _somaxconn() -> float:
    try:
        return int(_SOMAXCONN.read_text())
    except (OSError, ValueError):
        return float("inf")
