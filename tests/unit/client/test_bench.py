"""`echod bench`: its schedule, its figures, and services that misbehave."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from echod import probes
from echod.client import bench, bench_lines
from echod.client.figures import Distribution
from echod.client.paths import Route, Target
from echod.client.streams import Message
from tests.support.echo_servers import changed, datagrams, delayed, ending, flipped, in_turn, right, serving, silent
from tests.support.harness import DEADLINE, LOCAL, free_port
from tests.support.idle_clock import CROWD

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.echo_servers import Behaviour

Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("clock")


def run(capsys: Capture, *words: str) -> tuple[int, str, str]:
    """Return the exit code, standard output and standard error."""
    code = probes.run(["bench", *words])
    return code, *capsys.readouterr()


def report(capsys: Capture, *words: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the report."""
    code, out, err = run(capsys, "--json", *words)
    assert err == ""
    fields = json.loads(out)
    assert fields["event"] == "bench.summary"
    return code, fields


def test_an_open_loop_sends_each_message_when_it_is_due(capsys: Capture) -> None:
    """They take turns on the connections; the first echo of each connection does not count."""
    with serving(right) as port:
        code, fields = report(
            capsys, "--rate", "200", "--duration", "0.2", "--connections", "3", "--size", "100", f"{LOCAL}:{port}"
        )
    assert (fields["loop"], fields["rate"], fields["connections"], fields["size"]) == ("open", 200, 3, 100)
    assert (fields["messages"], fields["bytes"], fields["lost"], fields["wrong"]) == (40, 4000, 0, 0)
    assert 150 < fields["messages_per_second"] <= 201
    latency = fields["latency"]
    assert (
        0
        < latency["min"]
        <= latency["p50"]
        <= latency["p99"]
        <= latency["p99.9"]
        <= latency["p99.99"]
        <= latency["max"]
    )
    assert sum(row["messages"] for row in fields["histogram"]) == 40
    assert fields["client"]["lateness"]["count"] == 40
    assert code == (0 if fields["client"]["kept_schedule"] else 1)


def test_a_stall_counts_for_each_message_that_was_due_meanwhile(capsys: Capture) -> None:
    """A client that waited for the echo would see one slow message."""
    stalled = threading.Event()

    def behave(client: socket.socket) -> None:
        client.sendall(client.recv(64))
        while data := client.recv(1 << 16):
            if not stalled.is_set():
                stalled.set()
                CROWD.sleep(0.15)
            client.sendall(data)

    with serving(behave) as port:
        _, fields = report(capsys, "--rate", "200", "--duration", "0.3", "--connections", "1", f"{LOCAL}:{port}")
    slow = sum(row["messages"] for row in fields["histogram"] if row["up_to"] > 0.02)
    assert fields["messages"] == 60
    assert slow >= 20


def test_without_a_rate_the_loop_is_closed_and_says_so(capsys: Capture) -> None:
    """Each connection sends when it has its echo."""
    with serving(delayed(0.01)) as port:
        words = ["--duration", "0.1", "--connections", "2", f"{LOCAL}:{port}"]
        code, fields = report(capsys, *words)
        _, out, _ = run(capsys, *words)
    assert (fields["loop"], fields["rate"], code) == ("closed", None, 0)
    assert 2 <= fields["messages"] <= 20
    assert fields["latency"]["min"] >= 0.01
    assert "as fast as it goes" in out
    assert "closed loop: not what users wait for" in out
    assert "this client" not in out


