"""Fields of certificates: names as RFC 4514 has them, times, and the size of RSA keys."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

import pytest
from cryptography import x509 as maker
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID, ObjectIdentifier

from echod import x509

BEGIN, END = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)


def certificate(*attributes: maker.NameAttribute[str], end: datetime = END, bits: int = 0) -> bytes:
    key = rsa.generate_private_key(65537, bits) if bits else ec.generate_private_key(ec.SECP256R1())
    name = maker.Name(attributes)
    builder = maker.CertificateBuilder(name, name, key.public_key(), 1, BEGIN, end)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    ("attributes", "subject"),
    [
        ([(NameOID.COUNTRY_NAME, "DE"), (NameOID.COMMON_NAME, "probe")], "CN=probe,C=DE"),
        ([(NameOID.COMMON_NAME, 'a,b+c"d\\e;f<g>')], 'CN=a\\,b\\+c\\"d\\\\e\\;f\\<g\\>'),
        ([(NameOID.COMMON_NAME, "#x ")], "CN=\\#x\\ "),
        ([(NameOID.COMMON_NAME, "a\x1b[2J\n")], "CN=a\\u001b[2J\\u000a"),
        ([(NameOID.COMMON_NAME, "ü" * 32), (NameOID.ORGANIZATION_NAME, "é")], "O=é,CN=" + "ü" * 32),
        ([(NameOID.ORGANIZATIONAL_UNIT_NAME, "u" * 64)] * 5, ("OU=" + "u" * 64 + ",") * 3 + "OU=" + "u" * 46 + "..."),
        ([(ObjectIdentifier("1.2.840.113549.1.9.2"), "x")], "1.2.840.113549.1.9.2=x"),
    ],
)
def test_a_subject_is_one_line(attributes: list[tuple[ObjectIdentifier, str]], subject: str) -> None:
    der = certificate(*(maker.NameAttribute(kind, value, _validate=False) for kind, value in attributes))
    assert x509.subject(der) == subject


def test_times_and_the_size_of_rsa_keys() -> None:
    """A year from 2050 on is written in another form."""
    found = x509.parse(certificate())
    assert (found.not_before, found.not_after, found.rsa_bits) == (BEGIN, END, 0)
    late = datetime(2050, 1, 1, tzinfo=UTC)
    found = x509.parse(certificate(end=late, bits=2048))
    assert (found.not_after, found.rsa_bits) == (late, 2048)
    assert x509.timestamp(late) == "2050-01-01T00:00:00Z"


def test_a_key_for_rsa_pss_alone_is_an_rsa_key() -> None:
    """RFC 8017, A.2.3; its parameters are left out."""
    known, pss = bytes.fromhex("06092a864886f70d0101010500"), bytes.fromhex("06092a864886f70d01010a0500")
    assert x509.parse(certificate(bits=2048).replace(known, pss)).rsa_bits == 2048


def test_a_certificate_of_version_1_has_no_field_for_the_version() -> None:
    der = certificate(maker.NameAttribute(NameOID.COMMON_NAME, "x"))
    version = bytes.fromhex("a003020102")
    at = der.index(version)
    short = der[:at] + der[at + len(version) :]
    lengths = (
        (
            short[:2] + (int.from_bytes(short[2:4]) - 5).to_bytes(2),
            short[4:6] + (int.from_bytes(short[6:8]) - 5).to_bytes(2),
        )
        if short[5] == 0x82
        else (short[:2] + (int.from_bytes(short[2:4]) - 5).to_bytes(2), short[4:6] + bytes([short[6] - 5]))
    )
    body = short[8:] if short[5] == 0x82 else short[7:]
    assert x509.parse(b"".join(lengths) + body).subject == "CN=x"


@pytest.mark.parametrize("der", [b"", b"\x30", b"\x30\x00", b"\x30\x02\x30\x00", b"\x30\x04\x30\x02\x05\x00"])
def test_what_is_no_certificate_has_no_subject(der: bytes) -> None:
    assert x509.subject(der) == "?"


def test_reasons_are_openssls_words() -> None:
    error = ssl.SSLError(1, "[SSL: HTTP_REQUEST] http request (_ssl.c:1006)")
    error.reason = "HTTP_REQUEST"
    assert x509.reason(error) == "http request"
    failed = ssl.SSLCertVerificationError(1, "x")
    failed.reason = "CERTIFICATE_VERIFY_FAILED"
    failed.verify_message = "certificate has expired"
    assert x509.reason(failed) == "certificate verify failed: certificate has expired"
    assert x509.reason(ssl.SSLError(1, "too many messages")) == "too many messages"
    assert x509.reason(ssl.SSLError(9, "[SSL] PEM lib (_ssl.c:3926)")) == "pem lib"
