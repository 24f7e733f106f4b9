"""PROXY headers: where they end, and what they say."""

from __future__ import annotations

import pytest

from echod.server.proxy_header import HEADERS, LONGEST, Header, parse, size
from tests.support.proxy_headers import LOCAL_CHECK, SIGNATURE, binary, v1, v2

LONG_LINE = b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n"

OTHER_LINE = "its line is not that of TCP4, TCP6 or UNKNOWN"
NONE_BEGINS_SO = [
    "no header",
    OTHER_LINE,
    "its line is longer than 107 bytes",
    "its version or command is unknown",
    "its family or transport is unknown",
    "it is too short for its addresses",
    "it is longer than 4112 bytes",
]
WRONG = [OTHER_LINE, "its line does not end with CRLF", "an address is wrong", "a port is wrong"]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (v1("203.0.113.7", 4711), Header("v1", "PROXY", ("203.0.113.7", 4711))),
        (v1("203.0.113.7", 65535), Header("v1", "PROXY", ("203.0.113.7", 65535))),
        (v1("2001:DB8:0::7", 0), Header("v1", "PROXY", ("2001:db8::7", 0))),
        (b"PROXY UNKNOWN\r\n", Header("v1", "UNKNOWN")),
        (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", Header("v1", "UNKNOWN")),
        (LONG_LINE, Header("v1", "UNKNOWN")),
        (v2("203.0.113.7", 65535), Header("v2", "PROXY", ("203.0.113.7", 65535))),
        (v2("2001:db8::7", 4711, b"\x04\0\1x"), Header("v2", "PROXY", ("2001:db8::7", 4711))),
        (v2("203.0.113.7", 1, bytes(LONGEST - 28)), Header("v2", "PROXY", ("203.0.113.7", 1))),
        (LOCAL_CHECK, Header("v2", "LOCAL")),
        (binary(0x20, 0xFF, b"\xea\0\1x"), Header("v2", "LOCAL")),  # whatever the family
        (binary(0x21, 0x00), Header("v2", "UNKNOWN")),
        (binary(0x21, 0x31, bytes(216)), Header("v2", "UNKNOWN")),
        (binary(0x21, 0x12, bytes(12)), Header("v2", "UNKNOWN")),
        (binary(0x21, 0x10, bytes(12)), Header("v2", "UNKNOWN")),
    ],
)
def test_a_header_says_who_the_client_is(header: bytes, expected: Header) -> None:
    """Or that it names none. Its end is found with any bytes behind it, and with any part of it more bytes are wanted."""
    assert size(header + b"PROXY\r\n") == size(header) == len(header)
    assert parse(header) == expected
    assert (expected.version, expected.command) in HEADERS
    for length in range(len(header)):
        assert size(header[:length]) in (None, len(header))


def test_a_part_of_a_header_does_not_say_more_than_its_bytes() -> None:
    """As long as the end is not known, each byte that has come is the header's."""
    assert [size(v1("203.0.113.7", 1)[:length]) for length in (0, 1, 12, 30)] == [None] * 4
    assert [size(LOCAL_CHECK[:length]) for length in (1, 12, 15, 16)] == [None, None, None, 16]


@pytest.mark.parametrize(
    "begun",
    [
        b"h",
        b"\r\n\r\n\r",
        b"PROXY\t",
        b"p",
        SIGNATURE[:-1] + b"!",
        b"PROXY x",
        b"PROXY TCP5",
        b"PROXY TCP4\r",
        b"PROXY UNKNOWN " + b"x" * 93,
        LONG_LINE[:-1] + b"x",
        SIGNATURE + b"\x11",
        SIGNATURE + b"\x22",
        SIGNATURE + b"\0",
        SIGNATURE + b"\x21\x41",
        SIGNATURE + b"\x21\x13",
        binary(0x21, 0x11),
        binary(0x21, 0x11, bytes(11))[:16],
        binary(0x21, 0x21, bytes(35))[:16],
        binary(0x21, 0x11, bytes(4097))[:16],
        binary(0x20, 0xFF, bytes(4097))[:16],
    ],
)
def test_what_can_not_become_a_header_is_found_with_its_last_byte(begun: bytes) -> None:
    """Nobody waits for more of it, and whatever follows does not make it a header."""
    assert size(begun[:-1]) is None
    for more in (b"", b"\r\n", bytes(5000)):
        with pytest.raises(ValueError, match=f"^({'|'.join(NONE_BEGINS_SO)})$"):
            size(begun + more)


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY UNKNOWN\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY TCP4 \r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
        b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
        b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.256 1 2\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
        b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP6 fe80::1%lo fe80::2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1\0 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.\xb9 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2  2\r\n",
    ],
)
def test_a_header_that_breaks_the_rules_is_wrong(header: bytes) -> None:
    """Its end is known all the same."""
    assert size(header) == len(header)
    with pytest.raises(ValueError, match=f"^({'|'.join(WRONG)})$"):
        parse(header)