def test_the_text_has_the_figures_and_a_histogram(capsys: Capture) -> None:
    """For people."""
    with serving(right) as port:
        _, out, _ = run(capsys, "--rate", "100", "--duration", "100ms", "--connections", "1", f"{LOCAL}:{port}")
    lines = out.splitlines()
    assert lines[0] == f"tcp://{LOCAL}:{port}: 1 connection, 64 bytes, 100 messages a second"
    assert re.fullmatch(r"10 messages came back in 0\.\d s: [\d.]+ a second, [\d.]+ k?B/s each way", lines[1])
    assert [line.split()[0] for line in lines[3:10]] == ["min", "p50", "p90", "p99", "p99.9", "p99.99", "max"]
    assert re.search(r"^ *[\d.]+ ms +\d+ #{40}$", out, re.MULTILINE)
    assert re.search(r"^this client sent its messages late by p50 [\d.]+ ms, p99 [\d.]+ ms, max", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("behave", "lost", "wrong", "code"),
    [
        (lambda: in_turn(ending(3, answer=lambda _: b"", by_reset=True), right), ["reset"], None, 1),
        (lambda: in_turn(ending(3, answer=lambda _: b""), right), ["eof"], None, 1),
        (
            lambda: in_turn(ending(1, answer=lambda data: data[:-1] + bytes([data[-1] ^ 1])), right),
            [],
            "1 byte wrong",
            2,
        ),
        (
            lambda: in_turn(ending(1, answer=lambda data: data + b"surplus"), right),
            [],
            r"7 bytes more than were sent|. bytes? wrong, the first at offset 0|wrong from offset 0 on",
            2,
        ),
    ],
    ids=["reset", "closed", "wrong", "more"],
)
@pytest.mark.parametrize("rate", [["--rate", "100"], []], ids=["open", "closed"])
def test_faults_are_counted_and_the_load_goes_on(  # noqa: PLR0917 - a table
    capsys: Capture, behave: Callable[[], Behaviour], lost: list[str], wrong: str | None, code: int, rate: list[str]
) -> None:
    """On a new connection; a connection that can't be opened is tried again after a pause."""
    with serving(behave()) as port:
        words = [*rate, "--duration", "0.15", "--connections", "1", f"{LOCAL}:{port}"]
        found, fields = report(capsys, *words)
    assert set(lost) <= set(fields["errors"]) <= {*lost, "eof", "reset"}  # the server closes after what is wrong
    assert bool(fields["wrong"]) == (wrong is not None)
    assert re.match(wrong or "None", str(fields["first_wrong"]))
    assert fields["messages"] >= 5
    assert found == code


