"""What is wrong with an echo."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.client.difference import Difference, describe, first_wrong

SOURCE = random.Random(862)
BEFORE, SENT, AFTER = (SOURCE.randbytes(100) for _ in range(3))


def changed(*offsets: int) -> bytes:
    return bytes(byte ^ 0xFF if offset in offsets else byte for offset, byte in enumerate(SENT))


@pytest.mark.parametrize(
    ("received", "offset", "text", "in_step"),
    [
        (changed(7), 7, "1 byte wrong, the first at offset 7", True),
        (changed(7, 9, 50), 7, "3 bytes wrong, the first at offset 7", True),
        (changed(99), 99, "1 byte wrong, the first at offset 99", True),
        (changed(*range(20, 100)), 20, "wrong from offset 20 on", False),
        (SENT[:10] + SENT[13:] + AFTER[:3], 10, "3 bytes missing at offset 10", False),
        (SENT[:95] + AFTER[:20], 95, "5 bytes missing at offset 95", False),
        (AFTER, 0, "100 bytes missing at offset 0", False),
        (SENT[:10] + SENT[:90], 10, "10 bytes came twice, seen at offset 10", False),
        (BEFORE, 0, "100 bytes came twice, seen at offset 0", False),
        (BEFORE[60:] + SENT[:60], 0, "40 bytes came twice, seen at offset 0", False),
    ],
)
def test_changed_missing_and_repeated_bytes_are_told_apart(
    received: bytes, offset: int, text: str, *, in_step: bool
) -> None:
    """With the offset of the first wrong one, and whether a stream is still in step after them."""
    found = describe(BEFORE, SENT, AFTER, received)
    assert found
    assert (found.offset, found.in_step) == (offset, in_step)
    assert found.text.startswith(text)


def test_what_is_sent_and_what_came_are_shown() -> None:
    """The first wrong byte."""
    assert describe(b"", b"abc", b"", b"abX") == Difference(
        2, "1 byte wrong, the first at offset 2: sent 0x63, came 0x58", True
    )


def test_a_part_that_is_right_is_no_difference() -> None:
    assert describe(b"", SENT, b"", SENT[:40]) is None


@given(st.binary(min_size=1, max_size=300), st.data())
def test_the_first_wrong_offset_is_found(sent: bytes, data: st.DataObject) -> None:
    """Wherever it is."""
    offset = data.draw(st.integers(0, len(sent) - 1))
    wrong = sent[:offset] + bytes([sent[offset] ^ 1]) + data.draw(st.binary(max_size=300))
    assert first_wrong(sent, wrong) == offset
    assert first_wrong(sent, sent[:offset]) is None
