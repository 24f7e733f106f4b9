"""The life of the process: start, serve, reload, drain, stop.

Knows nothing of the command line and of where the settings came from.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from typing import TYPE_CHECKING, NamedTuple

import uvloop

from echod import __version__, descriptors, reload
from echod.access import Access, Rules
from echod.drain import Drain
from echod.errors import Refusal
from echod.frontend import Frontend
from echod.janitor import Janitor
from echod.pool import Pool
from echod.rejections import Rejections
from echod.settings import LEVELS
from echod.values import printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from echod.config import Loaded
    from echod.log import Log
    from echod.reload import Change
    from echod.worker import Worker

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run(loaded: Loaded, log: Log, load: Callable[[Path | None], Loaded]) -> None:
    """Serve until a signal ends it. A reload calls `load` with the file in force, in a thread.

    Raises `Refusal` if it can't listen.
    """
    descriptors.raise_soft_limit(descriptors.needed(loaded.settings.pool.size))
    # Not asyncio.Runner: it runs the loop once more to close it, which needs descriptors, and there may be none left.
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(_live(loaded, log, load))
    finally:
        loop.close()


async def _live(loaded: Loaded, log: Log, load: Callable[[Path | None], Loaded]) -> None:
    daemon = _Daemon(loaded, log, load)
    daemon.start()
    await daemon.told_to_stop.wait()
    aborted = await daemon.drain()
    daemon.stop(aborted)


class _Prepared(NamedTuple):
    """What a reload gets ready off the loop."""

    loaded: Loaded
    change: Change
    rules: Rules
    workers: list[Worker]


class _Daemon:
    """What lives between start and stop. `start`, `drain` and `stop` are called once each, in this order."""

    def __init__(self, loaded: Loaded, log: Log, load: Callable[[Path | None], Loaded]) -> None:
        self._loaded = loaded._replace(layers=())
        self._log = log
        self._load = load
        self._loop = asyncio.get_running_loop()
        self._began = time.monotonic()
        self.told_to_stop = asyncio.Event()
        self._told_twice = self._loop.create_future()
        self._told_to_reload = asyncio.Event()

    def start(self) -> None:
        """Bind everything, and only then say so. Signals are heard from the first line on."""
        for number in _STOP_SIGNALS:
            self._loop.add_signal_handler(number, self._on_stop_signal)
        self._loop.add_signal_handler(signal.SIGHUP, self._told_to_reload.set)
        settings, file = self._loaded.settings, self._loaded.file
        self._pool = Pool(self._log, size=settings.pool.size, lifecycle=settings.log.connections)
        self._access = Access(self._loop, self._pool.sources, Rules.of(settings.access))
        self._rejections = Rejections(self._loop, self._log)
        self._frontend = Frontend(self._loop, self._log, self._pool, self._access, self._rejections)
        bound = self._frontend.bind(settings.listen)
        self._preparation = reload.Preparation()
        self._warn(self._loaded)
        self._janitor = Janitor(
            self._loop, self._log, self._pool, idle=settings.timeouts.idle, write=settings.timeouts.write
        )
        self._frontend.serve(settings.listen, bound, settings.pool.when_full)
        self._log.info(
            "daemon.started",
            version=__version__,
            pid=os.getpid(),
            config=None if file is None else printable(str(file)),
            pool={"size": settings.pool.size, "when_full": settings.pool.when_full},
        )
        self._reloads = self._loop.create_task(self._reload_when_told())
        gc.freeze()  # what is there now stays: a collection that looked at all of it would hold up everyone for 20 ms

    def _warn(self, loaded: Loaded) -> None:
        for warning in loaded.warnings:
            self._log.warning("config.warning", message=printable(warning))

    async def _reload_when_told(self) -> None:
        while True:
            await self._told_to_reload.wait()
            self._told_to_reload.clear()
            await self.reload()

    async def reload(self) -> list[str]:
        """Change over to the settings as they are now, as a whole or not at all; return what is wrong with them."""
        try:
            self._apply(await self._prepared())
        except Refusal as refusal:
            errors = [printable(line) for line in refusal.lines]
        except Exception:  # noqa: BLE001 - a bug in a reload must not end the daemon
            self._log.exception("internal.error", message="a reload failed")
            errors = ["internal error, please report it: the log has more"]
        else:
            return []
        self._log.error("config.rejected", errors=errors)
        return errors

    async def _prepared(self) -> _Prepared:
        try:
            return await self._preparation.run(self._prepare)
        except TimeoutError:
            hung, self._preparation = self._preparation, reload.Preparation()  # the new one first: it may be refused
            hung.close()
            raise Refusal(f"the file could not be read and checked within {reload.LONGEST:.0f} s") from None

    def _prepare(self) -> _Prepared:
        """Do what takes time. Runs in a thread, beside the loop."""
        loaded = self._load(self._loaded.file)
        change = reload.change(self._loaded.settings, loaded)
        growth = loaded.settings.pool.size - self._loaded.settings.pool.size
        loaded = loaded._replace(layers=())  # not needed any more, and not small
        return _Prepared(loaded, change, Rules.of(loaded.settings.access), self._pool.make(growth))

    def _apply(self, prepared: _Prepared) -> None:
        began = time.perf_counter()
        before, settings = self._loaded.settings, prepared.loaded.settings
        descriptors.raise_soft_limit(descriptors.needed(settings.pool.size))
        bound = self._frontend.bind(settings.listen)
        # Up to here it may be refused, and nothing has changed but that limit; from here on nothing fails.
        self._loaded = prepared.loaded
        self._pool.lifecycle = settings.log.connections
        self._pool.resize(settings.pool.size, prepared.workers)
        self._access.replace(prepared.rules)
        self._janitor.set_timeouts(idle=settings.timeouts.idle, write=settings.timeouts.write)
        self._frontend.serve(settings.listen, bound, settings.pool.when_full)
        # The line that says so has to pass the old level or the new one, not both.
        level = min(before.log.level, settings.log.level, key=LEVELS.index)
        self._log.configure(settings.log.model_copy(update={"level": level}))
        self._warn(prepared.loaded)
        names, old, new = prepared.change
        seconds = round(time.perf_counter() - began, 6)
        self._log.info("config.reloaded", changed=names, old=old, new=new, seconds=seconds)
        self._log.configure(settings.log)

    def _on_stop_signal(self) -> None:
        if self.told_to_stop.is_set() and not self._told_twice.done():
            self._told_twice.set_result(None)
        self.told_to_stop.set()

    async def drain(self) -> int:
        """Stop accepting and let connections finish; return how many had to be cut. A second signal cuts all at once."""
        self._reloads.cancel()
        patience = self._loaded.settings.timeouts.drain
        self._log.info("daemon.draining", in_use=len(self._pool.in_use), timeout=patience)
        self._frontend.close()
        self._rejections.flush()
        drain = Drain(self._pool)
        finishing = self._loop.create_task(self._finish(drain, patience))
        self._told_twice.add_done_callback(lambda _: finishing.cancel())
        try:
            await finishing
        except asyncio.CancelledError:
            await drain.cut_all()
        return drain.aborted

    async def _finish(self, drain: Drain, patience: float | None) -> None:
        empty = asyncio.Event()

        def look() -> None:
            if not self._pool.in_use:
                empty.set()

        self._pool.when_free = look
        look()
        try:
            async with asyncio.timeout(patience):
                await empty.wait()
        except TimeoutError:
            await drain.linger()

    def stop(self, aborted: int) -> None:
        """Say the last word. A signal that comes now changes nothing any more: it must not cut the log short."""
        signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOP_SIGNALS, signal.SIGHUP))
        self._janitor.close()
        self._preparation.close()
        self._log.info(
            "daemon.stopped",
            connections=self._pool.accepted,
            bytes_received=self._pool.bytes_received,
            aborted=aborted,
            uptime=round(time.monotonic() - self._began, 6),
        )
