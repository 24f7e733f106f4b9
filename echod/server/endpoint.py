"""The two ends of a connection as values: the endpoint that listens, and the peer that connects.

An `Endpoint` is what the settings ask for, and what a reload compares. A `Listener` is an endpoint with its socket. A
`UnixPeer` is counted by its user. A `Peer` is counted by its `source`: an IPv4 address alone, or the /64 network of an IPv6
address, because an IPv6 site gives each of its links a /64 and each host may use any number of addresses in it. The source of
a load balancer's check is empty: it counts for nobody. docs/configuration.md has the table of the
addresses for which that would be wrong: one /64 holds many IPv4 addresses there, or all hosts of a link.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from echod.text import printable

if TYPE_CHECKING:
    from echod.unix import UnixSocket

from echod.errors import Refusal

_MAPPED = "::ffff:"
_SUBNET = 8  # bytes of an IPv6 address
_NO_HOST = bytes(8)

# Prefixes of IPv6 addresses that are made of an IPv4 address.
_6TO4 = bytes.fromhex("2002")  # RFC 3056, 2: the next 32 bits are the IPv4 address of the site
_TEREDO = bytes.fromhex("20010000")  # RFC 4380, 4: then the server, flags, the client's port and its address, inverted
_TRANSLATED = (
    bytes.fromhex("0064ff9b 00000000 00000000"),  # RFC 6052, 2.1: the well-known prefix of NAT64 and SIIT
    bytes.fromhex("00000000 00000000 ffff0000"),  # RFC 2765, 2.1: IPv4-translated
)
_LOCAL_TRANSLATED = bytes.fromhex("0064ff9b 0001")  # RFC 8215: with a prefix of any length, see `_ipv4_inside`
_COMPATIBLE = bytes(12)  # RFC 4291, 2.5.5.1; ::1 is there too

# Two ranges hold almost all clients, and nothing special: from 2001:1:: and from 2003::.
_PLAIN_FROM, _PLAIN_TO = bytes.fromhex("20010001"), bytes.fromhex("2002")
_PLAIN_AGAIN_FROM, _LINK_LOCAL = bytes.fromhex("2003"), bytes.fromhex("fe80")
_AFTER_LINK_LOCAL = bytes.fromhex("fec0")  # RFC 4291, 2.5.6: fe80::/10


class Endpoint(NamedTuple):
    """Where to listen: the kind of listener ("tcp"), a host ("*" or a numeric address), and a port (0: any free one).

    Of a Unix socket: the kind and the path; "@name" is an abstract one.
    """

    kind: str
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        """Return the URL that logs use: "tcp://127.0.0.1:7007", "unix:/path"; IPv6 in brackets (RFC 3986, 3.2.2)."""
        if self.path:
            return printable(f"{self.kind}:{self.path}")
        return (
            f"{self.kind}://[{self.host}]:{self.port}" if ":" in self.host else f"{self.kind}://{self.host}:{self.port}"
        )


class AddressMissing(Refusal):
    """This machine does not have the address of an endpoint, or its interface. It may come later."""

    WHY = f"can't listen: {os.strerror(errno.EADDRNOTAVAIL)}"

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(f"echod: {endpoint}: {self.WHY}", exit_code=os.EX_UNAVAILABLE)
        self.host = endpoint.host


class Listener(NamedTuple):
    """An endpoint that is bound: its port is the real one, also where 0 was asked for."""

    endpoint: Endpoint
    sock: socket.socket
    url: str
    """The address that the kernel has bound, as logs have it: "tcp://[::]:7007" for "*"."""
    backlog: int | None
    """`None` if the kernel does not tell."""
    inherited: bool = False
    """Whether the service manager holds it too: clients in its backlog are then served by the next process."""
    file: UnixSocket | None = None
    """The file of a Unix socket that this process has made."""

    @property
    def is_reachable(self) -> bool:
        """Whether clients of the endpoint reach this socket: its file or its interface may have been removed or replaced."""
        if self.file:
            return self.file.is_there
        zone = self.endpoint.host.partition("%")[2]
        return not zone or self.inherited or self._is_on(zone)

    def _is_on(self, zone: str) -> bool:
        """Return whether the interface is still that on which the socket was bound: one that is made anew has a new number."""
        try:
            name = socket.if_indextoname(self.sock.getsockname()[3])
        except OSError:
            return False
        return name == zone or zone.isdecimal()

    def hide(self) -> None:
        """Remove the file, if there is one: clients that connect from now on do not reach this socket."""
        if self.file:
            self.file.close()

    def close(self) -> None:
        """Close the socket, and remove its file."""
        self.hide()
        self.sock.close()


class Peer:
    """The other end of a connection: an address, IPv4 also if the kernel gave an IPv4-mapped one, and a port.

    The arguments are those of a socket address of Python, with the scope that a link-local address needs (RFC 4007).
    """

    __slots__ = ("address", "port", "source")

    address: str | None  # `None`: in no network

    proxy: Peer | None = None
    """The load balancer that has named this client."""

    def __init__(self, address: str, port: int, _flow: int = 0, scope: int = 0) -> None:
        if ":" not in address:
            self.source = address
        elif address.startswith(_MAPPED) and "." in address:  # RFC 4291, 2.5.5.2
            self.source = address = address[len(_MAPPED) :]
        else:
            packed = socket.inet_pton(socket.AF_INET6, address)
            if _PLAIN_AGAIN_FROM <= packed < _LINK_LOCAL or _PLAIN_FROM <= packed < _PLAIN_TO:
                self.source = _subnet(packed)
            elif _LINK_LOCAL <= packed < _AFTER_LINK_LOCAL:
                self.source = address = f"{address}%{_zone(scope)}" if scope else address
            else:
                self.source = _special(address, packed)
        self.address = address
        self.port = port

    def fields(self) -> dict[str, Any]:
        """Return it as log lines and answers have it."""
        return {"address": self.address, "port": self.port}

    def as_client(self) -> dict[str, Any]:
        """Return it as the field `client`, and with `proxy` if one has named it."""
        return {"client": self.fields()}


class NamedPeer(Peer):
    """A client that is named by the PROXY header of a load balancer."""

    __slots__ = ("proxy",)

    proxy: Peer

    def __init__(self, address: str, port: int, proxy: Peer) -> None:
        super().__init__(address, port)
        self.proxy = proxy

    def as_client(self) -> dict[str, Any]:
        """Return it as the fields `client` and `proxy`."""
        return {"client": self.fields(), "proxy": self.proxy.fields()}


class UnixPeer(Peer):
    """The process at the other end of a Unix socket, by its number and its user; `None` where the kernel does not tell.

    It has no address. Both are those of the moment at which it connected (SO_PEERCRED, unix(7)).
    """

    __slots__ = ("pid", "uid")

    def __init__(self, pid: int | None, uid: int | None) -> None:
        self.pid = pid
        self.uid = uid
        self.address = None
        self.source = "uid:unknown" if uid is None else f"uid:{uid}"

    def fields(self) -> dict[str, Any]:
        """Return it as log lines and answers have it."""
        return {"pid": self.pid, "uid": self.uid}


def _subnet(packed: bytes) -> str:
    return f"{socket.inet_ntop(socket.AF_INET6, packed[:_SUBNET] + _NO_HOST)}/64"


def _zone(scope: int) -> str:
    """Return the name of an interface, or its number: the inherited sockets of a service may be of another network."""
    try:
        return socket.if_indextoname(scope)
    except OSError:
        return str(scope)


def _special(address: str, packed: bytes) -> str:
    """Return the source of an address outside of the plain ranges."""
    ipv4 = _ipv4_inside(packed)
    if ipv4 is not None:
        return socket.inet_ntop(socket.AF_INET, ipv4)
    if packed.startswith((_COMPATIBLE, _LOCAL_TRANSLATED)):
        return address
    return _subnet(packed)


def _ipv4_inside(packed: bytes) -> bytes | None:
    """Return the IPv4 address that an IPv6 address was made of, or `None`.

    A local translator may use a prefix of 48, 56, 64 or 96 bits. Only with 96 bits, the IPv4 address is at the end. With the
    others the last 24 bits are 0 (RFC 6052, 2.2): then the whole address counts, of which each IPv4 address has one.
    """
    if packed.startswith(_6TO4):
        return packed[2:6]
    if packed.startswith(_TEREDO):
        return bytes(0xFF ^ byte for byte in packed[12:])
    if (
        packed.startswith(_TRANSLATED)
        or (packed.startswith(_LOCAL_TRANSLATED) and any(packed[13:]))
        or (packed.startswith(_COMPATIBLE) and packed[12])  # 0.0.0.0/8 has no hosts: that is ::1
    ):
        return packed[12:]
    return None
