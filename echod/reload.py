"""Reloads: from a request to the settings in force, as a whole or not at all.

The file is read and checked in a thread, so that echoes go on meanwhile. The thread lives as long as one reload: a process with
idle threads pays for each system call. It is not one of the loop's executor, which waits at exit for a thread that hangs.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from echod import clock
from echod.config import checks, explain
from echod.config.settings import LEVELS, declared
from echod.errors import Refusal
from echod.text import printable, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from echod.config.load import Loaded
    from echod.config.settings import Setting, Settings
    from echod.log import Log
    from echod.server.server import Prepared, Server

_T = TypeVar("_T")
_MOST = 20
"""Items of a list in a log line."""
LONGEST = 60.0
"""Seconds for reading and checking a file."""
_MANY = 10_000
"""Objects left by the thread. Fewer are collected in a millisecond, and freezing them would keep those that are garbage."""
_PATIENCE = sys.getswitchinterval()
_TURN = 0.0001
"""Seconds that the loop waits for the interpreter while the thread computes; Python's usual 5 ms would hold up each echo."""
NOT_BOUND = "[listen] is not bound: the sockets come from systemd (LISTEN_FDS)"


class Change(NamedTuple):
    """The dotted names of the settings that have changed, and their values before and after, as TOML writes them.

    `warnings` are about likely mistakes, and about each setting by which more clients may connect than before.
    """

    names: list[str]
    old: dict[str, Any]
    new: dict[str, Any]
    warnings: list[str]


def change(before: Settings, loaded: Loaded, *, binds: bool = True) -> Change:
    """Compare. Raises `Refusal` with a line for each setting that needs a restart.

    Without `binds`, the sockets come from the service manager, and what `[listen]` says of them has no effect.
    """
    changed = [setting for setting in declared() if setting.of(before) != setting.of(loaded.settings)]
    old, new = _values(before, changed), _values(loaded.settings, changed)
    fixed = [
        f"{explain.origin((setting.section, setting.key), loaded.layers)}: {setting.name}: needs a restart to change from"
        f" {shown(old[setting.name])} to {shown(new[setting.name])}"
        for setting in changed
        if not setting.live
    ]
    if fixed:
        raise Refusal(*fixed)
    names = [setting.name for setting in changed]
    warnings = [*loaded.warnings, *checks.widened(before, loaded.settings, loaded.layers, binds=binds)]
    if not binds and {"listen.host", "listen.port", "listen.unix", "listen.unix_mode", "udp.port"} & set(names):
        warnings.append(NOT_BOUND)
    return Change(names, old, new, [printable(line) for line in warnings])


def _values(settings: Settings, names: Iterable[Setting]) -> dict[str, Any]:
    written = settings.model_dump(mode="json")
    return {setting.name: _brief(written[setting.section][setting.key]) for setting in names}


def _brief(value: Any) -> Any:  # noqa: ANN401 - what TOML can hold
    if not isinstance(value, list) or len(value) <= _MOST:
        return value
    return [*value[:_MOST], f"and {len(value) - _MOST} more"]


class Reloaded(NamedTuple):
    """How the last reload ended, or the start. Both times are moments of `clock.now`."""

    at: float
    in_force_since: float
    change: Change | None = None
    errors: Sequence[str] = ()
    exit_code: int = 0
    """Of `echod reload` if there are errors."""
    files: Mapping[str, str] = {}
    """By setting: the files that had something else in them than before, though the setting is the same."""


