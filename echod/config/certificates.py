"""The certificate, key and authorities of `[tls]`: from their files to a context for connections, with clear errors.

Only a configuration with `tls.port` imports this.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import ssl
import stat
import time
from typing import TYPE_CHECKING, NamedTuple

from echod import x509
from echod.config import openssl
from echod.errors import Refusal
from echod.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from echod.config.settings import Tls
    from echod.x509 import Certificate

SOON = 14 * 86400.0
"""Seconds before its end from which a certificate needs attention."""
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: with forward secrecy and without CBC, as Mozilla's profile "intermediate" has it. Those of 1.3 all are like that."""
_ATTEMPTS = 3
_LARGE_KEY = 4096
_BEGIN = b"-----BEGIN CERTIFICATE-----"
_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")
_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_OF_ANOTHER = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
"""OpenSSL's reasons for a key that belongs to another certificate. The last two are for one of another type, such as RSA and EC."""
_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


class Loaded(NamedTuple):
    """A context for connections, and the certificate that it shows."""

    context: ssl.SSLContext
    certificate: Certificate
    contents: dict[str, tuple[str, bytes]]
    """By setting: its file, and a digest of what was in it."""

    def renewed(self, before: Loaded | None) -> dict[str, str]:
        """Return, by setting, the files that had something else in them `before`."""
        old = before.contents if before else {}
        return {
            setting: printable(name)
            for setting, (name, digest) in self.contents.items()
            if setting in old and old[setting][0] == name and old[setting][1] != digest
        }

    def authorities_since(self, before: Loaded | None) -> list[str]:
        """Return the subjects of the authorities that `before` did not have, if it asked for certificates of clients."""
        if before is None or before.context.verify_mode == ssl.CERT_NONE:
            return []
        old = before.context.get_ca_certs(binary_form=True)
        return [x509.subject(each) for each in self.context.get_ca_certs(binary_form=True) if each not in old]


class _Passphrase(Exception):  # noqa: N818 - not an error of the program
    pass


def load(tls: Tls) -> Loaded:
    """Read the files anew. Raises `Refusal` with the file's name, and with exit code 66 if one can't be read.

    If files are replaced meanwhile, what was read may not belong together: then they are read again.
    """
    for _ in range(_ATTEMPTS):
        before = _versions(tls)
        try:
            loaded = _load(tls)
        except Refusal:
            if _versions(tls) == before:
                raise
        else:
            if _versions(tls) == before:
                return loaded
    return _load(tls)


def _versions(tls: Tls) -> list[tuple[int, int]]:
    found = []
    for name in (tls.certificate, tls.key or tls.certificate, tls.client_ca):
        with contextlib.suppress(OSError, ValueError):
            stat_ = os.stat(name)  # noqa: PTH116
            found.append((stat_.st_ino, stat_.st_mtime_ns))
    return found


