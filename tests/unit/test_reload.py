from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from echod import reload
from echod.config import load as config
from echod.errors import Refusal
from tests.support.harness import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from echod.config.settings import Settings


@pytest.fixture(autouse=True)
def default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine may have one."""
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "etc" / "echod.toml")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "echod.toml"


def load(file: Path, text: str, flags: Mapping[str, str] | None = None) -> config.Loaded:
    file.write_text(text)
    return config.load(file, flags or {}, {})


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    yield
    for thread in threads():
        thread.join(DEADLINE)
    assert not threads()


def threads() -> list[threading.Thread]:
    """Return those that make a reload ready."""
    return [thread for thread in threading.enumerate() if thread.name == "reload"]


def test_without_a_change_nothing_is_named(file: Path) -> None:
    """Also if the same is written in another way, or somewhere else."""
    before = load(file, "[timeouts]\nidle = '90s'\n[access]\nallow = ['10.0.0.0/8']").settings
    assert reload.change(before, load(file, "timeouts.idle = '1m30s'", {"access.allow": "10.0.0.0/8"})) == (
        [],
        {},
        {},
        [],
    )


def test_a_change_has_names_and_values_as_the_file_has_them(file: Path) -> None:
    """In the order of the file; what stays is not among them."""
    before = load(file, "[pool]\nsize = 10\n[access]\nallow = '10.0.0.0/8'\n[log]\nlevel = 'debug'\nqueue = 5").settings
    after = load(
        file,
        "[log]\nlevel = 'error'\nqueue = 5\n[access]\naccept_rate = '30/m'\n[timeouts]\nidle = '90s'\ndrain = 'off'\n"
        "[listen]\nhost = ['::1', '127.0.0.1']",
    )
    assert reload.change(before, after) == (
        [
            "listen.host",
            "pool.size",
            "timeouts.idle",
            "timeouts.drain",
            "access.allow",
            "access.accept_rate",
            "log.level",
        ],
        {
            "listen.host": "*",
            "pool.size": 10,
            "timeouts.idle": "5m",
            "timeouts.drain": "10s",
            "access.allow": ["10.0.0.0/8"],
            "access.accept_rate": "off",
            "log.level": "debug",
        },
        {
            "listen.host": ["::1", "127.0.0.1"],
            "pool.size": 1024,
            "timeouts.idle": "1m30s",
            "timeouts.drain": "off",
            "access.allow": [],
            "access.accept_rate": "30/m",
            "log.level": "error",
        },
        ['default: access.allow: lets in more clients than before: everyone, not only "10.0.0.0/8"'],
    )


@pytest.mark.parametrize(("length", "shown"), [(19, 19), (20, 20), (21, 21), (5000, 21)])
def test_a_long_list_is_shortened(file: Path, length: int, shown: int) -> None:
    """A line of the log does not hold thousands of networks; how many there are, it says."""
    before = load(file, "").settings
    networks = [f"10.{number >> 8}.{number & 255}.0/24" for number in range(length)]
    change = reload.change(before, load(file, f"[access]\ndeny = {networks}"))
    assert change.old == {"access.deny": []}
    new = change.new["access.deny"]
    assert len(new) == shown
    assert new == (networks if length <= 20 else [*networks[:20], f"and {length - 20} more"])


@pytest.mark.parametrize(
    "text",
    [
        "[listen]\nhost = '::1'",
        "[listen]\nport = 7",
        "[listen]\nunix = '/run/e.sock'",
        "[listen]\nunix_mode = '0600'",
        "[udp]\nport = 7",
        "[listen]\nreceive_buffer = 65536",
    ],
)
def test_with_sockets_of_systemd_it_is_said_that_where_to_listen_has_no_effect(file: Path, text: str) -> None:
    """The receive buffer has one."""
    change = reload.change(load(file, "").settings, load(file, text), binds=False)
    assert change.warnings == ([] if "buffer" in text else [reload.NOT_BOUND])


def test_what_needs_a_restart_is_refused_where_it_stands(file: Path) -> None:
    """By flag, in the file, or no more in the file; all of it at once, whatever else has changed."""
    before = load(file, "[listen]\nbacklog = 7\n[admin]\nsocket = '/run/a'").settings
    after = load(file, "[pool]\nsize = 5\n\n[listen]\nreuse_port = true\n", {"admin.http": "127.0.0.1:9107"})
    with pytest.raises(Refusal) as caught:
        reload.change(before, after)
    assert caught.value.lines == (
        "default: listen.backlog: needs a restart to change from 7 to 1024",
        f"{file}:5: listen.reuse_port: needs a restart to change from false to true",
        'default: admin.socket: needs a restart to change from "/run/a" to "auto"',
        '--admin.http: admin.http: needs a restart to change from "off" to "127.0.0.1:9107"',
    )
    assert caught.value.exit_code == os.EX_CONFIG


# What an accident leaves of a file

WHOLE = """[access]
allow = ["10.0.0.0/8", "192.0.2.0/24"]
deny = ["10.9.0.0/16"]
per_source = 10
accept_rate = "100/s"

