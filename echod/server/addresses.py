"""What the address of a client is: the IPv4 one if it is mapped, and the source that it counts for.

Knows nothing of connections and rules.
"""

from __future__ import annotations

import socket

_MAPPED = "::ffff:"
_SUBNET = 8  # bytes: an IPv6 site gives each of its links a /64, and each host as many addresses of it as it likes


def unmapped(address: str) -> str:
    """Return the IPv4 address of an IPv4-mapped one (RFC 4291, 2.5.5.2), and any other as it is."""
    return address[len(_MAPPED) :] if address.startswith(_MAPPED) and "." in address else address


def source(address: str) -> str:
    """Return what connections are counted by: an IPv4 address, or the /64 network of an IPv6 one."""
    if ":" not in address:
        return address
    subnet = socket.inet_pton(socket.AF_INET6, address)[:_SUBNET]
    return f"{socket.inet_ntop(socket.AF_INET6, subnet + bytes(_SUBNET))}/64"