def test_what_is_lost_late_or_wrong_is_marked(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the text, each in a line with an exclamation mark."""
    monkeypatch.setattr(bench, "TIMEOUT", 0.1)
    asked = 0

    def answer(data: bytes) -> bytes:
        nonlocal asked
        asked += 1
        if asked == 2:
            CROWD.sleep(0.15)
        return data[:-1] + b"?" if asked == 8 else data

    with serving(changed(answer)) as port:
        code, out, _ = run(capsys, "--rate", "20", "--duration", "0.6", "--connections", "1", f"{LOCAL}:{port}")
    assert re.search(r"^! \d lost: \d timeout$", out, re.MULTILINE)
    assert re.search(r"^! \d of the lost came back too late$", out, re.MULTILINE)
    assert re.search(r"^! 1 wrong, the first one: .*wrong.* offset 63", out, re.MULTILINE)
    assert code == 2


def test_a_client_that_can_not_keep_its_schedule_says_so(capsys: Capture) -> None:
    """Its figures are its own then, and not the service's."""
    with serving(right) as port:
        words = ["--rate", "10000000", "--duration", "0.05", "--connections", "1", f"{LOCAL}:{port}"]
        code, out, _ = run(capsys, *words)
    assert code == 1
    assert re.search(
        r"^! this client could not keep its own schedule, and did not send [\d,]+ messages", out, re.MULTILINE
    )


@pytest.mark.parametrize(
    ("behave", "error"),
    [
        (flipped(3), "not an echo service: 1 byte wrong, the first at offset 3"),
        (changed(lambda data: data * 2), "not an echo service: 64 bytes more than were sent"),
        (ending(0, answer=lambda _: b""), "the server closed the connection"),
        (silent, "no echo within 0.05 s"),
    ],
)
def test_what_is_no_echo_service_gets_no_load(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, behave: Behaviour, error: str
) -> None:
    """Each connection has to echo one message before."""
    monkeypatch.setattr(bench, "TIMEOUT", 0.05)
    with serving(behave) as port:
        code, out, err = run(capsys, "--rate", "10", "--duration", "0.3", "--connections", "1", f"{LOCAL}:{port}")
    assert (code, out) == (2, "")
    assert err.startswith(f"echod: tcp://{LOCAL}:{port}: {error}")
    assert err.count("\n") == 1


def test_no_connection_is_one_line(capsys: Capture) -> None:
    """And the summary, for programs."""
    port = free_port()
    line = f"tcp://{LOCAL}:{port}: connection refused"
    assert run(capsys, f"{LOCAL}:{port}") == (2, "", f"echod: {line}\n")
    code, out, err = run(capsys, "--json", f"{LOCAL}:{port}")
    assert (code, err) == (2, f"echod: {line}\n")
    summary = json.loads(out)
    assert (summary["event"], summary["error"], summary["messages"]) == ("bench.summary", line, 0)


def test_ctrl_c_ends_it_with_the_report(capsys: Capture) -> None:
    """Of what was measured until then; also before, and while the last echoes are awaited."""
    for behave, duration, messages in (
        (ctrl_c(echoes=10), "9", [8, 9]),
        (ctrl_c(echoes=0), "9", [0]),
        (ctrl_c(echoes=1, seconds=0.3), "0.2", [0]),
    ):
        with serving(behave) as port:
            words = ["--rate", "100", "--duration", duration, "--connections", "1"]
            code, fields = report(capsys, *words, f"{LOCAL}:{port}")
        assert fields["messages"] in messages
        assert fields["client"]["unsent"] == 0
        assert code == (
            0 if fields["messages"] and fields["client"]["kept_schedule"] else 2 if not fields["messages"] else 1
        )


def ctrl_c(echoes: int, seconds: float = 0.0) -> Behaviour:
    """Echo so many messages of 64 bytes; some seconds after the next one, this process gets SIGINT."""

    def behave(client: socket.socket) -> None:
        for _ in range(echoes):
            client.sendall(client.recv(64, socket.MSG_WAITALL))
        client.recv(64, socket.MSG_WAITALL)
        CROWD.sleep(seconds)
        os.kill(os.getpid(), signal.SIGINT)
        silent(client)

    return behave


@pytest.mark.parametrize(
    ("address", "near"),
    [
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("fe80::1%lo", True),
        ("fd00::1", True),
        ("::ffff:192.168.0.1", True),
        ("::ffff:9.9.9.9", False),
        ("9.9.9.9", False),
        ("2620:fe::fe", False),
    ],
)
def test_load_on_an_address_of_others_needs_yes(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, address: str, *, near: bool
) -> None:
    """One that is neither of this machine nor of a private network."""
    ran = []

    def run_bench(_: bench.Bench) -> tuple[int, dict[str, Any]]:
        ran.append(1)
        return 0, {}

    monkeypatch.setattr(bench.Bench, "run", run_bench)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 7))])
    code, _, err = run(capsys, "--json", "h")
    assert (code, bool(ran)) == ((0, True) if near else (3, False))
    assert near or err == (
        f"echod bench: {address} is not a private address: --yes if its owner wants this load (see echod bench --help)\n"
    )
    assert run(capsys, "--json", "--yes", "h")[0] == 0
    assert ran


