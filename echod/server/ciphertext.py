"""What a TLS connection has read and OpenSSL has not got yet, cut into pieces by records.

A record costs OpenSSL as much as it wants: a KeyUpdate of 27 bytes takes as long as 50 KiB of data. So a session counts the
records that it gives to OpenSSL in one turn of the loop. Their headers are not encrypted (RFC 8446, 5.1; RFC 5246, 6.2.1).
"""

from __future__ import annotations

PIECE = (4 << 10) + 16
"""The most bytes of a piece, because a MemoryBIO never gives back memory. A record with 16 KiB of data is four of them."""
HEADER = 5
"""Bytes of a record before its content. The last two are the length of that."""
_NOTHING = memoryview(b"")


class Ciphertext:
    """Bytes in the order in which they were read. It is true if there is something to take."""

    __slots__ = ("_header", "_held", "_rest")

    def __init__(self) -> None:
        self._held = _NOTHING
        self._header = b""  # after that: what has come of the header of a record that is not whole
        self._rest = 0  # bytes of the last record taken that are still to come

    def __bool__(self) -> bool:
        return bool(self._held)

    def is_record(self, data: bytes) -> bool:
        """Say whether `data`, just read, is one whole record that fits into a piece, with nothing held before it.

        OpenSSL can have such a record as it is, without `add`.
        """
        return (
            HEADER <= len(data) <= PIECE
            and len(data) == HEADER + (data[3] << 8 | data[4])
            and not (self._rest or self._header or self._held)
        )

    def add(self, data: bytes) -> None:
        """Add what was read. Half of a header is not taken before the other half is there."""
        if self._held or self._header:
            data = bytes(self._held) + self._header + data
            self._header = b""
        self._held = memoryview(data)

    def take(self, most: int) -> tuple[memoryview, int]:
        """Return the next piece, and how many records begin in it: `most`, or fewer.

        It ends with a record, or is part of one: OpenSSL has memory of its own for a record that is not whole.
        """
        held, size, records = self._held, self._rest, 0
        room = min(PIECE, len(held))
        while size < room and records < most and size + HEADER <= len(held):
            end = size + HEADER + (held[size + 3] << 8 | held[size + 4])
            if size and end > room:
                break
            size = end
            records += 1
        taken = min(size, room)
        self._rest = size - taken
        if not taken:
            self._header += bytes(held)
        self._held = held[taken:] if 0 < taken < len(held) else _NOTHING  # an empty view would keep all that was read
        return held[:taken], records

    def shrink(self) -> None:
        """Give back the memory of what was taken."""
        self._held = memoryview(bytes(self._held))

    def clear(self) -> None:
        """Forget all."""
        self._held = _NOTHING
