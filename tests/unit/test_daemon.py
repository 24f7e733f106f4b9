"""Reloads, and the process's states, that no signal and no file can bring about."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from typing import TYPE_CHECKING, cast
from unittest import mock

import pytest
import uvloop

from echod import reload
from echod.config import load as config
from echod.config import settings
from echod.daemon import FEW, NEVER, YOUNG, Daemon
from echod.errors import Refusal
from echod.log import Log
from echod.reload import Reloaded
from echod.systemd import Service
from tests.support.harness import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from echod.server.worker import Worker

    Load = Callable[[Path | None], config.Loaded]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with (tmp_path / "log").open("w") as output:
        log = Log(output, settings.Log())
        yield log
        log.close()


def daemon_of(log: Log, load: Load, loaded: config.Loaded | None = None) -> Daemon:
    """Return a daemon with these settings in force, by default the default ones. It listens nowhere until a reload."""
    loaded = loaded or config.load(None, {}, {})
    daemon = Daemon(loaded, log, load, Service({}))
    daemon.server.settings = loaded.settings
    return daemon


def defaults(_: Path | None) -> config.Loaded:
    return config.load(None, {}, {})


def reload_by(log: Log, load: Load, times: int = 1, loaded: config.Loaded | None = None) -> list[tuple[list[str], int]]:
    """Return what each of some reloads is refused with, and its exit code."""

    async def reload_all() -> list[tuple[list[str], int]]:
        daemon = daemon_of(log, load, loaded)
        daemon.server.listeners.bind = lambda settings: []  # type: ignore[method-assign] # noqa: ARG005
        ends = [await daemon.reloads.reload() for _ in range(times)]
        for ended in ends[-1:]:
            refused = daemon._status().endswith("; the last reload was refused: run `echod reload` for the reasons")
            assert refused == bool(ended.errors)
        return [(list(ended.errors), ended.exit_code) for ended in ends]

    return uvloop.run(reload_all())


def test_a_bug_in_a_reload_does_not_end_the_daemon(log: Log, tmp_path: Path) -> None:
    """The reload is refused, and the log has the traceback."""

    def fail(_: Path | None) -> config.Loaded:
        raise ZeroDivisionError("a bug")

    (((error,), code),) = reload_by(log, fail)
    assert error.startswith("internal error")
    assert code == os.EX_SOFTWARE
    log.close()
    failed, rejected = (tmp_path / "log").read_text().splitlines()
    assert "ZeroDivisionError: a bug" in failed
    assert '"config.rejected"' in rejected


def test_without_the_default_file_a_reload_is_refused(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was in force: the defaults instead, while an editor replaces it, could open what it closes."""
    file = tmp_path / "echod.toml"
    file.write_text("[access]\nallow = ['127.0.0.0/8']")
    monkeypatch.setattr(config, "DEFAULT_FILE", file)

    def load(in_force: Path | None) -> config.Loaded:
        file.unlink()
        return config.load(in_force, {}, {}, again=True)

    assert reload_by(log, load) == [([f"{file}: can't be read: No such file or directory"], os.EX_NOINPUT)]


@pytest.mark.parametrize(
    "left", [b"", b"\n \t\r\n", b"# [access]\n# allow = []\n", b"\xef\xbb\xbf", b"[listen]\n[access]\n", b"access = {}"]
)
def test_a_file_without_a_key_is_refused_if_the_one_before_had_some(log: Log, tmp_path: Path, left: bytes) -> None:
    """So an emptied or half-written file changes nothing. The next whole file is taken."""
    file = tmp_path / "echod.toml"
    file.write_text("[access]\nallow = ['127.0.0.0/8']")
    texts = iter([left, left, b"[access]\ndeny = []"])

    def load(in_force: Path | None) -> config.Loaded:
        file.write_bytes(next(texts))
        return config.load(in_force, {}, {}, again=True)

    first, second, third = reload_by(log, load, 3, config.load(file, {}, {}))
    assert first == second
    ((line,), code) = first
    assert line.startswith(f"{file}: has no key, but the settings in force came from a file that had some")
    assert code == os.EX_CONFIG
    assert third == ([], os.EX_OK)


def test_a_file_without_a_key_is_taken_if_the_one_before_had_none(log: Log, tmp_path: Path) -> None:
    """As at a start."""
    file = tmp_path / "echod.toml"
    file.write_text("[access]")
    loaded = config.load(file, {}, {})
    assert reload_by(log, lambda file: config.load(file, {}, {}, again=True), 2, loaded) == [([], os.EX_OK)] * 2


