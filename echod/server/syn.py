"""What arrived of a client's SYN, the first packet of its connection (TCP_SAVE_SYN, tcp(7)): its IP header and its TCP header.

That need not be what the client has sent: each router counts the TTL down, and a device on the way may change the DSCP, clamp
the MSS or remove options.
"""

from __future__ import annotations

import struct
from typing import Any

_Said = tuple[int, int, int | None, int | None, bool, bool]
"""Flags, window, window scale, MSS, whether SACK is permitted, and whether there are timestamps."""

_TCP = 6
_IPV6_HEADER = 40
_EXTENSIONS = frozenset({0, 43, 44, 60})
"""Headers between IPv6 and TCP: hop-by-hop options, routing, fragment, destination options (RFC 8200, 4)."""
_TCP_HEADER = 20  # without options
_ECN = 0xC0
"""The flags CWR and ECE. A SYN that offers ECN has both (RFC 3168, 6.1.1), also if it offers AccECN (RFC 9768)."""
# Kinds of options (RFC 9293, 3.1), and kinds with their lengths (RFC 9293, RFC 7323, RFC 2018).
_END, _NO_OPERATION = 0, 1
_MSS, _WINDOW_SCALE, _SACK_PERMITTED, _TIMESTAMPS = (2, 4), (3, 3), (4, 2), (8, 10)
_SHORTEST = 2
"""Bytes of the shortest option but these two: its kind and its length."""
# The TCP header that Linux sends, with the options MSS, SACK permitted, timestamps and window scale. To read it by this layout, and
# not option by option, saves 0.5 µs a connection.
_LINUX = struct.Struct("!12xBBH4x2sH4s8x3sB")
_LINUX_LENGTH = 0xA0
"""40 bytes: the upper four bits count in units of four bytes."""
_LINUX_KINDS = (b"\x02\x04", b"\x04\x02\x08\x0a", b"\x01\x03\x03")
"""The kinds and lengths of these options, with a no-operation before the last."""


def fields(packet: bytes) -> dict[str, Any] | None:
    """Return what a SYN says, as log lines and answers have it; `None` if this is not the whole IP and TCP header of a packet.

    `window` is in bytes, before any scaling. `wscale` is the exponent of 2, and `mss` is in bytes; both are `None` if the
    option is missing.
    """
    try:
        version = packet[0] >> 4
        if version == 4:  # noqa: PLR2004 - RFC 791, 3.1
            traffic_class, ttl, protocol, start = packet[1], packet[8], packet[9], (packet[0] & 0x0F) * 4
        elif version == 6:  # noqa: PLR2004 - RFC 8200, 3
            traffic_class, ttl = (packet[0] & 0x0F) << 4 | packet[1] >> 4, packet[7]
            protocol, start = _after_extensions(packet)
        else:
            return None
    except IndexError:
        return None
    if protocol != _TCP:
        return None
    said = _of_linux(packet, start) or _of_others(packet, start)
    if said is None:
        return None
    flags, window, wscale, mss, sack, timestamps = said
    return {
        "ttl": ttl,
        "dscp": traffic_class >> 2,
        "ecn": flags & _ECN == _ECN,
        "window": window,
        "wscale": wscale,
        "mss": mss,
        "sack": sack,
        "timestamps": timestamps,
    }


def _after_extensions(packet: bytes) -> tuple[int, int]:
    """Return the protocol inside an IPv6 packet, and where it begins."""
    header, start = packet[6], _IPV6_HEADER
    while header in _EXTENSIONS:
        header, start = packet[start], start + (packet[start + 1] + 1) * 8
    return header, start


def _of_linux(packet: bytes, start: int) -> _Said | None:
    """Return what the TCP header says, if its options are those of Linux, in its order."""
    if len(packet) - start != _LINUX.size:
        return None
    length, flags, window, first, mss, middle, last, wscale = _LINUX.unpack_from(packet, start)
    if length != _LINUX_LENGTH or (first, middle, last) != _LINUX_KINDS:
        return None
    return flags, window, wscale, mss, True, True


def _of_others(packet: bytes, start: int) -> _Said | None:
    """Return what the TCP header says; `None` if it is not whole. Like the kernel, it ignores options after a malformed one."""
    at = start + _TCP_HEADER
    if len(packet) < at:
        return None
    end = start + (packet[start + 12] >> 4) * 4
    if len(packet) < end:
        return None
    mss = wscale = None
    sack = timestamps = False
    while at < end - 1:
        kind = packet[at]
        if kind == _NO_OPERATION:
            at += 1
            continue
        length = packet[at + 1]
        if kind == _END or length < _SHORTEST or at + length > end:
            break
        option = kind, length
        if option == _MSS:
            mss = packet[at + 2] << 8 | packet[at + 3]
        elif option == _WINDOW_SCALE:
            wscale = packet[at + 2]
        elif option == _SACK_PERMITTED:
            sack = True
        elif option == _TIMESTAMPS:
            timestamps = True
        at += length
    window = packet[start + 14] << 8 | packet[start + 15]
    return packet[start + 13], window, wscale, mss, sack, timestamps
