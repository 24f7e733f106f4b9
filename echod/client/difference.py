"""What is wrong with an echo that is not what was sent: changed, missing or repeated bytes."""

from __future__ import annotations

from typing import NamedTuple

_CLEAR = 8
"""Bytes that must agree elsewhere for "moved": random bytes do so by chance once in 2^64."""
_EXAMINED = 4096
"""Bytes behind the first wrong one that are compared. A whole message of megabytes would take a second."""


class Difference(NamedTuple):
    """How an echo differs from its message."""

    offset: int
    """Of the first wrong byte in the message."""
    text: str
    in_step: bool
    """Whether what follows on a stream is still where it should be."""


def first_wrong(sent: bytes, received: bytes | bytearray) -> int | None:
    """Return the offset of the first byte that differs, as far as both reach."""
    size = min(len(sent), len(received))
    if sent[:size] == received[:size]:
        return None
    low, high = 0, size  # all before `low` agrees, and something before `high` differs
    while high - low > 1:
        middle = (low + high) // 2
        if sent[low:middle] == received[low:middle]:
            low = middle
        else:
            high = middle
    return low


def describe(before: bytes, sent: bytes, after: bytes, received: bytes | bytearray) -> Difference | None:
    """Compare what came from the start of a message on; `None` if it is right as far as it goes.

    `before` is the message before, and `after` what was sent behind this one on the same stream.
    """
    offset = first_wrong(sent, received)
    if offset is None:
        return None
    wrong = sent[offset : offset + _EXAMINED]
    got = received[offset : offset + _EXAMINED]
    clear = got[:_CLEAR]
    if len(clear) == _CLEAR:
        ahead = (sent[offset:] + after).find(clear)
        if ahead > 0:
            return Difference(offset, f"{_bytes(ahead)} missing at offset {offset}", in_step=False)
        behind = before + sent[:offset]
        back = behind.rfind(clear)
        if back >= 0:
            return Difference(
                offset, f"{_bytes(len(behind) - back)} came twice, seen at offset {offset}", in_step=False
            )
    changed = sum(a != b for a, b in zip(wrong, got, strict=False))
    text = f"sent 0x{wrong[0]:02x}, came 0x{got[0]:02x}"
    if changed > 1 and changed * 2 > min(len(wrong), len(got)):
        return Difference(offset, f"wrong from offset {offset} on: {text}", in_step=False)
    return Difference(offset, f"{_bytes(changed)} wrong, the first at offset {offset}: {text}", in_step=True)


def _bytes(number: int) -> str:
    return "1 byte" if number == 1 else f"{number} bytes"
