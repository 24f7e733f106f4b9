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

from echod import __version__, limits, reload, unix
from echod.admin.status import Meter, Reloaded
from echod.config.settings import LEVELS
from echod.config.types import printable
from echod.errors import Refusal
from echod.histogram import Histogram
from echod.server import tcp
from echod.server.access import Access, Rules
from echod.server.drain import Drain
from echod.server.listeners import Frontend
from echod.server.pool import Pool
from echod.server.rejections import Rejections
from echod.server.timeouts import Janitor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from echod.admin.service import Admin
    from echod.admin.status import State
    from echod.config.load import Loaded
    from echod.config.settings import Admin as AdminSettings
    from echod.log import Log
    from echod.reload import Change
    from echod.server.worker import Worker
    from echod.systemd import Service

LAGS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds by which the loop may be late; its clock tells milliseconds."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_NOT_BOUND = "[listen] is not bound: the sockets come from systemd (LISTEN_FDS)"


def run(loaded: Loaded, log: Log, load: Callable[[Path | None], Loaded], service: Service) -> None:
    """Serve until a signal ends it. A reload calls `load` with the file in force, in a thread.

    Raises `Refusal` if it can't listen, or not on what the service has inherited.
    """
    limits.raise_soft_limit(limits.needed(loaded.settings.pool.size))
    # Not asyncio.Runner: it runs the loop once more to close it, which needs descriptors, and there may be none left.
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(_live(loaded, log, load, service))
    finally:
        loop.close()


async def _live(loaded: Loaded, log: Log, load: Callable[[Path | None], Loaded], service: Service) -> None:
    daemon = _Daemon(loaded, log, load, service)
    await daemon.start()
    await daemon.told_to_stop.wait()
    aborted = await daemon.drain()
    await daemon.stop(aborted)


class _Prepared(NamedTuple):
    """What a reload gets ready off the loop."""

    loaded: Loaded
    change: Change
    rules: Rules
    workers: list[Worker]


