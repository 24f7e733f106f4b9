"""Pieces of ciphertext for OpenSSL: whatever is read, by how many bytes and how many records it goes on."""

from __future__ import annotations

import sys
from random import Random

import pytest

from echod.server.ciphertext import HEADER, PIECE, Ciphertext


def record(size: int) -> bytes:
    return b"\x17\x03\x03" + size.to_bytes(2) + bytes(size)


def test_a_piece_has_as_many_records_as_are_wanted() -> None:
    held = Ciphertext()
    held.add(record(20) * 5)
    assert [(len(piece), count) for piece, count in (held.take(2), held.take(2), held.take(2))] == [
        (50, 2),
        (50, 2),
        (25, 1),
    ]
    assert not held


def test_a_long_record_has_several_pieces() -> None:
    """Others are in the last of them as far as they are whole."""
    held = Ciphertext()
    held.add(record((16 << 10) + 17) + record(1) + record(30_000))
    sizes = [(len(piece), count) for piece, count in (held.take(9) for _ in range(5))]
    assert sizes == [(PIECE, 1), (PIECE, 0), (PIECE, 0), ((16 << 10) + 17 + HEADER - 3 * PIECE + 6, 1), (PIECE, 1)]


@pytest.mark.parametrize("length", range(1, HEADER))
def test_a_part_of_a_header_waits_for_the_rest(length: int) -> None:
    """It is not among what can be taken: nothing can be done with it."""
    held, data = Ciphertext(), record(7)
    held.add(record(2) + data[:length])
    assert (bytes(held.take(9)[0]), bool(held)) == (record(2), True)
    assert (bytes(held.take(9)[0]), bool(held)) == (b"", False)
    assert not held.is_record(data)
    held.add(data[length:])
    assert (bytes(held.take(9)[0]), bool(held)) == (data, False)


def test_what_is_one_record_needs_no_cutting() -> None:
    """Unless something comes before it."""
    held = Ciphertext()
    assert held.is_record(record(0))
    assert held.is_record(record(PIECE - HEADER))
    assert not held.is_record(record(PIECE))
    assert not held.is_record(record(7) + record(0))
    assert not held.is_record(record(7)[:-1])
    assert not held.is_record(record(7)[:4])
    held.add(record(7)[:-5])
    assert not held.is_record(record(0))
    held.take(1)
    assert not held.is_record(record(0))
    held.add(bytes(5))
    assert bytes(held.take(1)[0]) == bytes(5)
    assert held.is_record(record(0))


def test_memory_is_given_back() -> None:
    """At the end by itself, and before it when asked."""
    held, data = Ciphertext(), record(500)
    whole = sys.getrefcount(data)
    held.add(data)
    held.take(1)
    assert sys.getrefcount(data) == whole
    data += record(9)
    held.add(data)
    held.take(1)
    held.shrink()
    assert sys.getrefcount(data) == whole
    assert bytes(held.take(1)[0]) == record(9)
    held.clear()
    assert not held


@pytest.mark.parametrize("seed", range(30))
def test_nothing_is_lost_however_it_is_cut(seed: int) -> None:
    random = Random(seed)
    sizes = random.choices([0, 1, 20, PIECE, 16401], k=20)
    stream, held, pieces, records = b"".join(map(record, sizes)), Ciphertext(), b"", 0
    rest = stream
    while rest or held:
        step = random.choice([1, 3, 7, 5000, 100_000])
        if rest:
            held.add(rest[:step])
            rest = rest[step:]
        while random.random() < 0.8:  # also if there is nothing to take
            most = random.randint(1, 3)
            piece, count = held.take(most)
            assert len(piece) <= PIECE
            assert count <= most
            pieces += bytes(piece)
            records += count
    assert pieces == stream
    assert records == len(sizes)