class Reloads:
    """Reloads a server by `load`, which is called in a thread with the file in force.

    `begins` and `ends` are called around each reload, for the service manager.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: Log,
        server: Server,
        loaded: Loaded,
        load: Callable[[Path | None], Loaded],
        *,
        begins: Callable[[], None],
        ends: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._log = log
        self._server = server
        self._load = load
        self._begins = begins
        self._ends = ends
        self._wanted = asyncio.Event()
        self._waiting: list[asyncio.Future[Reloaded | None]] = []  # for the answer to the next reload
        self.file = loaded.file
        self._has_keys = loaded.has_keys
        self.document = loaded.document()
        """The settings in force and their origins, as `GET /config` answers. Writing them takes time if lists are long."""
        self.last = Reloaded(clock.now(), clock.now())

    def request(self) -> None:
        """Have `run` reload."""
        self._wanted.set()

    async def requested(self) -> Reloaded | None:
        """Request a reload and wait for its end; `None` if the daemon is not serving yet, or stops."""
        if self._server.state != "running":
            return None
        answer: asyncio.Future[Reloaded | None] = self._loop.create_future()
        self._waiting.append(answer)
        self.request()
        return await answer

    async def run(self) -> None:
        """Reload when requested, one reload after another: a request meanwhile gets the answer to the next one."""
        waiting: list[asyncio.Future[Reloaded | None]] = []
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                waiting, self._waiting = self._waiting, []
                _answer(waiting, await self.reload())
        finally:
            _answer(waiting + self._waiting, None)

    async def reload(self) -> Reloaded:
        """Change over to the settings as they are now, as a whole or not at all; return how that ended."""
        self._begins()
        try:
            self.last = await self._reload()
        finally:
            self._ends()
        return self.last

    async def _reload(self) -> Reloaded:
        try:
            change, files = self._commit(*await in_thread(self._prepare))
        except Refusal as refusal:
            errors = [printable(line) for line in refusal.lines]
            # As for a start. All else is a configuration that the daemon refuses, such as one with a port that is taken.
            exit_code = os.EX_NOINPUT if refusal.exit_code == os.EX_NOINPUT else os.EX_CONFIG
        except Exception:  # noqa: BLE001 - a bug in a reload must not end the daemon
            self._log.exception("internal.error", message="a reload failed")
            errors, exit_code = ["internal error, please report it: the log has more"], os.EX_SOFTWARE
        else:
            return Reloaded(clock.now(), clock.now(), change, files=files)
        self._log.error("config.rejected", errors=errors)
        return Reloaded(clock.now(), self.last.in_force_since, errors=errors, exit_code=exit_code)

    def _prepare(self) -> tuple[Change, Loaded, dict[str, Any], Prepared]:
        """Do what takes time. Runs in the thread."""
        loaded = self._load(self.file)
        if self._has_keys and not loaded.has_keys:
            raise Refusal(
                f"{loaded.file}: has no key, but the settings in force came from a file that had some: it is probably"
                " half-written; for the defaults, leave one key in it, or restart"
            )
        changed = change(self._server.settings, loaded, binds=not self._server.listeners.inherited)
        changed.warnings.extend(self._server.listeners.unserved(loaded.settings))
        document, prepared = loaded.document(), self._server.prepare(loaded.settings)
        if prepared.tls and (more := prepared.tls.authorities_since(self._server.handshakes.loaded)):
            changed.warnings.append(printable(checks.more_authorities(more, loaded.layers)))
        return changed, loaded._replace(layers=()), document, prepared  # the layers are not small

    def _commit(
        self, change: Change, loaded: Loaded, document: dict[str, Any], prepared: Prepared
    ) -> tuple[Change, dict[str, str]]:
        began = time.perf_counter()
        before, settings = self._server.settings.log.level, loaded.settings
        files = prepared.tls.renewed(self._server.handshakes.loaded) if prepared.tls else {}
        self._server.apply(settings, prepared)
        seconds = round(time.perf_counter() - began, 6)
        # The lines about the reload pass if the old level or the new one lets them pass.
        level = min(before, settings.log.level, key=LEVELS.index)
        self._log.configure(settings.log.model_copy(update={"level": level}))
        self.file, self._has_keys, self.document = loaded.file, loaded.has_keys, document
        for warning in change.warnings:
            self._log.warning("config.warning", message=warning)
        more = {"files": files} if files else {}
        self._log.info("config.reloaded", changed=change.names, old=change.old, new=change.new, **more, seconds=seconds)
        self._log.configure(settings.log)
        return change, files


def _answer(waiting: Iterable[asyncio.Future[Reloaded | None]], answer: Reloaded | None) -> None:
    for each in waiting:
        if not each.done():  # the client that asked may have gone
            each.set_result(answer)


async def in_thread(function: Callable[[], _T]) -> _T:
    """Run a function in a thread of its own; return what it returns, or raise what it raises.

    Raises `Refusal` if there can be no thread, or if it takes longer than `LONGEST`; the thread then goes on, and what it
    returns is dropped.
    """
    future: concurrent.futures.Future[_T] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()  # a caller that waits no longer does not disturb the thread

    def job() -> None:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            future.set_exception(error)

    # The loop gets the interpreter back soon, and nothing that takes long happens while the thread has it.
    sys.setswitchinterval(_TURN)
    gc.disable()
    try:
        try:
            threading.Thread(target=job, name="reload", daemon=True).start()
        except RuntimeError as error:
            line = f"the reload's thread: {error}: allow more tasks (TasksMax=, ulimit -u) or memory"
            raise Refusal(line) from None
        async with asyncio.timeout(LONGEST):
            return await asyncio.wrap_future(future)
    except TimeoutError:
        raise Refusal(f"the file could not be read and checked within {LONGEST:.0f} s") from None
    finally:
        if gc.get_count()[0] > _MANY:
            gc.freeze()  # else the first collection would check all of them, on the loop
        gc.enable()
        sys.setswitchinterval(_PATIENCE)
