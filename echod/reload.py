"""A reload: what it changes, whether it may, and getting it ready off the loop.

Knows nothing of the parts that the settings reach; `daemon` applies them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import queue
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from echod.config import explain
from echod.config.settings import declared
from echod.config.types import shown
from echod.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from echod.config.load import Loaded
    from echod.config.settings import Setting, Settings

_T = TypeVar("_T")
_MOST = 20
"""Items of a list in a log line."""
LONGEST = 60.0
"""Seconds for reading and checking a file."""
_MANY = 10_000
"""Objects left by the thread. Fewer are collected in a millisecond; what is frozen and turns out to be garbage stays."""
_PATIENCE = sys.getswitchinterval()
_TURN = 0.0001
"""Seconds that the loop waits for the interpreter while the thread computes; Python's usual 5 ms would hold up each echo."""


class Change(NamedTuple):
    """The dotted names of what is not as before, and their values before and after, as TOML writes them."""

    names: list[str]
    old: dict[str, Any]
    new: dict[str, Any]


def change(before: Settings, loaded: Loaded) -> Change:
    """Compare. Raises `Refusal` with a line for each setting that needs a restart."""
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
    return Change([setting.name for setting in changed], old, new)


def _values(settings: Settings, names: Iterable[Setting]) -> dict[str, Any]:
    written = settings.model_dump(mode="json")
    return {setting.name: _brief(written[setting.section][setting.key]) for setting in names}


def _brief(value: Any) -> Any:  # noqa: ANN401 - what TOML can hold
    if not isinstance(value, list) or len(value) <= _MOST:
        return value
    return [*value[:_MOST], f"and {len(value) - _MOST} more"]


class Preparation:
    """Runs one function at a time in a thread, so that the loop can go on.

    The thread is made at once: to make one later may fail, and holds up the loop until it runs. Nor is it of the loop's
    executor: at exit, that one waits for a thread that hangs on a file. Raises `Refusal` if there can be no thread.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        try:
            threading.Thread(target=_work, args=(self._jobs,), name="reload", daemon=True).start()
        except RuntimeError as error:
            line = f"echod: the reload's thread: {error}: allow more tasks (TasksMax=, ulimit -u) or memory"
            raise Refusal(line, exit_code=os.EX_SOFTWARE) from None

    async def run(self, function: Callable[[], _T]) -> _T:
        """Return what the function returns, or raise what it raises. Raises `TimeoutError` after `LONGEST`."""
        future: concurrent.futures.Future[_T] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()  # whoever waits may stop waiting; the thread does not notice

        def job() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - whoever waits is told
                future.set_exception(error)

        # The loop gets the interpreter back soon, and nothing that takes long happens while the thread has it.
        sys.setswitchinterval(_TURN)
        gc.disable()
        try:
            self._jobs.put(job)
            async with asyncio.timeout(LONGEST):
                return await asyncio.wrap_future(future)
        finally:
            if gc.get_count()[0] > _MANY:
                gc.freeze()  # else the first collection would look at all of them, on the loop
            gc.enable()
            sys.setswitchinterval(_PATIENCE)

    def close(self) -> None:
        """Let the thread end, after what it does."""
        self._jobs.put(None)


def _work(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
    while job := jobs.get():
        job()
        del job
