"""Certificates for tests, made by trustme: an authority, what it has signed, and the contexts of clients."""

from __future__ import annotations

import _ssl
import atexit
import contextlib
import ctypes
import functools
import os
import shutil
import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trustme

if TYPE_CHECKING:
    from datetime import datetime

    from tests.support.fakes import FakeLoop, FakeTransport


@functools.cache
def _folder() -> Path:
    folder, made_by = Path(tempfile.mkdtemp(prefix="echod-pem-")), os.getpid()

    def remove() -> None:
        if os.getpid() == made_by:  # and not a process that was forked from it: mutmut forks one for each mutant
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


@functools.cache
def authority(name: str = "one") -> trustme.CA:
    return trustme.CA(organization_name=f"authority {name}")


@functools.cache
def authority_file(name: str = "one") -> str:
    path = _folder() / f"ca-{name}.pem"
    authority(name).cert_pem.write_to_path(str(path))
    return str(path)


@functools.cache
def pem_file(name: str = "localhost", by: str = "one", key: bool = True, not_after: datetime | None = None) -> str:  # noqa: FBT001, FBT002 - functools.cache
    """Return a file with a certificate for this name, its chain, and its key."""
    more: dict[str, Any] = {} if not_after is None else {"not_after": not_after}
    leaf = authority(by).issue_cert(name, "127.0.0.1", common_name=name, **more)
    path = _folder() / f"{len(list(_folder().iterdir()))}.pem"
    parts = [blob.bytes() for blob in leaf.cert_chain_pems] + ([leaf.private_key_pem.bytes()] if key else [])
    path.write_bytes(b"".join(parts))
    path.chmod(0o600)
    return str(path)


def shake_hands(loop: FakeLoop, transport: FakeTransport) -> None:
    """Be the client of this connection, until its handshake is complete."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    for _ in range(3):
        with contextlib.suppress(ssl.SSLWantReadError):
            there.do_handshake()
        if data := outgoing.read():
            transport.receive(data)
        loop.run()
        incoming.write(transport.taken)
        transport.taken.clear()


def client_hello() -> bytes:
    """Return the first message of a client."""
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        client_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def choose_group(context: ssl.SSLContext, group: str) -> None:
    """Let a client offer this group alone for the key exchange. `set_ecdh_curve` knows ffdhe8192 in some builds only."""
    control = ctypes.CDLL(_ssl.__file__).SSL_CTX_ctrl
    control.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p]
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
    assert control(pointer, 92, 0, group.encode())  # SSL_CTRL_SET_GROUPS_LIST


def client_context(
    *, certificate: str | None = None, version: ssl.TLSVersion | None = None, keylog: Path | None = None
) -> ssl.SSLContext:
    """Return a context that trusts the first authority, and writes its secrets to `keylog`."""
    context = ssl.create_default_context(cafile=authority_file())
    if keylog:
        context.keylog_filename = str(keylog)
    if certificate:
        context.load_cert_chain(certificate)
    if version:
        context.minimum_version = context.maximum_version = version
    return context
