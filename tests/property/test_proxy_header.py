"""PROXY headers, compared with another parser: the one of the library `proxy-protocol`."""

from __future__ import annotations

import ipaddress
import os
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from proxyprotocol import ProxyProtocolChecksumError
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from echod.server.proxy_header import LONGEST, parse, size
from tests.support.proxy_headers import LOCAL_CHECK, binary, v1, v2

EXAMPLES = 40 * int(os.environ.get("ECHOD_TEST_EXAMPLES", "1"))

addresses = st.ip_addresses().map(str)
ports = st.integers(0, 65535)
good = st.one_of(
    st.builds(v1, addresses, ports),
    st.builds(v2, addresses, ports, st.binary(max_size=300)),
    st.builds(binary, st.sampled_from([0x20, 0x21]), st.integers(0, 0x35), st.binary(max_size=250)),
)
lines = st.lists(
    st.one_of(addresses, ports.map(str), st.sampled_from(["TCP4", "TCP6", "UNKNOWN", ""]), st.text(max_size=3)),
    max_size=6,
).map(lambda words: f"PROXY {' '.join(words)}\r\n".encode())


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """Draw a header of which a few bytes are others."""
    header = bytearray(draw(good))
    for _ in range(draw(st.integers(0, 3))):
        header[draw(st.integers(0, len(header) - 1))] = draw(st.integers(0, 255))
    return bytes(header)


def theirs(header: bytes) -> Any:
    """Return the client by the other parser, `None` if there is none, or the error."""
    try:
        other = ProxyProtocolV1() if header.startswith(b"PROXY") else ProxyProtocolV2()
        result = other.unpack(header)
    except ProxyProtocolChecksumError as error:  # echod does not look at TLVs
        result = error.result
    except Exception as error:  # noqa: BLE001 - a wrong TLV or a name of a Unix socket raises anything
        return error
    source = getattr(result, "source", None)
    return (source[0], source[1]) if isinstance(source, tuple) and result.proxied else None


def ours(header: bytes) -> tuple[Any, int] | None:
    """Return the client by echod's parser. Raises `ValueError`."""
    client = parse(header).client
    return client and (ipaddress.ip_address(client[0]), client[1])


@settings(max_examples=EXAMPLES)
@given(st.one_of(good, spoiled(), lines))
@example(LOCAL_CHECK)
@example(binary(0x21, 0x11))
def test_nobody_is_taken_for_another_client(data: bytes) -> None:
    """Where both parsers find a client, it is the same one. What echod does not accept, it does not take for a client."""
    try:
        end = size(data)
        if end is None or end > len(data):
            return
        header = data[:end]
        found = ours(header)
    except ValueError:
        return
    other = theirs(header)
    if found is not None and not isinstance(other, Exception):
        assert found == other


@settings(max_examples=EXAMPLES)
@given(addresses, ports, st.binary(max_size=200), st.binary(max_size=20))
def test_each_client_is_found_as_the_other_parser_finds_it(address: str, port: int, tlvs: bytes, data: bytes) -> None:
    """With any TLVs, and any data behind the header."""
    for header in (v1(address, port), v2(address, port)):
        assert size(header + data) == len(header)
        assert ours(header) == theirs(header) == (ipaddress.ip_address(address), port)
    assert ours(v2(address, port, tlvs)) == (ipaddress.ip_address(address), port)


@settings(max_examples=EXAMPLES)
@given(st.one_of(spoiled(), lines, st.binary(max_size=120)), st.data())
def test_the_end_does_not_depend_on_how_much_has_come(data: bytes, drawn: st.DataObject) -> None:
    """What is said of a part is said of the whole. So no byte of the client is taken for the header's."""
    length = drawn.draw(st.integers(0, len(data)))
    try:
        part = size(data[:length])
    except ValueError:
        try:
            assert size(data) is None
        except ValueError:
            return
        raise
    if part is not None:
        assert size(data) == part <= LONGEST
