"""The life of the process: start, serve, lame duck, drain, stop; signals, and what the service manager is told."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import time
from typing import TYPE_CHECKING

import uvloop

from echod import __version__
from echod.config import admin_socket
from echod.errors import Refusal
from echod.reload import NOT_BOUND, Reloads
from echod.server.listeners import adopt
from echod.server.server import Server
from echod.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from echod.admin.service import Admin
    from echod.config.load import Loaded
    from echod.config.settings import Admin as AdminSettings
    from echod.log import Log
    from echod.systemd import Service

_LATE = 1.0
"""Seconds for which lines of the log may be held until the status says so."""
NEVER = 2**31 - 1
"""A threshold that no counter of the garbage collector reaches."""
YOUNG = 10
"""Collections of young objects after which a full one is worth while, as Python has it."""
FEW = 1000
"""Connections whose objects a full collection checks in 0.7 ms."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run(loaded: Loaded, log: Log, load: Callable[[Path | None], Loaded], service: Service) -> None:
    """Serve until a signal ends it. A reload calls `load` with the file in force, in a thread.

    Raises `Refusal` if the daemon can't listen, or can't serve on the sockets that the service has inherited.
    """
    # Not asyncio.Runner: it runs the loop once more to close it, which needs descriptors, and there may be none left.
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(_live(loaded, log, load, service))
    finally:
        loop.close()


async def _live(loaded: Loaded, log: Log, load: Callable[[Path | None], Loaded], service: Service) -> None:
    daemon = Daemon(loaded, log, load, service)
    await daemon.start()
    await daemon.told_to_stop.wait()
    await daemon.wait_as_lame_duck()
    aborted = await daemon.drain()
    await daemon.stop(aborted)