[listen]
host = "127.0.0.1"
port = 7007
"""


def admits(settings: Settings, address: str) -> bool:
    """Say whether a client with this address may come in, and reaches a listener."""
    client = ipaddress.ip_address(address)
    access, hosts = settings.access, settings.listen.host
    allowed = not access.allow or any(client in network for network in access.allow)
    reaches = client.is_loopback or hosts != ("127.0.0.1",)
    return reaches and allowed and not any(client in network for network in access.deny)


@pytest.mark.parametrize("text", [WHOLE, "\n".join(WHOLE.split("\n\n")[::-1])])
def test_a_file_that_is_cut_anywhere_lets_nobody_in_without_a_word(file: Path, text: str) -> None:
    """It is refused, or admits nobody new, or there is a warning. What counts is whom it admits, and with which limits."""
    before = load(file, text).settings
    clients = ["127.0.0.1", "10.1.1.1", "10.9.1.1", "198.51.100.1"]
    silent = []
    for length in range(1, len(text)):
        try:
            after = load(file, text[:length])
        except Refusal:
            continue
        new, old = after.settings.access, before.access
        wider = (
            any(admits(after.settings, client) > admits(before, client) for client in clients)
            or not 0 < new.per_source <= old.per_source
            or not 0 < (new.accept_rate or 0) <= (old.accept_rate or 0)
        )
        if wider and not reload.change(before, after).warnings:
            silent.append(text[:length])
    assert silent == []


# Off the loop


@pytest.mark.usefixtures("no_thread_left")
def test_what_the_function_returns_comes_back() -> None:
    """It runs in a thread of its own, which keeps no process alive, while the loop goes on."""
    turns = 0
    seen: list[threading.Thread] = []

    async def main() -> object:
        loop = asyncio.get_running_loop()
        go_on = threading.Event()

        def function() -> str:
            assert go_on.wait(DEADLINE)
            seen.append(threading.current_thread())
            return "done"

        def turn() -> None:
            nonlocal turns
            turns += 1
            go_on.set()

        loop.call_soon(turn)
        return await reload.in_thread(function)

    assert asyncio.run(main()) == "done"
    assert turns == 1
    assert [(thread.name, thread.daemon) for thread in seen] == [("reload", True)]


@pytest.mark.parametrize("error", [Refusal("no"), ZeroDivisionError("a bug")])
@pytest.mark.usefixtures("no_thread_left")
def test_what_the_function_raises_comes_back(error: Exception) -> None:
    """As it was raised: a refusal is an answer, anything else a bug."""

    def function() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        asyncio.run(reload.in_thread(function))
    assert caught.value is error


@pytest.mark.usefixtures("no_thread_left")
def test_a_thread_that_fails_before_the_function_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory, for example."""

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(reload, "LONGEST", 1.0)
    monkeypatch.setattr(signal, "pthread_sigmask", fail)
    with pytest.raises(MemoryError):
        asyncio.run(reload.in_thread(lambda: None))


@pytest.mark.usefixtures("no_thread_left")
def test_the_thread_takes_no_signal() -> None:
    """They are the main thread's, which waits for them."""
    blocked = asyncio.run(reload.in_thread(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} <= set(blocked)


@pytest.mark.usefixtures("no_thread_left")
def test_the_thread_leaves_the_interpreter_to_the_loop() -> None:
    """While it computes, the loop gets its turn sooner than Python has it, and nothing is collected; then all is as before."""
    before = sys.getswitchinterval(), gc.isenabled()
    interval, collects = asyncio.run(reload.in_thread(lambda: (sys.getswitchinterval(), gc.isenabled())))
    assert interval == pytest.approx(reload._TURN)
    assert not collects
    assert (sys.getswitchinterval(), gc.isenabled()) == before


@pytest.mark.parametrize(("number", "frozen"), [(100, False), (100_000, True)])
@pytest.mark.usefixtures("no_thread_left")
def test_only_what_is_much_is_kept_from_the_collector(number: int, *, frozen: bool) -> None:
    """To look at all of it would hold up the loop; to keep a little garbage of each reload would be a leak."""
    gc.collect()
    before = gc.get_freeze_count()
    made: list[list[int]] = asyncio.run(reload.in_thread(lambda: [[] for _ in range(number)]))
    assert (gc.get_freeze_count() - before >= len(made)) == frozen
    assert frozen or gc.get_freeze_count() <= before
    gc.unfreeze()


def test_without_a_thread_there_is_no_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of the system is one line that says which."""

    def fail(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(Refusal) as caught:
        asyncio.run(reload.in_thread(lambda: None))
    assert caught.value.lines == (
        "the reload's thread: can't start new thread: allow more tasks (TasksMax=, ulimit -u) or memory",
    )
    assert gc.isenabled()


@pytest.mark.usefixtures("no_thread_left")
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("closed", [False, True], ids=["loop open", "loop closed"])
def test_who_stops_waiting_leaves_the_thread_alone(
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    *,
    closed: bool,
    fails: bool,
) -> None:
    """At a stop nobody waits for a file that hangs; when it comes, after all, nobody is told, and no line is written."""
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    complaints: list[Any] = []

    def function() -> None:
        begun.set()
        assert go_on.wait(DEADLINE)
        ended.set()
        if fails:
            raise OSError("too late")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        waiting = asyncio.create_task(reload.in_thread(function))
        await asyncio.to_thread(begun.wait, DEADLINE)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        if not closed:
            await asyncio.to_thread(finish)

    def finish() -> None:
        go_on.set()
        for thread in threads():
            thread.join(DEADLINE)
        assert ended.is_set()

    asyncio.run(main())
    finish()
    assert complaints == []
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("no_thread_left")
def test_a_function_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits is told, and the interpreter is as before."""
    go_on = threading.Event()
    monkeypatch.setattr(reload, "LONGEST", 0.01)
    with pytest.raises(Refusal, match="could not be read and checked within 0 s"):
        asyncio.run(reload.in_thread(lambda: go_on.wait(DEADLINE)))
    assert gc.isenabled()
    go_on.set()
