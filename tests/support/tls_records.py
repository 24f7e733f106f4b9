"""TLS 1.3 records of a client, made by hand: Python's ssl module can't send a KeyUpdate (RFC 8446, 4.6.3 and 5.2)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CIPHER = "TLS_AES_256_GCM_SHA384"
"""The one that OpenSSL prefers, and that these records have."""
ALERT, HANDSHAKE, DATA = 21, 22, 23
KEY_UPDATE = 24
_HEADER = 5


class _Direction:
    """The keys of one direction (RFC 8446, 7.2 and 7.3)."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._key = AESGCM(_expand(secret, b"key", 32))
        self._iv = int.from_bytes(_expand(secret, b"iv", 12))
        self._number = 0

    def next(self) -> _Direction:
        return _Direction(_expand(self._secret, b"traffic upd", 48))

    def seal(self, plain: bytes) -> bytes:
        header = struct.pack(">BHH", DATA, 0x303, len(plain) + 16)
        return header + self._key.encrypt(self._nonce(), plain, header)

    def open(self, record: bytes) -> bytes:
        return self._key.decrypt(self._nonce(), record[_HEADER:], record[:_HEADER])

    def _nonce(self) -> bytes:
        number, self._number = self._number, self._number + 1
        return (self._iv ^ number).to_bytes(12)


def _expand(secret: bytes, label: bytes, length: int) -> bytes:
    name = b"tls13 " + label
    info = struct.pack(">HB", length, len(name)) + name + b"\0"
    return HKDFExpand(SHA384(), length, info).derive(secret)


class Records:
    """Takes over from an OpenSSL client when its handshake is done: `keylog` is the file with its secrets."""

    def __init__(self, keylog: Path) -> None:
        lines = (line.split() for line in keylog.read_text().splitlines() if not line.startswith("#"))
        secrets = {name: bytes.fromhex(secret) for name, _, secret in lines}
        self._ours = _Direction(secrets["CLIENT_TRAFFIC_SECRET_0"])
        self._theirs = _Direction(secrets["SERVER_TRAFFIC_SECRET_0"])
        self._unread = b""
        self.updates = 0  # of the server's keys

    def data(self, data: bytes) -> bytes:
        """Return a record with data."""
        return self._ours.seal(data + bytes([DATA]))

    def key_update(self, *, requested: bool = True) -> bytes:
        """Return a record that announces new keys, and asks for new ones of the server if `requested`."""
        record = self._ours.seal(bytes([KEY_UPDATE, 0, 0, 1, requested, HANDSHAKE]))
        self._ours = self._ours.next()
        return record

    def read(self, ciphertext: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the kind and the content of each whole record of the server."""
        self._unread += ciphertext
        while len(self._unread) >= _HEADER:
            size = _HEADER + int.from_bytes(self._unread[3:_HEADER])
            if len(self._unread) < size:
                return
            record, self._unread = self._unread[:size], self._unread[size:]
            plain = self._theirs.open(record).rstrip(b"\0")
            kind, content = plain[-1], plain[:-1]
            if kind == HANDSHAKE and content[0] == KEY_UPDATE:
                self._theirs = self._theirs.next()
                self.updates += 1
            yield kind, content

    def echo(self, ciphertext: bytes) -> bytes:
        """Return the data in records of the server."""
        return b"".join(content for kind, content in self.read(ciphertext) if kind == DATA)


def fragmented(record: bytes) -> bytes:
    """Return records of one byte each, in the place of one that is not encrypted (RFC 8446, 5.1)."""
    head = record[:3] + b"\0\1"
    return b"".join(head + bytes([byte]) for byte in record[_HEADER:])
