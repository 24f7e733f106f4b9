"""Clients of UDP: honest ones, and such that forge where a datagram comes from, which needs root."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING

from tests.support.harness import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADERS = struct.Struct("!BBHHHBBH4s4sHHHH")
"""Of IPv4 (RFC 791) and UDP (RFC 768); the kernel writes the checksum of the first, and the second needs none."""


@contextlib.contextmanager
def client(address: str = "127.0.0.1", *, timeout: float = DEADLINE) -> Iterator[socket.socket]:
    """Give a socket with this address and any port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((address, 0))
        sock.settimeout(timeout)
        yield sock


@contextlib.contextmanager
def forger() -> Iterator[socket.socket]:
    """Give a socket for `forged`."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        yield sock


def forged(source: tuple[str, int], to: tuple[str, int], data: bytes = b"x") -> bytes:
    """Return a packet that says that it comes from there."""
    length = 8 + len(data)
    packet = _HEADERS.pack(
        *(0x45, 0, 20 + length, 0, 0, 64, socket.IPPROTO_UDP, 0),
        *map(socket.inet_aton, (source[0], to[0])),
        *(source[1], to[1], length, 0),
    )
    return packet + data
