"""SYNs of any content: each that is made comes back field by field, and bytes that are none do no harm."""

from __future__ import annotations

import os
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from echod.server import syn

EXAMPLES = 25 * int(os.environ.get("ECHOD_TEST_EXAMPLES", "1"))

NAMES = ["ttl", "dscp", "ecn", "window", "wscale", "mss", "sack", "timestamps"]
bytes_of_8_bits = st.integers(0, 0xFF)
extensions = st.lists(st.tuples(st.sampled_from([0, 43, 44, 60]), st.integers(0, 4)), max_size=4)


@st.composite
def options(draw: st.DrawFn) -> tuple[bytes, dict[str, object]]:
    """Draw options of TCP in any order, and what they say."""
    said: dict[str, object] = {"wscale": None, "mss": None, "sack": False, "timestamps": False}
    parts = []
    for name in draw(st.permutations([*said, "other", "nothing"])):
        if draw(st.booleans()):
            continue
        if name == "mss":
            said[name] = mss = draw(st.integers(0, 0xFFFF))
            parts.append(struct.pack("!BBH", 2, 4, mss))
        elif name == "wscale":
            said[name] = scale = draw(bytes_of_8_bits)
            parts.append(bytes([3, 3, scale]))
        elif name == "other":  # MPTCP, Fast Open, ...
            kind, data = draw(st.sampled_from([30, 34, 253])), draw(st.binary(max_size=12))
            parts.append(bytes([kind, 2 + len(data)]) + data)
        elif name == "nothing":
            parts.append(b"\1" * draw(st.integers(1, 5)))
        else:
            said[name] = True
            parts.append(bytes([4, 2]) if name == "sack" else bytes([8, 10]) + draw(st.binary(min_size=8, max_size=8)))
    made = b"".join(parts)
    return made + bytes(-len(made) % 4), said


@st.composite
def packets(draw: st.DrawFn) -> tuple[bytes, dict[str, object]]:
    """Draw the head of a SYN, and what it says."""
    ttl, dscp, bits, window = (
        draw(bytes_of_8_bits),
        draw(st.integers(0, 63)),
        draw(st.integers(0, 3)),
        draw(st.integers(0, 0xFFFF)),
    )
    flags, rest = draw(bytes_of_8_bits), draw(st.binary(min_size=16, max_size=16))
    made, said = draw(options())
    tcp = rest[:12] + struct.pack("!BBH", (5 + len(made) // 4) << 4 | rest[15] & 15, flags, window) + rest[12:] + made
    traffic_class = dscp << 2 | bits
    if draw(st.booleans()):
        more = draw(st.integers(0, 10)) * 4
        ip = bytes([0x45 + more // 4, traffic_class, *bytes(6), ttl, 6, *bytes(10 + more)])
    else:
        headers = draw(extensions)
        kinds = [*(kind for kind, _ in headers), 6]
        ip = struct.pack("!IHBB", 6 << 28 | traffic_class << 20, 0, kinds[0], ttl) + bytes(32)
        for (_, units), kind in zip(headers, kinds[1:], strict=True):
            ip += bytes([kind, units]) + bytes(6 + 8 * units)
    return ip + tcp, {"ttl": ttl, "dscp": dscp, "ecn": flags & 0xC0 == 0xC0, "window": window, **said}


@settings(max_examples=EXAMPLES)
@given(packets())
def test_what_was_put_in_comes_out(made: tuple[bytes, dict[str, object]]) -> None:
    """In any order of the options, over IPv4 and IPv6, with headers in between; and a part of it says nothing."""
    packet, said = made
    assert syn.fields(packet) == said
    assert syn.fields(packet[:-1]) is None


@settings(max_examples=EXAMPLES)
@given(packets(), st.lists(st.tuples(st.integers(0, 200), bytes_of_8_bits), max_size=4), st.integers(0, 250))
def test_a_damaged_head_does_no_harm(
    made: tuple[bytes, dict[str, object]], changes: list[tuple[int, int]], length: int
) -> None:
    """It says something, under the same names, or nothing."""
    packet = bytearray(made[0])
    for at, value in changes:
        packet[at % len(packet)] = value
    said = syn.fields(bytes(packet[:length]))
    assert said is None or list(said) == NAMES


@settings(max_examples=EXAMPLES)
@given(st.binary(max_size=256))
def test_random_bytes_do_no_harm(packet: bytes) -> None:
    """Likewise."""
    said = syn.fields(packet)
    assert said is None or list(said) == NAMES
