"""TLS of `ping` and `bench`. Imported only for a target that has it: the ssl module takes as long as all else at the start."""

from __future__ import annotations

import contextlib
import select
import ssl
from typing import TYPE_CHECKING

from echod.client.paths import WRONG_USAGE
from echod.errors import Refusal

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

_NOT_TLS = frozenset({"UNEXPECTED_MESSAGE", "WRONG_VERSION_NUMBER"})
"""OpenSSL's errors for an answer that is not TLS, such as an echo of the handshake."""


def context(ca: str | None, certificate: str | None, *, insecure: bool) -> ssl.SSLContext:
    """Return what verifies a server by the authorities of this file, or else of the system. Raises `Refusal`."""
    try:
        made = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise _unusable("--ca", ca, "certificates", error) from None
    if certificate is not None:
        try:
            made.load_cert_chain(certificate, password=lambda: b"")  # otherwise OpenSSL asks on the terminal
        except OSError as error:
            raise _unusable("--cert", certificate, "certificate with its key, without a passphrase,", error) from None
    if insecure:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made


def _unusable(option: str, file: str | None, content: str, error: OSError) -> Refusal:
    why = f"no {content} in PEM form" if isinstance(error, ssl.SSLError) else error.strerror
    return Refusal(f"echod: {option}: {file}: {why}", exit_code=WRONG_USAGE)


class Channel:
    """A TLS connection over a socket that doesn't block, with the methods of a socket that a stream needs.

    Raises `BlockingIOError` where a socket does. `wants` is then what to wait for (epoll(7)).
    """

    def __init__(self, sock: socket.socket, tls: ssl.SSLContext, host: str) -> None:
        self.sock = tls.wrap_socket(
            sock, server_hostname=host, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        """Takes the place of the socket that it was made of."""
        self.wants = select.EPOLLIN
        self._end = "the server closed the connection in the TLS handshake"

    def handshake(self) -> None:
        """Go on with the handshake. Raises `BlockingIOError` until it is done, or `OSError`."""
        with self._translated():
            self.sock.do_handshake()
        self._end = "ended without close_notify (TLS)"

    def send(self, data: memoryview) -> int:
        """Write what fits."""
        with self._translated():
            return self.sock.send(data)

    def recv(self, size: int) -> bytes:
        """Read what is there. Raises `ConnectionError` for an end without close_notify (RFC 8446, 6.1)."""
        with self._translated():
            return self.sock.recv(size)

    def pending(self) -> bool:
        """Return whether there are more bytes to read that epoll(7) knows nothing of."""
        return self.sock.pending() > 0

    def fileno(self) -> int:
        """Return the descriptor."""
        return self.sock.fileno()

    def close(self) -> None:
        """Send close_notify if there is room, and close."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: the handshake has not begun
            self.sock.unwrap()
        self.sock.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ssl.SSLWantReadError:
            self.wants = select.EPOLLIN
            raise BlockingIOError from None
        except ssl.SSLWantWriteError:
            self.wants = select.EPOLLOUT
            raise BlockingIOError from None
        except ssl.SSLEOFError:
            raise ConnectionError(self._end) from None
        except ssl.SSLCertVerificationError as error:
            raise ConnectionError(f"its certificate is not trusted: {error.verify_message}") from None
        except ssl.SSLError as error:
            if error.reason in _NOT_TLS:
                raise ConnectionError("the server does not speak TLS at this port") from None
            reason = (error.reason or str(error)).lower().replace("_", " ")
            _, is_alert, alert = reason.partition(" alert ")  # OpenSSL puts a version before it, such as sslv3
            raise ConnectionError(f"TLS: the server refuses: {alert}" if is_alert else f"TLS: {reason}") from None
