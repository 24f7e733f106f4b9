"""docs/logs.md says what the daemon logs: every event, every field, its type. The harness checks each line of all tests."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from echod.server.datagrams import DROPS, KERNEL
from tests.support.datagrams import client
from tests.support.harness import LOCAL, Echod, command, read_all, until
from tests.support.log_document import check_line, events

if TYPE_CHECKING:
    from collections.abc import Callable

    Daemon = Callable[..., Echod]

SOURCES = Path(__file__).parents[2] / "echod"
LOGGED = re.compile(r'\.(debug|info|warning|error|exception)\(\s*"([a-z]+\.[a-z_.]+)"')
"""A call that logs an event, with the method and the event's name."""
ELSEWHERE = {"log.dropped", "internal.debug", "internal.info", "internal.warning"}
"""Events that are not logged by a call with their name: the sink and the handler of Python's own log write them."""


def examples() -> list[dict[str, Any]]:
    return [line for event in events().values() for line in event.examples]


def test_the_daemons_lines_are_as_documented(echod: Daemon) -> None:
    """One session with each event that a healthy daemon logs; the harness checks their fields, here and in all tests."""
    flags = ["--timeouts.write", "200ms", "--admin.http", f"{LOCAL}:0", "--udp.port", "0", "--udp.max_size", "1"]
    with echod("[pool]\nsize = 1", flags=flags) as daemon:
        with client() as sock:
            url = daemon.wait_for("listener.started", count=2)["listener"]
            sock.sendto(b"too large", (LOCAL, int(url.rpartition(":")[2])))
            daemon.wait_for("udp.dropped")
        with daemon.connect() as only:
            daemon.wait_for("pool.full")
            until(lambda: rejected_and_counted(daemon), what="a count of rejections")
            daemon.reload("[pool]\nsize = 0")
            daemon.reload("[pool]\nsize = 1\n[timeouts]\nidle = '100ms'")  # less than the write timeout: a warning
            only.shutdown(2)
            daemon.wait_for("pool.available")
        soft = daemon.limit_descriptors(3)
        with daemon.connect():
            daemon.wait_for("accept.paused")
            daemon.limit_descriptors(soft)
            daemon.wait_for("accept.resumed")
        assert daemon.stop() == 0
        for line in daemon.lines:
            check_line(line)
        seen = {line["event"] for line in daemon.lines}
    of_their_own = (
        "log.dropped",
        "listener.inherited",
        "listener.missing",
        "daemon.lame_duck",
        "daemon.lame_duck_ended",
        "connection.probed",
        "tls.loaded",
    )
    with_tests_of_their_own = {*of_their_own, *(name for name in events() if "internal" in name)}
    assert seen == events().keys() - with_tests_of_their_own


def rejected_and_counted(daemon: Echod) -> bool:
    with daemon.connect() as sock:
        assert read_all(sock) == b""
    return any("suppressed" in line for line in daemon.events("connection.rejected"))


def test_every_event_in_the_code_is_in_the_document_with_its_level() -> None:
    """And the other way round."""
    logged = {
        (event, "error" if method == "exception" else method)
        for file in SOURCES.rglob("*.py")
        for method, event in LOGGED.findall(file.read_text())
    }
    documented = {(name, event.level) for name, event in events().items()}
    assert logged <= documented
    assert {name for name, _ in documented - logged} == ELSEWHERE


def test_the_reasons_are_those_that_the_daemon_counts(echod: Daemon, tmp_path: Path) -> None:
    """In the order of /status, which for rejections is the one in which they are checked."""
    socket = tmp_path / "admin.sock"
    with echod(flags=["--admin.socket", str(socket)]):
        counts = json.loads(command("status", "--json", "--admin.socket", str(socket)).stdout)["connections"]
    assert events()["udp.dropped"].values["reasons"] == [*DROPS, KERNEL]
    assert events()["connection.closed"].values["reason"] == list(counts["closed"])
    assert events()["connection.rejected"].values["reason"] == list(counts["rejected"])


@pytest.mark.parametrize("line", examples(), ids=lambda line: line["event"])
def test_each_example_is_a_line_as_documented(line: dict[str, Any]) -> None:
    check_line(line)


@pytest.mark.parametrize("name", [name for name in events() if name not in ELSEWHERE])
def test_each_event_has_an_example_of_each_field(name: str) -> None:
    """Also of those that are optional, but for those that any event may have."""
    shown = {path for line in events()[name].examples for path in paths(line)}
    expected = {field for field in events()[name].fields if not field.rpartition(".")[2].isupper()}
    assert expected - {"logger", "instance"} <= shown | {"logger"}


def paths(value: dict[str, Any], prefix: str = "") -> set[str]:
    found = {f"{prefix}{name}" for name in value}
    for name, below in value.items():
        if isinstance(below, dict):
            found |= paths(below, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"event": "connection.opened"},
        {"level": "warning"},
        {"timestamp": "2026-11-26 20:32:01"},
        {"bytes_received": 6.0},
        {"duration": 1},
        {"client": None},
        {"client": {"address": "127.0.0.1"}},
        {"tcp": {"rtt": 0.1, "retrans": 0, "cwnd": 10}},
        {"syn": {"ttl": 64}},
        {"reason": "eof "},
        {"reason": "error"},
        {"more": 1},
        {"in_use": True},
    ],
    ids=str,
)
def test_a_line_that_is_not_as_documented_is_found(change: dict[str, Any]) -> None:
    """Another type, a field too many, one that is missing, a value that is not listed."""
    line = copy.deepcopy(events()["connection.closed"].examples[0])
    check_line(line)
    with pytest.raises(AssertionError):
        check_line(line | change)


def test_what_the_kernel_does_not_tell_may_be_null() -> None:
    """As the table says of `tcp` and `syn`."""
    check_line(events()["connection.closed"].examples[0] | {"tcp": None, "syn": None})