def _load(tls: Tls) -> Loaded:
    key_file = tls.key or tls.certificate
    chain = _read("tls.certificate", tls.certificate)
    contents = {"tls.certificate": (tls.certificate, _digest(chain))}
    block = _BLOCK.search(chain)
    if block is None:
        raise _refusal("tls.certificate", tls.certificate, "has no certificate in PEM format")
    key = _read("tls.key", key_file)
    if tls.key:
        contents["tls.key"] = (key_file, _digest(key))
    if not _KEY.search(key):
        hint = "" if tls.key else ": name its file in tls.key"
        raise _refusal("tls.key", key_file, f"has no private key in PEM format{hint}")
    context = _context()
    try:
        context.load_cert_chain(tls.certificate, key_file, password=_no_passphrase)
    except _Passphrase:
        raise _refusal("tls.key", key_file, "needs a passphrase, which echod can't ask for: store it without") from None
    except (ssl.SSLError, OSError) as error:
        raise _unfit(tls, error) from None
    context.verify_mode = _VERIFY[tls.verify]
    if tls.verify != "none":
        contents["tls.client_ca"] = (tls.client_ca, _digest(_read("tls.client_ca", tls.client_ca)))
        try:
            context.load_verify_locations(tls.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise _refusal("tls.client_ca", tls.client_ca, f"has no usable certificate: {x509.reason(error)}") from None
    try:
        certificate = x509.parse(ssl.PEM_cert_to_DER_cert(block[0].decode("ascii")))
    except ValueError as error:
        raise _refusal("tls.certificate", tls.certificate, f"can't be read as a certificate: {error}") from None
    return Loaded(context, certificate, contents)


def _context() -> ssl.SSLContext:
    """Return a context for TLS 1.2 and 1.3, without anything that keeps state or lets the client start over."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers(CIPHERS)
    context.num_tickets = 0
    if not openssl.restrict(context):
        context.set_ecdh_curve("prime256v1")  # the only way that ssl has: no other group than P-256
    return context


def _no_passphrase() -> str:
    raise _Passphrase


def _read(setting: str, name: str) -> bytes:
    try:
        mode = os.stat(name).st_mode  # noqa: PTH116 - a name with a NUL raises ValueError in both
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe would wait for a writer, and a device never ends
            raise _unreadable(setting, name, "it is not a regular file")
        with open(name, "rb") as file:  # noqa: PTH123
            content = file.read()
    except (OSError, ValueError) as error:
        raise _unreadable(setting, name, error.strerror if isinstance(error, OSError) else str(error)) from None
    last = content.rpartition(b"\n")[2]
    if last and _BEGIN.startswith(last):  # OpenSSL would do without the certificate that begins there
        raise _refusal(setting, name, "ends in the middle of a line: it is probably half-written")
    return content


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _unreadable(setting: str, name: str, why: str | None) -> Refusal:
    return Refusal(f"{name}: {setting}: can't be read: {why}", exit_code=os.EX_NOINPUT)


def _refusal(setting: str, name: str, why: str) -> Refusal:
    return Refusal(f"{name}: {setting}: {why}")


def _unfit(tls: Tls, error: OSError) -> Refusal:
    key_file, reason = tls.key or tls.certificate, getattr(error, "reason", None)
    if reason in _OF_ANOTHER:
        return _refusal("tls.key", key_file, f"is not the key of the first certificate in {tls.certificate}")
    if not reason and _can_be_read(tls.certificate):  # OpenSSL does not say which file is at fault
        return _refusal("tls.key", key_file, "has a private key that can't be read: it is damaged or half-written")
    return _refusal("tls.certificate", tls.certificate, f"can't be used with its key: {x509.reason(error)}")


def _can_be_read(certificates: str) -> bool:
    with contextlib.suppress(OSError):
        _context().load_verify_locations(certificates)
        return True
    return False


def warnings(tls: Tls, certificate: Certificate) -> Iterator[str]:
    """Yield a line for each thing that works but needs attention."""
    now, key_file = time.time(), tls.key or tls.certificate
    begins, ends = certificate.not_before.timestamp(), certificate.not_after.timestamp()
    if now >= ends:
        yield f"{tls.certificate}: tls.certificate: has expired at {x509.timestamp(certificate.not_after)}: clients will refuse it"
    elif now >= ends - SOON:
        yield f"{tls.certificate}: tls.certificate: expires at {x509.timestamp(certificate.not_after)}: renew it"
    if now < begins:
        text = f"is not valid before {x509.timestamp(certificate.not_before)}: clients will refuse it"
        yield f"{tls.certificate}: tls.certificate: {text}"
    if certificate.rsa_bits >= _LARGE_KEY:
        text = f"has an RSA key of {certificate.rsa_bits} bits: each handshake holds up all connections for about 4 ms"
        yield f"{tls.certificate}: tls.certificate: {text}; take an ECDSA key (P-256), or RSA with 2048 bits"
    with contextlib.suppress(OSError):  # it was there a moment ago
        if os.stat(key_file).st_mode & stat.S_IROTH:  # noqa: PTH116
            yield f"{key_file}: tls.key: every user of this machine can read it: chmod o-r"
