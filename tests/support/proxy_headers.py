"""PROXY headers, as load balancers write them."""

from __future__ import annotations

import ipaddress
import struct

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOCAL_CHECK = SIGNATURE + b"\x20\0\0\0"
"""What HAProxy sends to check a server, before it resets the connection."""


def v1(address: str, port: int) -> bytes:
    """Return the header of version 1 for this client."""
    kind, server = ("TCP6", "2001:db8::1") if ":" in address else ("TCP4", "192.0.2.1")
    return f"PROXY {kind} {address} {server} {port} 7\r\n".encode()


def v2(address: str, port: int, extensions: bytes = b"") -> bytes:
    """Return the header of version 2 for this client, with TLVs."""
    source = ipaddress.ip_address(address).packed
    ends = source + source + struct.pack(">HH", port, 7)
    return binary(0x21, 0x21 if ":" in address else 0x11, ends + extensions)


def binary(command: int, protocol: int, rest: bytes = b"") -> bytes:
    """Return a header of version 2, made of its parts."""
    return SIGNATURE + struct.pack(">BBH", command, protocol, len(rest)) + rest
