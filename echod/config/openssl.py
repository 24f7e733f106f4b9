"""Two things of OpenSSL that Python's ssl module can't set: the groups for the key exchange, and that no session is kept.

By default, a client may choose ffdhe8192 (RFC 7919), and a handshake then takes 100 ms of the loop instead of 0.2 ms: some such
clients a second would hold up everybody (CVE-2002-20001, "D(HE)at"). And OpenSSL remembers 20,480 sessions of TLS 1.2, each
with the client's certificate: up to 220 MB.

So this calls OpenSSL itself, if it finds what it expects. It does not if OpenSSL is a hidden part of Python's program: then
the ssl module can at least leave P-256 as the only group, which takes clients another round trip.
"""

from __future__ import annotations

import _ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

GROUPS = ("X25519MLKEM768:X25519:P-256:P-384:P-521", "X25519:P-256:P-384:P-521")
"""The best first. OpenSSL knows X25519MLKEM768 from 3.5 on. P-384 and P-521 are for keys of client certificates, too."""

# <openssl/ssl.h>
_SET_SESS_CACHE_MODE, _SESS_CACHE_OFF = 44, 0
_SET_GROUPS_LIST = 92


def restrict(context: ssl.SSLContext) -> bool:
    """Let a context of a server use `GROUPS` only, and keep no sessions. Return whether that was possible."""
    try:
        import ctypes  # noqa: PLC0415 - some Pythons are built without

        library = ctypes.CDLL(_ssl.__file__)  # it is loaded already; names are also looked up in what it is linked with
        control, options, forget = library.SSL_CTX_ctrl, library.SSL_CTX_get_options, library.ERR_clear_error
    except (ImportError, AttributeError, OSError):
        return False
    control.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p]
    control.restype = ctypes.c_long
    options.argtypes, options.restype = [ctypes.c_void_p], ctypes.c_uint64
    # The first field of the object (PySSLContext in Modules/_ssl.c).
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
    if options(pointer) != context.options:
        return False
    control(pointer, _SET_SESS_CACHE_MODE, _SESS_CACHE_OFF, None)
    done = any(control(pointer, _SET_GROUPS_LIST, 0, groups.encode()) for groups in GROUPS)
    forget()  # a name that was not known: Python would raise it as the error of another call
    return done
