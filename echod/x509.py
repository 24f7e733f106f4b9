"""Reads a few fields of an X.509 certificate (RFC 5280, 4.1), because Python's ssl module tells them only of a peer's.

The input is DER that OpenSSL has parsed before. Names are written as RFC 4514 has it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from echod.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_NAME = 256
"""Characters of a name in a log line; a client's certificate may have a name of any length."""
_VERSION, _UTC_TIME = 0xA0, 0x17
_RSA = frozenset({bytes.fromhex("2a864886f70d010101"), bytes.fromhex("2a864886f70d01010a")})
"""RFC 8017, A.1 and A.2.3: rsaEncryption and id-RSASSA-PSS."""
_AROUND = re.compile(r"^\[[^]]*\] | \(_ssl\.c:\d+\)$")
"""What Python puts around OpenSSL's words: "[SSL] PEM lib (_ssl.c:3926)"."""
_ATTRIBUTES = {
    # RFC 4514, 3, and the one that certificates have besides
    "550403": "CN",
    "550406": "C",
    "550407": "L",
    "550408": "ST",
    "550409": "STREET",
    "55040a": "O",
    "55040b": "OU",
    "0992268993f22c640101": "UID",
    "0992268993f22c640119": "DC",
    "2a864886f70d010901": "emailAddress",
}
_ENCODINGS = {0x14: "latin-1", 0x1C: "utf-32-be", 0x1E: "utf-16-be"}
"""TeletexString, UniversalString, BMPString. All others are ASCII or UTF-8."""
_SPECIAL = ',+"\\<>;'


class Certificate(NamedTuple):
    """What echod says of a certificate."""

    subject: str
    not_before: datetime
    not_after: datetime
    rsa_bits: int
    """The size of its RSA key; 0 if its key is another one."""


def subject(der: bytes) -> str:
    """Return the subject of a client's certificate; "?" if it is not readable."""
    try:
        return parse(der).subject
    except ValueError:
        return "?"


def timestamp(moment: datetime) -> str:
    """Return a moment of a certificate as log lines have it (RFC 3339, UTC)."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def reason(error: BaseException) -> str:
    """Return why OpenSSL failed, in its own words: "http request", "certificate verify failed: certificate has expired"."""
    text = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    words = _AROUND.sub("", text).replace("_", " ").lower()
    detail = getattr(error, "verify_message", None)
    return f"{words}: {detail}" if detail else words


class _Value(NamedTuple):
    tag: int
    content: bytes


def parse(der: bytes) -> Certificate:
    """Return the fields of a certificate. Raises `ValueError` if they are not where they should be."""
    try:
        (body,) = _values(der)
        fields = list(_values(next(_values(body.content)).content))
        if fields[0].tag == _VERSION:
            del fields[0]
        _serial, _algorithm, _issuer, validity, subject, key, *_ = fields
        not_before, not_after = map(_time, _values(validity.content))
        return Certificate(_name(subject.content), not_before, not_after, _rsa_bits(key.content))
    except (IndexError, StopIteration) as error:
        raise ValueError("a field is missing") from error


def _values(der: bytes) -> Iterator[_Value]:
    """Yield the values in DER, one after the other (X.690, 8.1)."""
    at = 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(der[at : at + size])
            at += size
        yield _Value(tag, der[at : at + length])
        at += length


def _time(value: _Value) -> datetime:
    """Return UTCTime or GeneralizedTime; the years of the first are from 1950 to 2049 (RFC 5280, 4.1.2.5)."""
    text = value.content.decode("ascii")
    if value.tag == _UTC_TIME:
        text = ("19" if text >= "5" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _rsa_bits(key: bytes) -> int:
    algorithm, bits = _values(key)
    if next(_values(algorithm.content)).content not in _RSA:
        return 0
    numbers = next(_values(bits.content[1:]))  # after the number of unused bits
    return int.from_bytes(next(_values(numbers.content)).content).bit_length()


def _name(name: bytes) -> str:
    """Return a name on one line, the most specific part first, without characters that would break it, and cut if it is long."""
    parts = [
        "+".join(_attribute(*_values(attribute.content)) for attribute in _values(part.content))
        for part in _values(name)
    ]
    text = printable(",".join(reversed(parts)))
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 3]}..."


def _attribute(kind: _Value, value: _Value) -> str:
    text = value.content.decode(_ENCODINGS.get(value.tag, "utf-8"), errors="replace")
    escaped = "".join(f"\\{char}" if char in _SPECIAL else char for char in text)
    if text.startswith((" ", "#")):
        escaped = f"\\{escaped}"
    if text.endswith(" ") and len(text) > 1:
        escaped = f"{escaped[:-1]}\\ "
    number = kind.content.hex()
    return f"{_ATTRIBUTES.get(number) or _dotted(kind.content)}={escaped}"


def _dotted(identifier: bytes) -> str:
    """Return an object identifier with dots (X.690, 8.19)."""
    numbers, number = [], 0
    for byte in identifier:
        number = number << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(number)
            number = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, [first, numbers[0] - 40 * first, *numbers[1:]]))
