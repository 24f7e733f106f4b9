"""The TLS kind of listener: its port is that of `tls.port`, and its connections are opened after a handshake.

An accepted connection gets its worker before the handshake, so that the pool and `[access]` bound the handshakes too. The log
has `connection.opened` after it, or `connection.rejected` if it fails.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, cast

from echod import x509
from echod.histogram import Histogram
from echod.server import tcp
from echod.server.acceptor import Acceptor
from echod.server.endpoint import Endpoint
from echod.server.session import Session
from echod.server.timeouts import SHORTEST_TICK

if TYPE_CHECKING:
    import _socket
    import asyncio
    import ssl

    from echod.config.certificates import Loaded
    from echod.config.settings import Settings
    from echod.log import Logger
    from echod.server.acceptor import Parts
    from echod.server.endpoint import Listener
    from echod.server.pool import Pool
    from echod.server.rejections import Rejections
    from echod.server.worker import Worker

KIND = "tls"
RESULTS = ("ok", "failed", "timeout", "closed")
"""How handshakes end. "closed": by the client, or because the connection was killed."""
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

bind = tcp.bind
tune = tcp.tune


def endpoints(settings: Settings) -> list[Endpoint]:
    """Return what the settings want of this kind."""
    port = settings.tls.port
    return [] if port is None else [Endpoint(KIND, host, port) for host in settings.listen.host]


def adopt(_sock: socket.socket) -> Listener | None:
    """Return `None`: a socket that was handed over is for plain TCP."""
    return None


def acceptor(parts: Parts, listener: Listener, *, waits: bool) -> Acceptor:
    """Return what accepts on this listener."""
    handshakes, plain = parts.handshakes, tcp.Plain(parts)
    parts.pool.unopened[listener.url] = handshakes.rejected

    def opening(worker: Worker, sock: _socket.socket) -> None:
        try:
            session = handshakes.begin(worker)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost the worker and the descriptor
            tcp.discard(parts.pool, worker, sock, error)
            return
        plain.open(worker, sock, session)

    return Acceptor(parts, listener, peer=tcp.peer, opening=opening, waits=waits)


class Handshakes:
    """The handshakes of all connections, counted, and each for as long as it may take.

    One step is done in a turn of the loop, because it takes 0.1 to 0.4 ms and can't be divided.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, log: Logger, pool: Pool, rejections: Rejections) -> None:
        self.loop = loop
        self._log = log
        self._pool = pool
        self._rejections = rejections
        self.loaded: Loaded | None = None
        """What new connections get; open ones keep what they have."""
        # The last one that was loaded, also while TLS is off: clients in the backlog of a retired listener get it.
        self._context: ssl.SSLContext
        self._timeout: float | None = None
        self._queue: deque[Session] = deque()
        self._turn: asyncio.Handle | None = None
        self.count: Counter[str] = Counter()  # by result
        self.probes = 0  # connections that ended without a byte
        self.seconds = Histogram(*SECONDS)  # from accept to the end of the handshake, of those that went well

    def set(self, settings: Settings, loaded: Loaded | None) -> None:
        """Begin new connections with this certificate, which is logged."""
        self._timeout = settings.timeouts.handshake
        self.loaded = loaded
        if loaded:
            self._context = loaded.context
            self._log.info(
                "tls.loaded",
                certificate=settings.tls.certificate,
                subject=loaded.certificate.subject,
                not_after=x509.timestamp(loaded.certificate.not_after),
            )

    def begin(self, worker: Worker) -> Session:
        """Return the session for a worker that has got a connection."""
        return Session(worker, self._context, self)

    def watch(self, session: Session) -> None:
        """Let the handshake take what is left of the time that it may take together with a PROXY header."""
        if self._timeout is not None:
            left = max(0.0, session.worker.opened + self._timeout - time.monotonic())
            session.timer = self.loop.call_later(left, self._on_late, session, self.loop.time() + left)

    def _on_late(self, session: Session, due: float) -> None:
        if self.loop.time() - due <= SHORTEST_TICK:
            session.expire()
        else:  # the loop was held up, or the process stopped (SIGSTOP): what has come meanwhile is handled first
            session.timer = self.loop.call_later(SHORTEST_TICK, session.expire)

    def queue(self, session: Session) -> None:
        """Have the next step of this handshake done when its turn comes."""
        self._queue.append(session)
        if self._turn is None:
            self._turn = self.loop.call_soon(self._next)

    def turns(self, source: str | None) -> int:
        """Return the turns of the loop until all queued steps are done. Only then, the ends of these connections are seen.

        0 if this source has no connection in a handshake; `None` stands for all sources.
        """
        return len(self._queue) if source is None or source in self._pool.opening else 0

    def _next(self) -> None:
        self._turn = None
        session = self._queue.popleft()
        try:
            self._step(session)
        except BaseException:  # such as no memory: it must not stay half-open
            session.abort()
            raise
        finally:
            if self._queue and self._turn is None:
                self._turn = self.loop.call_soon(self._next)

    def _step(self, session: Session) -> None:
        worker = session.worker
        if not session.step():
            return
        if session.timer:
            session.timer.cancel()
            session.timer = None
        self.count["ok"] += 1
        self.seconds.observe(time.monotonic() - worker.opened)
        self._pool.open(worker, _negotiated(session.tls))
        session.open()
        # In TLS 1.3 the client speaks last, and has no answer to wait for. With Nagle's algorithm it holds back its first data
        # until we acknowledge that (RFC 9293, 3.7.4), which the kernel would do after 40 ms.
        with contextlib.suppress(OSError):
            worker.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def rejected(self, worker: Worker, exc: BaseException | None) -> None:
        """Count and log that the connection of a worker has ended before it was opened. One without a byte was a probe."""
        if worker.transport is None:  # it could not be opened
            result, error = "closed", type(exc).__name__
        elif refusal := cast("Session", worker.transport).refusal:
            result, error = refusal
            if isinstance(exc, ConnectionError) and result == "closed":
                error = "the client has reset the connection"
        else:
            if worker.client.source:  # else the header of its proxy has made it a probe
                self._count_probe(worker)
            return
        self.count[result] += 1
        self._rejections.log(worker.client, worker.listener, "handshake", error)

    def _count_probe(self, worker: Worker) -> None:
        self.probes += 1
        self._log.debug("connection.probed", **worker.client.as_client(), listener=worker.listener, command=None)


def _negotiated(tls: ssl.SSLObject) -> dict[str, Any]:
    """Return what a handshake has led to, as log lines have it."""
    cipher, certificate = tls.cipher(), tls.getpeercert(binary_form=True)
    return {
        "version": tls.version(),
        "cipher": cipher and cipher[0],
        "client": x509.subject(certificate) if certificate else None,
    }
