"""The frontend: all listeners of the daemon with their acceptors, which a reload may move.

Knows nothing of signals and files.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from echod.server import tcp
from echod.server.acceptor import Acceptor

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Sequence

    from echod.config.settings import Listen, WhenFull
    from echod.log import Logger
    from echod.server.access import Access
    from echod.server.pool import Pool
    from echod.server.rejections import Rejections
    from echod.server.tcp import Listener


class Frontend:
    """Gives one pool the connections of several listeners.

    Those that were `inherited`, if there are any, stand in for all that is wanted, now and after each reload.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: Logger,
        pool: Pool,
        access: Access,
        rejections: Rejections,
        *,
        inherited: Sequence[Listener] = (),
    ) -> None:
        self._loop = loop
        self._log = log
        self._pool = pool
        self._access = access
        self._rejections = rejections
        self._inherited = inherited
        self._acceptors: deque[Acceptor] = deque()  # also those that are retired and not yet closed
        self._listen: Listen | None = None
        self._paused_seconds = 0.0  # of acceptors that are closed

    @property
    def acceptors(self) -> Iterable[Acceptor]:
        """All there are, also those that are retired and not yet closed."""
        return self._acceptors

    @property
    def paused_seconds(self) -> float:
        """For how long acceptors have paused after errors, all in all."""
        return self._paused_seconds + sum(acceptor.paused_seconds for acceptor in self._acceptors)

    def bind(self, listen: Listen) -> list[Listener]:
        """Bind what is wanted and not there yet, for `serve`. Raises `Refusal`; then nothing has changed."""
        if self._inherited:
            return [] if self._acceptors else list(self._inherited)
        there = self._there(listen)
        return tcp.bind(
            [host for host in listen.host if host not in there],
            self._port(listen),
            backlog=listen.backlog,
            reuse_port=listen.reuse_port,
            beside=[acceptor.listener for acceptor in self._acceptors if acceptor not in there.values()],
        )

    def serve(self, listen: Listen, bound: list[Listener], when_full: WhenFull) -> None:
        """Accept on what is wanted: on the listeners just bound for it, and on those that were there; on no others."""
        wanted = self._there(listen).values()
        self._listen = listen
        self._pool.when_free = self._resume_by_turns if when_full == "wait" else None
        for acceptor in self._acceptors:
            acceptor.waits = when_full == "wait"
        for each in bound:
            self._acceptors.append(
                Acceptor(
                    self._loop,
                    self._log,
                    each,
                    self._pool,
                    access=self._access,
                    rejections=self._rejections,
                    waits=when_full == "wait",
                )
            )
            self._log.info("listener.started", listener=each.url, backlog=each.backlog)
        for acceptor in list(self._acceptors):
            if acceptor in wanted or acceptor.listener in (*bound, *self._inherited):
                acceptor.revive()
                acceptor.resume()
            else:
                acceptor.retire(self._forget)

    @property
    def urls(self) -> list[str]:
        """The names of the listeners that are not retired."""
        return sorted(acceptor.listener.url for acceptor in self._acceptors if not acceptor.is_retired)

    def close(self) -> None:
        """Stop listening, everywhere."""
        self._pool.when_free = None
        while self._acceptors:
            acceptor = self._acceptors[0]
            acceptor.close()
            self._forget(acceptor)

    def _port(self, listen: Listen) -> int:
        """Return the port that is wanted. One that the kernel chose stays."""
        if self._listen and listen.port == self._listen.port == 0:
            return next(acceptor.listener.port for acceptor in self._acceptors if not acceptor.is_retired)
        return listen.port

    def _there(self, listen: Listen) -> dict[str, Acceptor]:
        """Return the acceptors that these settings want, by their hosts."""
        port = self._port(listen)
        return {
            acceptor.listener.host: acceptor
            for acceptor in self._acceptors
            if acceptor.listener.host in listen.host and acceptor.listener.port == port
        }

    def _resume_by_turns(self) -> None:
        self._acceptors.rotate()  # who is first gets the worker that is free: were it always the same, it would starve the rest
        for acceptor in self._acceptors:
            acceptor.resume()

    def _forget(self, acceptor: Acceptor) -> None:
        self._acceptors.remove(acceptor)
        self._paused_seconds += acceptor.paused_seconds
        self._log.info("listener.stopped", listener=acceptor.listener.url, backlog=acceptor.listener.backlog)
