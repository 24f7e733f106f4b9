"""The life of the process: start, serve, drain, stop.

Knows nothing of the command line and of where the settings came from.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import deque
from typing import TYPE_CHECKING

import uvloop

from echod import __version__, descriptors, listener
from echod.acceptor import Acceptor, Rejections
from echod.drain import Drain
from echod.janitor import Janitor
from echod.pool import Pool
from echod.values import printable

if TYPE_CHECKING:
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from echod.settings import Settings

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run(settings: Settings, file: Path | None, log: FilteringBoundLogger) -> None:
    """Serve until a signal ends it. Raises `Refusal` if it can't listen."""
    descriptors.raise_soft_limit(descriptors.needed(settings.pool.size))
    # Not asyncio.Runner: it runs the loop once more to close it, which needs descriptors, and there may be none left.
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(_live(settings, file, log))
    finally:
        loop.close()


async def _live(settings: Settings, file: Path | None, log: FilteringBoundLogger) -> None:
    daemon = _Daemon(settings, log)
    daemon.start(file)
    await daemon.told_to_stop.wait()
    aborted = await daemon.drain()
    daemon.stop(aborted)


class _Daemon:
    """What lives between start and stop. `start`, `drain` and `stop` are called once each, in this order."""

    def __init__(self, settings: Settings, log: FilteringBoundLogger) -> None:
        self._settings = settings
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._began = time.monotonic()
        self.told_to_stop = asyncio.Event()
        self._told_twice = self._loop.create_future()

    def start(self, file: Path | None) -> None:
        """Bind everything, and only then say so. Signals are heard from the first line on."""
        for number in _STOP_SIGNALS:
            self._loop.add_signal_handler(number, self._on_stop_signal)
        self._loop.add_signal_handler(signal.SIGHUP, self._on_reload_signal)
        settings = self._settings
        listeners = listener.bind(
            settings.listen.host,
            settings.listen.port,
            backlog=settings.listen.backlog,
            reuse_port=settings.listen.reuse_port,
        )
        self._pool = Pool(self._log, size=settings.pool.size, lifecycle=settings.log.connections)
        self._rejections = Rejections(self._loop, self._log)
        self._acceptors = [
            Acceptor(self._loop, self._log, each, self._pool, self._rejections, when_full=settings.pool.when_full)
            for each in listeners
        ]
        self._janitor = Janitor(
            self._loop, self._log, self._pool, idle=settings.timeouts.idle, write=settings.timeouts.write
        )
        if settings.pool.when_full == "wait":
            self._turns = deque(self._acceptors)
            self._pool.when_free = self._accept_by_turns
        for acceptor in self._acceptors:
            acceptor.resume()
        for each in listeners:
            self._log.info("listener.started", listener=each.url, backlog=settings.listen.backlog)
        self._log.info(
            "daemon.started",
            version=__version__,
            pid=os.getpid(),
            config=None if file is None else printable(str(file)),
            pool={"size": settings.pool.size, "when_full": settings.pool.when_full},
        )

    def _accept_by_turns(self) -> None:
        self._turns.rotate()  # who is first gets the worker that is free: were it always the same, it would starve the rest
        for acceptor in self._turns:
            acceptor.resume()

    def _on_stop_signal(self) -> None:
        if self.told_to_stop.is_set() and not self._told_twice.done():
            self._told_twice.set_result(None)
        self.told_to_stop.set()

    def _on_reload_signal(self) -> None:
        if not self.told_to_stop.is_set():
            self._log.error("config.rejected", errors=["this version of echod does not reload: restart it"])

    async def drain(self) -> int:
        """Stop accepting and let connections finish; return how many had to be cut. A second signal cuts all at once."""
        self._pool.when_free = None
        self._log.info("daemon.draining", in_use=len(self._pool.in_use), timeout=self._settings.timeouts.drain)
        for acceptor in self._acceptors:
            acceptor.close()
            self._log.info("listener.stopped", listener=acceptor.listener.url, backlog=self._settings.listen.backlog)
        self._rejections.flush()
        drain = Drain(self._pool)
        finishing = self._loop.create_task(self._finish(drain))
        self._told_twice.add_done_callback(lambda _: finishing.cancel())
        try:
            await finishing
        except asyncio.CancelledError:
            await drain.cut_all()
        return drain.aborted

    async def _finish(self, drain: Drain) -> None:
        empty = asyncio.Event()

        def look() -> None:
            if not self._pool.in_use:
                empty.set()

        self._pool.when_free = look
        look()
        try:
            async with asyncio.timeout(self._settings.timeouts.drain):
                await empty.wait()
        except TimeoutError:
            await drain.linger()

    def stop(self, aborted: int) -> None:
        """Say the last word. A signal that comes now changes nothing any more: it must not cut the log short."""
        signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOP_SIGNALS, signal.SIGHUP))
        self._janitor.close()
        self._log.info(
            "daemon.stopped",
            connections=self._pool.accepted,
            bytes_received=self._pool.bytes_received,
            aborted=aborted,
            uptime=round(time.monotonic() - self._began, 6),
        )