def test_a_file_that_hangs_holds_up_no_later_reload(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one on a network that has gone: it is given up, and the next one is read."""
    come_back = threading.Event()
    hangs = iter([True, False])
    monkeypatch.setattr(reload, "LONGEST", 0.1)

    def load(_: Path | None) -> config.Loaded:
        if next(hangs):
            come_back.wait(DEADLINE)
        raise Refusal("read")

    async def reload_twice() -> list[tuple[list[str], int]]:
        daemon = daemon_of(log, load)
        first = await daemon.reloads.reload()
        monkeypatch.setattr(reload, "LONGEST", DEADLINE)
        return [(list(ended.errors), ended.exit_code) for ended in (first, await daemon.reloads.reload())]

    assert uvloop.run(reload_twice()) == [
        (["the file could not be read and checked within 0 s"], os.EX_CONFIG),
        (["read"], os.EX_CONFIG),
    ]
    come_back.set()


def test_before_it_serves_and_when_it_stops_it_does_not_reload(log: Log) -> None:
    """A client of the admin socket is told so."""

    async def ask() -> list[object]:
        daemon = daemon_of(log, defaults)
        states: list[object] = [daemon.server.state, await daemon.reloads.requested()]
        daemon.server.state = "running"
        daemon._on_stop_signal()
        return [*states, daemon.server.state, await daemon.reloads.requested()]

    assert uvloop.run(ask()) == ["starting", None, "draining", None]


def test_the_second_stop_signal_cuts_and_later_ones_change_nothing(log: Log) -> None:
    """However many come before the loop goes on."""

    async def stop() -> list[tuple[bool, bool]]:
        daemon = daemon_of(log, defaults)
        states = []
        for _ in range(4):
            daemon._on_stop_signal()
            states.append((daemon.told_to_stop.is_set(), daemon._told_to_cut.done()))
        return states

    assert uvloop.run(stop()) == [(True, False), (True, True), (True, True), (True, True)]


@pytest.mark.parametrize("has_admin", [False, True])
def test_each_check_looks_after_the_admin_socket(log: Log, *, has_admin: bool) -> None:
    """If there is one."""
    admin = mock.Mock() if has_admin else None

    async def check() -> None:
        daemon = daemon_of(log, defaults)
        daemon._admin = admin
        daemon._on_check()

    uvloop.run(check())
    assert admin is None or admin.check.call_count == 1


def asked_at_once(log: Log, times: int, reloads: int) -> list[Reloaded | None]:
    """Return the answers to some requests for a reload at one time; after this many reloads the daemon stops."""

    async def ask() -> list[Reloaded | None]:
        daemon = daemon_of(log, defaults)
        daemon.server.state = "running"
        ended = asyncio.Event()
        left = iter(range(reloads))

        async def reload_instead() -> Reloaded:
            if next(left, None) is None:
                ended.set()
                await asyncio.Event().wait()
            return Reloaded(1.0, 1.0)

        daemon.reloads.reload = reload_instead  # type: ignore[method-assign]
        asking = [asyncio.create_task(daemon.reloads.requested()) for _ in range(times)]
        await asyncio.sleep(0)
        gone = asyncio.create_task(daemon.reloads.requested())
        await asyncio.sleep(0)
        gone.cancel()
        running = asyncio.create_task(daemon.reloads.run())
        if not reloads:
            await ended.wait()
            asking.append(asyncio.create_task(daemon.reloads.requested()))
            await asyncio.sleep(0)
            running.cancel()
        answers = await asyncio.gather(*asking)
        running.cancel()
        return answers

    return uvloop.run(ask())


def test_all_who_ask_get_the_answer_to_the_next_reload(log: Log) -> None:
    """Also if one of them has gone meanwhile."""
    assert asked_at_once(log, 3, 1) == [Reloaded(1.0, 1.0)] * 3


def test_nobody_who_asks_waits_for_ever_when_it_stops(log: Log) -> None:
    """Neither those whose reload has begun, nor those who wait for the next one."""
    assert asked_at_once(log, 3, 0) == [None] * 4


@pytest.mark.parametrize(
    ("young", "in_use", "collects"), [(YOUNG, 0, False), (YOUNG + 1, FEW - 1, True), (YOUNG + 1, FEW, False)]
)
def test_all_objects_are_collected_only_while_there_are_few(
    log: Log, monkeypatch: pytest.MonkeyPatch, young: int, in_use: int, *, collects: bool
) -> None:
    """With 15,000 connections, that would hold the loop for 10 ms."""
    collected: list[bool] = []
    monkeypatch.setattr(gc, "get_count", lambda: (0, 0, young))
    monkeypatch.setattr(gc, "collect", lambda: collected.append(True))

    async def check() -> None:
        daemon = daemon_of(log, defaults)
        daemon.server.pool.in_use = dict.fromkeys(range(in_use), cast("Worker", None))
        daemon._on_check()

    uvloop.run(check())
    assert bool(collected) == collects


def test_python_does_not_collect_all_objects_by_itself(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is at the start is not even looked at."""
    called: list[object] = []
    monkeypatch.setattr(gc, "freeze", lambda: called.append("freeze"))
    monkeypatch.setattr(gc, "set_threshold", lambda *thresholds: called.append(thresholds))

    async def start() -> None:
        daemon = daemon_of(log, defaults)
        monkeypatch.setattr(daemon.server, "apply", lambda _: None)
        await daemon.start()
        daemon._reloading.cancel()
        daemon.server.close()
        await daemon._close_admin()

    uvloop.run(start())
    assert called == ["freeze", (*gc.get_threshold()[:2], NEVER)]
