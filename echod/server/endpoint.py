"""The two ends of a connection as values: the endpoint that listens, and the peer that connects.

An `Endpoint` is what the settings ask for, and what a reload compares. A `Listener` is an endpoint with its socket. A
`Peer` is counted by its `source`: an IPv4 address alone, or the /64 network of an IPv6 address, because an IPv6 site gives
each of its links a /64 and each host may use any number of addresses in it.
"""

from __future__ import annotations

import socket
from typing import Any, NamedTuple

_MAPPED = "::ffff:"
_SUBNET = 8  # bytes of an IPv6 address


class Endpoint(NamedTuple):
    """Where to listen: the kind of listener ("tcp"), a host ("*" or a numeric address), and a port (0: any free one)."""

    kind: str
    host: str
    port: int

    def __str__(self) -> str:
        """Return the URL that logs use: "tcp://127.0.0.1:7007", an IPv6 address in brackets (RFC 3986, 3.2.2)."""
        return (
            f"{self.kind}://[{self.host}]:{self.port}" if ":" in self.host else f"{self.kind}://{self.host}:{self.port}"
        )


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


class Peer:
    """The other end of a connection: an address, IPv4 also if the kernel gave an IPv4-mapped one, and a port."""

    __slots__ = ("address", "port", "source")

    def __init__(self, address: str, port: int) -> None:
        if ":" not in address:
            self.source = address
        elif address.startswith(_MAPPED) and "." in address:  # RFC 4291, 2.5.5.2
            self.source = address = address[len(_MAPPED) :]
        else:
            subnet = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:_SUBNET]
            self.source = f"{socket.inet_ntop(socket.AF_INET6, subnet + bytes(_SUBNET))}/64"
        self.address = address
        self.port = port

    def fields(self) -> dict[str, Any]:
        """Return it as log lines and answers have it."""
        return {"address": self.address, "port": self.port}
