"""Where an echo service is, and how to reach it: the form of TARGET, its addresses, and the PROXY header."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from echod.errors import Refusal
from echod.text import shown

if TYPE_CHECKING:
    import ssl

WRONG_USAGE, NO_SERVICE = 3, 2
"""Exit codes of monitoring plugins: UNKNOWN and CRITICAL."""
ECHO_PORT = 7
"""RFC 862."""
_KINDS = ("tcp", "tls", "udp")
_HOST = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<host>[^\[\]:/?#@\s]+))(?::(?P<port>[0-9]{1,5}))?")
_MAX_PORT = 65535
_LONGEST_UNIX_PATH = 107  # bytes: sun_path of unix(7) without its NUL
_V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_V2_PROXY = 0x21
_V2_FAMILIES = {socket.AF_INET: 0x11, socket.AF_INET6: 0x21}  # TCP over IPv4, TCP over IPv6
_V1_FAMILIES = {socket.AF_INET: "TCP4", socket.AF_INET6: "TCP6"}


class Target(NamedTuple):
    """An echo service as the user names it: the kind ("tcp", "tls", "udp" or "unix"), host and port, or a path as host."""

    kind: str
    host: str
    port: int = 0

    def __str__(self) -> str:
        """Return the URL, as the daemon's log has it: "tcp://localhost:7", "unix:/run/echo.sock"."""
        if self.kind == "unix":
            return f"unix:{self.host}"
        return (
            f"{self.kind}://[{self.host}]:{self.port}" if ":" in self.host else f"{self.kind}://{self.host}:{self.port}"
        )


class Address(NamedTuple):
    """What a socket connects to."""

    family: int
    sockaddr: Any

    def fields(self) -> dict[str, Any]:
        """Return it as JSON has it: {address, port}, or the {path} of a Unix socket."""
        if self.family == socket.AF_UNIX:
            return {"path": self.sockaddr.replace("\0", "@")}
        return dict(zip(("address", "port"), self.sockaddr, strict=False))


class Route(NamedTuple):
    """The way to a service: its addresses in the order in which to try them, and what comes before the messages."""

    target: Target
    addresses: list[Address]
    tls: ssl.SSLContext | None = None
    proxy: str | None = None
    """The version of the PROXY header to send first: "v1" or "v2"."""


def parse(text: str) -> Target:
    """Return the target. Raises `ValueError` with a message that begins with "must"."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith(("/", "@")) or path == "@" or "\0" in path:
            raise ValueError(f'must be "unix:/path" or "unix:@name", got {shown(text)}')
        if len(os.fsencode(path)) > _LONGEST_UNIX_PATH:
            raise ValueError(f"must have a path of at most {_LONGEST_UNIX_PATH} bytes (unix(7)), got {shown(text)}")
        return Target("unix", path)
    kind, separator, rest = text.partition("://")
    if not separator:
        kind, rest = "tcp", text
    if _is_ipv6(rest):  # without brackets it can't have a port
        rest = f"[{rest}]"
    found = _HOST.fullmatch(rest)
    if kind not in _KINDS or not found or (found["v6"] and not _is_ipv6(found["v6"])):
        raise ValueError(
            f'must be e.g. "host", "host:7007", "[::1]:7007", "tls://host" or "unix:/path", got {shown(text)}'
        )
    if found["v6"] and ipaddress.IPv6Address(found["v6"]).is_link_local and "%" not in found["v6"]:
        raise ValueError(
            f'must name the interface of a link-local address, e.g. "[fe80::1%eth0]:7007", got {shown(text)}'
        )
    port = int(found["port"] or ECHO_PORT)
    if not 1 <= port <= _MAX_PORT:
        raise ValueError(f"must have a port from 1 to {_MAX_PORT}, got {shown(text)}")
    return Target(kind, found["v6"] or found["host"], port)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def resolve(target: Target, family: int = socket.AF_UNSPEC) -> list[Address]:
    """Return the addresses of the target, the families in turn (RFC 8305, 4). Raises `Refusal` if there are none."""
    if target.kind == "unix":
        path = target.host
        return [Address(socket.AF_UNIX, f"\0{path[1:]}" if path.startswith("@") else path)]
    kind = socket.SOCK_DGRAM if target.kind == "udp" else socket.SOCK_STREAM
    try:
        found = socket.getaddrinfo(target.host, target.port, family, kind)
    except socket.gaierror as error:
        raise Refusal(f"echod: {target}: {error.strerror}", exit_code=NO_SERVICE) from None
    except UnicodeError:  # a label of the name is empty or too long
        raise Refusal(f"echod: {target}: not a host name", exit_code=WRONG_USAGE) from None
    addresses = [Address(number, sockaddr) for number, _, _, _, sockaddr in found]
    ours = [each for each in addresses if each.family == addresses[0].family]
    others = [each for each in addresses if each.family != addresses[0].family]
    paired = [each for pair in zip(ours, others, strict=False) for each in pair]
    return paired + ours[len(others) :] + others[len(ours) :]


def is_near(address: Address) -> bool:
    """Return whether it is of this machine or of a private network: loopback, private or link-local."""
    if address.family == socket.AF_UNIX:
        return True
    host = ipaddress.ip_address(address.sockaddr[0].partition("%")[0])
    mapped = getattr(host, "ipv4_mapped", None)
    return (mapped or host).is_private or host.is_link_local


def proxy_header(version: str, sock: socket.socket) -> bytes:
    """Return the header that names this socket's own ends, as HAProxy's proxy-protocol.txt has it (2.1, 2.2)."""
    family = _V1_FAMILIES.get(sock.family)
    if family is None:  # a Unix socket
        return b"PROXY UNKNOWN\r\n" if version == "v1" else _V2_SIGNATURE + struct.pack("!BBH", _V2_PROXY, 0, 0)
    (source, source_port), (destination, destination_port) = sock.getsockname()[:2], sock.getpeername()[:2]
    hosts = [host.partition("%")[0] for host in (source, destination)]
    if version == "v1":
        return f"PROXY {family} {hosts[0]} {hosts[1]} {source_port} {destination_port}\r\n".encode()
    packed = b"".join(socket.inet_pton(sock.family, host) for host in hosts)
    body = packed + struct.pack("!HH", source_port, destination_port)
    return _V2_SIGNATURE + struct.pack("!BBH", _V2_PROXY, _V2_FAMILIES[sock.family], len(body)) + body