class Daemon:
    """The process around a `Server`. `start`, `wait_as_lame_duck`, `drain` and `stop` are called once each, in this order."""

    def __init__(self, loaded: Loaded, log: Log, load: Callable[[Path | None], Loaded], service: Service) -> None:
        self._loaded = loaded
        self._log = log
        self._service = service
        self._loop = asyncio.get_running_loop()
        self.told_to_stop = asyncio.Event()
        self._told_to_drain = asyncio.Event()  # while it is a lame duck
        self._told_to_cut: asyncio.Future[None] = self._loop.create_future()
        self._adopted = adopt(service.inherited)
        self.server = Server(self._loop, log, inherited=self._adopted.listeners, checked=self._on_check)
        self.reloads = Reloads(
            self._loop,
            log,
            self.server,
            loaded,
            load,
            begins=service.reloading,
            ends=lambda: service.ready(self._status),
        )
        self._admin: Admin | None = None

    async def start(self) -> None:
        """Bind everything, and only then say so. Signals are noted from the first line on."""
        for number in _STOP_SIGNALS:
            self._loop.add_signal_handler(number, self._on_stop_signal)
        self._loop.add_signal_handler(signal.SIGHUP, self._on_hup)
        # A HUP may be pending since the start of the process, see `__main__`.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        settings, file = self._loaded.settings, self._loaded.file
        self._open_admin(settings.admin)
        mistaken = [self._service.mistaken] if self._service.mistaken else []
        try:
            self.server.apply(settings)
        except Refusal as refusal:
            await self._close_admin()
            hints = [f"echod: {line}" for line in mistaken]
            raise Refusal(*refusal.lines, *hints, exit_code=refusal.exit_code) from None
        unreachable = settings.admin.socket == "auto" and admin_socket.of_daemon("auto", os.environ) is None
        nowhere = [admin_socket.NOWHERE] if unreachable else []
        unserved = self.server.listeners.unserved(settings)
        for warning in [*self._loaded.warnings, *mistaken, *self._adopted.problems, *unserved, *nowhere]:
            self._log.warning("config.warning", message=printable(warning))
        if self._adopted.listeners:
            self._log.info("listener.inherited", names=self._adopted.names, message=NOT_BOUND)
        self._log.info(
            "daemon.started",
            version=__version__,
            pid=os.getpid(),
            config=None if file is None else printable(str(file)),
            pool={"size": settings.pool.size, "when_full": settings.pool.when_full},
        )
        self._reloading = self._loop.create_task(self.reloads.run())
        # A full collection checks every object: 20 ms for what there is now, which stays, and 10 ms for 15,000 connections
        # (measured). Echoing makes no garbage that needs one. So there are only those of `_on_check`; the others, of
        # 7,000 young objects at the most, take 0.7 ms.
        gc.freeze()
        gc.set_threshold(*gc.get_threshold()[:2], NEVER)
        self._service.ping(self._loop)
        self._service.ready(self._status)

    def _open_admin(self, settings: AdminSettings) -> None:
        if settings.http == "off" and admin_socket.of_daemon(settings.socket, os.environ) is None:
            return
        # Here, because with their libraries they are 2 MB that a daemon without a socket does not need.
        from echod.admin.service import Admin  # noqa: PLC0415
        from echod.admin.status import Running  # noqa: PLC0415

        self._admin = Admin(self._loop, Running(self.server, self.reloads, self._log), settings)

    async def _close_admin(self) -> None:
        if self._admin:
            await self._admin.close()

    def _on_check(self) -> None:
        if gc.get_count()[2] > YOUNG and len(self.server.pool.in_use) < FEW:
            gc.collect()
        if self._admin:
            self._admin.check()
        self._service.look(self._status)

    def _status(self) -> str:
        """Return one line about the daemon, for `systemctl status`."""
        in_use, pool, held = len(self.server.pool.in_use), self.server.pool, self._log.held
        duck = self.server.lame_duck
        log = f", the log is held up: {held.why}" if (held.since or 0) >= _LATE else ""
        if self.told_to_stop.is_set() and not duck:
            return f"draining, {in_use} connections open{log}"
        listeners = self.server.listeners
        urls = ", ".join(listeners.urls) or "no address"
        missing = f"; missing: {', '.join(listeners.missing)}" if listeners.missing else ""
        refused = "; the last reload was refused: run `echod reload` for the reasons"
        ready = "" if not duck else "lame duck, not ready: " if duck.until is None else "lame duck before the drain: "
        serving = f"{in_use} of {pool.size} workers in use, listening on {urls}{missing}"
        return f"{ready}{serving}{log}{refused * bool(self.reloads.last.errors)}"

    def _on_hup(self) -> None:
        if self._admin:
            self._admin.reopen()
        self.reloads.request()

    def _on_stop_signal(self) -> None:
        if not self.told_to_stop.is_set():
            self.server.prepare_stop()
            self.told_to_stop.set()
        elif self.server.lame_duck:
            self.server.begin_drain()
            self._told_to_drain.set()
        elif not self._told_to_cut.done():
            self._told_to_cut.set_result(None)

    async def wait_as_lame_duck(self) -> None:
        """Serve everyone, but be not ready, until `timeouts.lame_duck` is over or the next signal comes."""
        duck = self.server.lame_duck
        if duck and duck.until is not None:
            self._service.stopping(self._status)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(duck.until - time.monotonic()):
                    await self._told_to_drain.wait()
        self.server.begin_drain()

    async def drain(self) -> int:
        """Stop accepting and let connections finish; return how many were cut. The next signal cuts all at once."""
        self._reloading.cancel()
        patience = self.server.settings.timeouts.drain
        self._log.info(
            "daemon.draining",
            in_use=len(self.server.pool.in_use),
            timeout=patience,
            message="another TERM or INT (Ctrl-C) cuts all connections at once",
        )
        self._service.stopping(self._status)
        return await self.server.drain(patience, self._told_to_cut)

    async def stop(self, aborted: int) -> None:
        """Log `daemon.stopped`, ignoring further signals: they must not cut the log short."""
        signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOP_SIGNALS, signal.SIGHUP))
        await self._close_admin()
        self.server.close()
        self._log.info(
            "daemon.stopped",
            connections=self.server.pool.accepted,
            bytes_received=self.server.pool.bytes_received,
            aborted=aborted,
            uptime=round(time.monotonic() - self.server.began, 6),
        )
