"""What is read out of the SYNs of several systems, and of bytes that are none."""

from __future__ import annotations

import socket

import pytest

from echod.server import syn
from tests.support.rig import SYN

HEADER = SYN[20:40]
SAID = {
    "ttl": 64,
    "dscp": 0,
    "ecn": False,
    "window": 65495,
    "wscale": 10,
    "mss": 65495,
    "sack": True,
    "timestamps": True,
}
NO_OPTIONS = {**SAID, "wscale": None, "mss": None, "sack": False, "timestamps": False}


def ipv4(tcp: bytes, *, options: bytes = b"", ttl: int = 64, traffic_class: int = 0) -> bytes:
    """Return a packet, without its checksums."""
    first = 0x45 + len(options) // 4
    return bytes([first, traffic_class, *bytes(6), ttl, 6, *bytes(10)]) + options + tcp


def tcp(options: bytes, *, flags: int = 2) -> bytes:
    """Return a header of TCP with these options, whose length is a multiple of 4."""
    return HEADER[:12] + bytes([0x50 + len(options) * 4, flags]) + HEADER[14:] + options


def test_the_syn_of_linux() -> None:
    """It has all that Linux sends, in this order."""
    assert syn.fields(SYN) == SAID
    assert list(syn.fields(SYN) or ()) == list(SAID)


def test_the_syn_of_linux_is_read_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Option by option takes twice the time. Most clients are such systems."""
    monkeypatch.setattr(syn, "_of_others", None)
    assert syn.fields(SYN) == SAID


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("020405b4 01030308 01010402", {"mss": 1460, "wscale": 8, "sack": True}),  # Windows
        ("020405a0 01030306 0101080a 00000001 00000000 04020000", {"mss": 1440, "wscale": 6, "sack": True, "timestamps": True}),  # macOS
        ("020405b4 0402080a 00000001 00000000 01030307 fe040000", {"mss": 1460, "wscale": 7, "sack": True, "timestamps": True}),
        ("020405b4 0402080a 00000001 00000000 01010101", {"mss": 1460, "sack": True, "timestamps": True}),  # no scaling
        ("02040218 00000000", {"mss": 536}),
        ("", {}),
        ("00000000 020405b4", {}),  # nothing counts after the end
        ("01010101 020405b4", {"mss": 1460}),
        ("020405b4 03000000", {"mss": 1460}),  # a length that is too small ends the list
        ("020405b4 0101010a", {"mss": 1460}),  # and so does an option without a length,
        ("020405b4 08ff0402", {"mss": 1460}),  # and one that is longer than what is left
        ("020405b4 01010303", {"mss": 1460}),
        ("02060000 00000402", {"sack": True}),  # an option of a wrong length says nothing
    ],
)  # fmt: skip
def test_options_in_any_order(options: str, said: dict[str, object]) -> None:
    """What is missing is null, or false."""
    assert syn.fields(ipv4(tcp(bytes.fromhex(options)))) == {**NO_OPTIONS, **said}


def test_the_fields_of_the_ip_header() -> None:
    """The traffic class has the DSCP in its upper six bits; options of IPv4 are passed over."""
    assert syn.fields(ipv4(tcp(b""), ttl=52, traffic_class=0xBA)) == {**NO_OPTIONS, "ttl": 52, "dscp": 46}
    assert syn.fields(ipv4(tcp(b""), options=bytes(40))) == NO_OPTIONS


def test_ipv6() -> None:
    """Extension headers are passed over, of any length."""
    first = bytes([0x6B, 0x84, 0, 0, 0, 0])
    hop_by_hop, destination = bytes([60, 0, *bytes(6)]), bytes([6, 1, *bytes(14)])
    addresses = bytes(32)
    said = {**SAID, "ttl": 57, "dscp": 46}
    assert syn.fields(first + bytes([6, 57]) + addresses + SYN[20:]) == said
    assert syn.fields(first + bytes([0, 57]) + addresses + hop_by_hop + destination + SYN[20:]) == said


@pytest.mark.parametrize(("flags", "offers"), [(0x02, False), (0x42, False), (0x82, False), (0xC2, True)])
def test_ecn_is_offered_with_both_flags(flags: int, offers: bool) -> None:  # noqa: FBT001
    """ECE or CWR alone offers nothing (RFC 3168, 6.1.1)."""
    assert (syn.fields(ipv4(tcp(b"", flags=flags))) or {})["ecn"] is offers


def test_accurate_ecn_offers_ecn_too() -> None:
    """Its third flag is beside the length of the header."""
    accurate = SYN[:32] + b"\xa1\xc2" + SYN[34:]
    assert syn.fields(accurate) == {**SAID, "ecn": True}


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        SYN[:9],
        SYN[:20],
        SYN[:39],
        SYN[:-1],
        b"\x55" + SYN[1:],  # IP version 5
        SYN[:9] + bytes([socket.IPPROTO_UDP]) + SYN[10:],
        bytes([0x60, *bytes(5), 0, 64, *bytes(32)]),  # an extension header that is not there
        bytes([0x60, *bytes(5), 59, 64, *bytes(32)]),  # nothing inside
    ],
)
def test_what_is_no_whole_head_of_a_tcp_packet_says_nothing(packet: bytes) -> None:
    """The kernel keeps no such thing."""
    assert syn.fields(packet) is None