class _Daemon:
    """What lives between start and stop. `start`, `drain` and `stop` are called once each, in this order."""

    def __init__(self, loaded: Loaded, log: Log, load: Callable[[Path | None], Loaded], service: Service) -> None:
        self.loaded = loaded._replace(layers=())
        self.log = log
        self._load = load
        self._service = service
        self._loop = asyncio.get_running_loop()
        self.began = time.monotonic()
        self.told_to_stop = asyncio.Event()
        self._told_twice = self._loop.create_future()
        self._told_to_reload = asyncio.Event()
        self._asking: list[asyncio.Future[Reloaded | None]] = []  # who wait for the answer to the next reload
        self.reloaded = Reloaded(time.time(), time.time())
        self._serves = False
        self.lag = Histogram(*LAGS)
        self._admin: Admin | None = None

    @property
    def state(self) -> State:
        """Where in its life it is."""
        if self.told_to_stop.is_set():
            return "draining"
        return "running" if self._serves else "starting"

    async def start(self) -> None:
        """Bind everything, and only then say so. Signals are heard from the first line on."""
        for number in _STOP_SIGNALS:
            self._loop.add_signal_handler(number, self._on_stop_signal)
        self._loop.add_signal_handler(signal.SIGHUP, self._told_to_reload.set)
        settings, file = self.loaded.settings, self.loaded.file
        self.pool = Pool(self.log, size=settings.pool.size, lifecycle=settings.log.connections)
        self._access = Access(self._loop, self.pool.sources, Rules.of(settings.access))
        self.rejections = Rejections(self._loop, self.log)
        self.meter = Meter(self.pool, self.rejections)
        inherited = [tcp.adopt(*each) for each in self._service.inherited]
        self.frontend = Frontend(self._loop, self.log, self.pool, self._access, self.rejections, inherited=inherited)
        self._open_admin(settings.admin)
        try:
            bound = self.frontend.bind(settings.listen)
            self._preparation = reload.Preparation()
        except Refusal:
            await self._close_admin()
            raise
        self._warn(self.loaded)
        self._janitor = Janitor(
            self._loop,
            self.log,
            self.pool,
            idle=settings.timeouts.idle,
            write=settings.timeouts.write,
            looked=self._looked,
        )
        if inherited:
            names = [each.name for each in self._service.inherited]
            self.log.info("listener.inherited", names=names, message=_NOT_BOUND)
        self.frontend.serve(settings.listen, bound, settings.pool.when_full)
        self._serves = True
        self.log.info(
            "daemon.started",
            version=__version__,
            pid=os.getpid(),
            config=None if file is None else printable(str(file)),
            pool={"size": settings.pool.size, "when_full": settings.pool.when_full},
        )
        self._reloads = self._loop.create_task(self._reload_when_told())
        gc.freeze()  # what is there now stays: a collection that looked at all of it would hold up everyone for 20 ms
        self._service.ping(self._loop)
        self._service.ready(self._status)

    def _status(self) -> str:
        """Say in one line how it goes, for `systemctl status`."""
        in_use = len(self.pool.in_use)
        if self.told_to_stop.is_set():
            return f"draining, {in_use} connections open"
        return f"{in_use} of {self.pool.size} workers in use, listening on {', '.join(self.frontend.urls)}"

    def _open_admin(self, settings: AdminSettings) -> None:
        if settings.http == "off" and unix.of_daemon(settings.socket, os.environ) is None:
            return
        from echod.admin.service import Admin  # noqa: PLC0415 - with its libraries 2 MB, for who wants to ask

        self._admin = Admin(self._loop, self, settings)

    async def _close_admin(self) -> None:
        if self._admin:
            await self._admin.close()

    def _looked(self, late: float) -> None:
        self.lag.observe(late)
        if self._admin:
            self.meter.look()
        self._service.look(self._status)

    def _warn(self, loaded: Loaded) -> None:
        for warning in loaded.warnings:
            self.log.warning("config.warning", message=printable(warning))

    async def reload_now(self) -> Reloaded | None:
        """Reload, and say how that ended; `None` if the daemon stops instead."""
        if self.state != "running":
            return None
        answer: asyncio.Future[Reloaded | None] = self._loop.create_future()
        self._asking.append(answer)
        self._told_to_reload.set()
        return await answer

    async def _reload_when_told(self) -> None:
        """Reload, one time after another: who asks meanwhile gets the answer to the next one."""
        asking: list[asyncio.Future[Reloaded | None]] = []
        try:
            while True:
                await self._told_to_reload.wait()
                self._told_to_reload.clear()
                asking, self._asking = self._asking, []
                _answer(asking, await self.reload())
        finally:
            _answer(asking + self._asking, None)

    async def reload(self) -> Reloaded:
        """Change over to the settings as they are now, as a whole or not at all; return how that ended."""
        self._service.reloading()
        try:
            return await self._reload()
        finally:
            self._service.ready(self._status)

    async def _reload(self) -> Reloaded:
        try:
            change = self._apply(await self._prepared())
        except Refusal as refusal:
            errors = [printable(line) for line in refusal.lines]
        except Exception:  # a bug in a reload must not end the daemon
            self.log.exception("internal.error", message="a reload failed")
            errors = ["internal error, please report it: the log has more"]
        else:
            self.reloaded = Reloaded(time.time(), time.time(), change)
            return self.reloaded
        self.log.error("config.rejected", errors=errors)
        self.reloaded = Reloaded(time.time(), self.reloaded.in_force_since, errors=errors)
        return self.reloaded

    async def _prepared(self) -> _Prepared:
        try:
            return await self._preparation.run(self._prepare)
        except TimeoutError:
            hung, self._preparation = self._preparation, reload.Preparation()  # the new one first: it may be refused
            hung.close()
            raise Refusal(f"the file could not be read and checked within {reload.LONGEST:.0f} s") from None

    def _prepare(self) -> _Prepared:
        """Do what takes time. Runs in a thread, beside the loop."""
        loaded = self._load(self.loaded.file)
        change = reload.change(self.loaded.settings, loaded)
        growth = loaded.settings.pool.size - self.loaded.settings.pool.size
        loaded = loaded._replace(layers=())  # not needed any more, and not small
        return _Prepared(loaded, change, Rules.of(loaded.settings.access), self.pool.make(growth))

    def _apply(self, prepared: _Prepared) -> Change:
        began = time.perf_counter()
        before, settings = self.loaded.settings, prepared.loaded.settings
        limits.raise_soft_limit(limits.needed(settings.pool.size))
        bound = self.frontend.bind(settings.listen)
        # Up to here it may be refused, and nothing has changed but that limit; from here on nothing fails.
        self.loaded = prepared.loaded
        self.pool.lifecycle = settings.log.connections
        self.pool.resize(settings.pool.size, prepared.workers)
        self._access.replace(prepared.rules)
        self._janitor.set_timeouts(idle=settings.timeouts.idle, write=settings.timeouts.write)
        self.frontend.serve(settings.listen, bound, settings.pool.when_full)
        # The line that says so has to pass the old level or the new one, not both.
        level = min(before.log.level, settings.log.level, key=LEVELS.index)
        self.log.configure(settings.log.model_copy(update={"level": level}))
        self._warn(prepared.loaded)
        names, old, new = prepared.change
        seconds = round(time.perf_counter() - began, 6)
        if self._service.inherited and {"listen.host", "listen.port"} & set(names):
            self.log.warning("config.warning", message=_NOT_BOUND)
        self.log.info("config.reloaded", changed=names, old=old, new=new, seconds=seconds)
        self.log.configure(settings.log)
        return prepared.change

    def _on_stop_signal(self) -> None:
        if self.told_to_stop.is_set() and not self._told_twice.done():
            self._told_twice.set_result(None)
        self.told_to_stop.set()

    async def drain(self) -> int:
        """Stop accepting and let connections finish; return how many had to be cut. A second signal cuts all at once."""
        self._reloads.cancel()
        patience = self.loaded.settings.timeouts.drain
        self.log.info("daemon.draining", in_use=len(self.pool.in_use), timeout=patience)
        self._service.stopping(self._status)
        self.frontend.close()
        self.rejections.flush()
        drain = Drain(self.pool)
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
            if not self.pool.in_use:
                empty.set()

        self.pool.when_free = look
        look()
        try:
            async with asyncio.timeout(patience):
                await empty.wait()
        except TimeoutError:
            await drain.linger()

    async def stop(self, aborted: int) -> None:
        """Say the last word. A signal that comes now changes nothing any more: it must not cut the log short."""
        signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOP_SIGNALS, signal.SIGHUP))
        await self._close_admin()
        self._janitor.close()
        self._preparation.close()
        self.log.info(
            "daemon.stopped",
            connections=self.pool.accepted,
            bytes_received=self.pool.bytes_received,
            aborted=aborted,
            uptime=round(time.monotonic() - self.began, 6),
        )


def _answer(asking: Iterable[asyncio.Future[Reloaded | None]], answer: Reloaded | None) -> None:
    for each in asking:
        if not each.done():  # who asked may have gone
            each.set_result(answer)