@pytest.mark.parametrize("rate", [["--rate", "100"], []], ids=["open", "closed"])
def test_progress_is_shown_on_a_terminal(capsys: Capture, monkeypatch: pytest.MonkeyPatch, rate: list[str]) -> None:
    """On standard error, each second; it is erased at the end."""
    ours, theirs = os.openpty()
    monkeypatch.setattr(bench, "_TOLD", 0.05)
    written = ""
    with open(theirs, "w") as terminal, monkeypatch.context() as patch, serving(right) as port:  # noqa: PTH123 - a descriptor has no path
        patch.setattr(sys, "stderr", terminal)
        run(capsys, *rate, "--duration", "0.15", "--connections", "1", "--json", f"{LOCAL}:{port}")
        while not written.endswith(" ms\r\x1b[K"):  # the kernel passes it on some time later
            assert select.select([ours], [], [], DEADLINE)[0], written
            written += os.read(ours, 10_000).decode()
    os.close(ours)
    assert re.match(r"\r\x1b\[K0 s, [\d,]+ echoes, p50 [\d.]+ ms, p99 [\d.]+ ms\r\x1b\[K", written)


def test_progress_has_the_figures_so_far() -> None:
    latency = Distribution()
    latency.add(0.0021)
    assert bench_lines.progress(1234, 3.2, latency) == "3 s, 1,234 echoes, p50 2.100 ms, p99 2.100 ms"


@pytest.mark.parametrize("rate", [["--rate", "100"], []], ids=["open", "closed"])
def test_over_udp_each_connection_is_a_socket(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, rate: list[str]
) -> None:
    """A lost datagram delays no other one, and one that comes twice counts once."""
    monkeypatch.setattr(bench, "DATAGRAM_TIMEOUT", 0.25)
    sources = set[Any]()
    seen = 0

    def answers(data: bytes) -> list[bytes]:
        nonlocal seen
        seen += 1
        return {4: [], 5: [data, data]}.get(seen, [data])

    with datagrams(answers, sources=sources) as port:
        words = [*rate, "--duration", "0.2", "--connections", "2", f"udp://{LOCAL}:{port}"]
        code, fields = report(capsys, *words)
        seen = 0
        _, out, _ = run(capsys, *words)
    assert (fields["target"], len(sources), code) == (f"udp://{LOCAL}:{port}", 4, 1)
    assert (fields["lost"], fields["errors"], fields["duplicates"], fields["late"]) == (1, {"timeout": 1}, 1, 0)
    assert fields["messages"] > 1
    assert "\n! 1 came back twice\n" in out


def test_a_unix_socket_is_near(capsys: Capture, tmp_path: Path) -> None:
    """And its load needs no `--yes`. A report without an echo has no latencies."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{tmp_path}/echo")
    listener.listen()
    with serving(ctrl_c(echoes=1), listener):
        code, out, _ = run(capsys, "--rate", "100", "--connections", "1", f"unix:{tmp_path}/echo")
    lines = out.splitlines()
    assert lines[1].startswith("0 messages came back in 0.")
    assert not any("p50 " in line for line in lines[2:-1])
    assert lines[-1].startswith("this client sent its messages late by")
    assert code == 2


def test_latency_counts_from_the_moment_at_which_a_message_was_due() -> None:
    """It may have waited for a connection, or for room to send."""
    loaded = bench.Bench(Route(Target("tcp", "h", 7), []), bench.Options(5.0, 1, 1.0, 64), lambda *_: None)
    loaded._is_measuring = True
    message = Message(1, 64, due=1.0)
    message.sent = 2.5
    loaded.echoed(mock.Mock(), message, 3.0)
    assert loaded._latency.most == 2.0


def test_without_a_message_there_is_no_lateness() -> None:
    """Ctrl-C may come before the first one."""
    options = bench.Options(5.0, 1, 1.0, 64)
    _, fields = bench.Bench(Route(Target("tcp", "h", 7), []), options, lambda *_: None).report(1.0)
    assert bench_lines.report(fields).splitlines() == [
        "tcp://h:7: 1 connection, 64 bytes, 5 messages a second",
        "0 messages came back in 1.0 s: 0.0 a second, 0 B/s each way",
    ]
