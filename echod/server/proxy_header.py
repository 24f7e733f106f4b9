"""The PROXY header, by which a load balancer names the client: where it ends, and what it says.

Knows bytes only. Version 1 is a line of text, version 2 is binary:
https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt. Section 2.1 describes version 1, and 2.2 version 2.

A header that names no client is one of the balancer's own checks (LOCAL), or the balancer can't say who the client is
(UNKNOWN). For the latter, version 2 says UNSPEC, and a Unix socket or a datagram is as good as that: neither is a client of a TCP
service. The extensions of version 2 (TLVs) are skipped without a look at them, also the checksum: TCP has one.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

LONGEST = 16 + 4096
"""Bytes of a header, at the most: the fixed part of version 2, and 4 kB of addresses and TLVs."""
HEADERS = (("v1", "PROXY"), ("v1", "UNKNOWN"), ("v2", "PROXY"), ("v2", "LOCAL"), ("v2", "UNKNOWN"))
"""Versions with their commands."""

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = 16  # bytes: signature, version and command, family and transport, length of the rest
_TEXT = b"PROXY "
_LINES = (b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN")
_LONGEST_LINE = 107  # bytes, with CRLF
_OTHER_LINE = "its line is not that of TCP4, TCP6 or UNKNOWN"
_WORDS = 6  # of a line that names a client: PROXY TCP4 SOURCE DESTINATION PORT PORT
_MAX_PORT = 65535
_FAMILIES = {b"TCP4": socket.AF_INET, b"TCP6": socket.AF_INET6}

# Of version 2: the version and the command in one byte; the family and the transport in another; the length of the rest in two.
_COMMAND, _PROTOCOL, _LENGTH = 12, 13, 14
_LOCAL, _PROXY = b"\x20", b"\x21"
_PROTOCOLS = frozenset(bytes([family << 4 | transport]) for family in range(4) for transport in range(3))
"""Up to AF_UNIX and DGRAM."""
_ADDRESSES = {b"\x11": (socket.AF_INET, 4), b"\x21": (socket.AF_INET6, 16)}
"""The family of TCP over IPv4 and of TCP over IPv6, and the bytes of an address."""
_PORTS = 4  # bytes of both


class Header(NamedTuple):
    """What a header says."""

    version: str
    command: str
    client: tuple[str, int] | None = None
    """Its address and port."""


def size(begun: bytes) -> int | None:
    """Return the number of bytes of the header that begins so, or `None` if more bytes have to come, and all of these are the header's.

    Raises `ValueError` if no header begins so, as soon as the first wrong byte is there.
    """
    if begun.startswith(_TEXT):
        return _size_of_text(begun)
    if begun.startswith(_SIGNATURE):
        return _size_of_binary(begun)
    if _TEXT.startswith(begun) or _SIGNATURE.startswith(begun):
        return None
    raise ValueError("no header")


def _size_of_text(begun: bytes) -> int | None:
    if not begun.startswith(_LINES) and not any(line.startswith(begun) for line in _LINES):
        raise ValueError(_OTHER_LINE)
    end = begun.find(b"\n", 0, _LONGEST_LINE) + 1
    if not end and len(begun) >= _LONGEST_LINE:
        raise ValueError(f"its line is longer than {_LONGEST_LINE} bytes")
    return end or None


def _size_of_binary(begun: bytes) -> int | None:
    command, protocol = begun[_COMMAND:_PROTOCOL], begun[_PROTOCOL:_LENGTH]  # empty until they have come
    if command and command not in (_LOCAL, _PROXY):
        raise ValueError("its version or command is unknown")
    if command == _PROXY and protocol and protocol not in _PROTOCOLS:
        raise ValueError("its family or transport is unknown")
    if len(begun) < _FIXED:
        return None
    length = int.from_bytes(begun[_LENGTH:_FIXED])
    if command == _PROXY and protocol in _ADDRESSES and length < 2 * _ADDRESSES[protocol][1] + _PORTS:
        raise ValueError("it is too short for its addresses")
    if _FIXED + length > LONGEST:
        raise ValueError(f"it is longer than {LONGEST} bytes")
    return _FIXED + length


def parse(header: bytes) -> Header:
    """Return what a whole header says; `size` has returned its length. Raises `ValueError` if it breaks the rules."""
    return _parse_text(header) if header.startswith(_TEXT) else _parse_binary(header)


def _parse_text(line: bytes) -> Header:
    if not line.endswith(b"\r\n"):
        raise ValueError("its line does not end with CRLF")
    words = line[:-2].split(b" ")
    if words[1] == b"UNKNOWN":  # whatever follows
        return Header("v1", "UNKNOWN")
    family = _FAMILIES.get(words[1])
    if family is None or len(words) != _WORDS:
        raise ValueError(_OTHER_LINE)
    address, _ = (_packed(family, word) for word in words[2:4])
    port, _ = (_port(word) for word in words[4:])
    return Header("v1", "PROXY", (socket.inet_ntop(family, address), port))


def _packed(family: int, text: bytes) -> bytes:
    try:
        return socket.inet_pton(family, text.decode("ascii"))
    except (OSError, ValueError):
        raise ValueError("an address is wrong") from None


def _port(text: bytes) -> int:
    if not text.isdigit() or (text.startswith(b"0") and text != b"0") or int(text) > _MAX_PORT:
        raise ValueError("a port is wrong")
    return int(text)


def _parse_binary(header: bytes) -> Header:
    command, protocol = header[_COMMAND:_PROTOCOL], header[_PROTOCOL:_LENGTH]
    if command == _LOCAL:
        return Header("v2", "LOCAL")
    if protocol not in _ADDRESSES:
        return Header("v2", "UNKNOWN")
    family, width = _ADDRESSES[protocol]
    address = socket.inet_ntop(family, header[_FIXED : _FIXED + width])
    port = _FIXED + 2 * width
    return Header("v2", "PROXY", (address, int.from_bytes(header[port : port + 2])))
