"""The command lines of `ping` and `bench`: what they accept, and what they refuse before anything is sent."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from echod import cli, probes
from echod.client import paths
from echod.client.tally import Limit
from echod.errors import Refusal
from tests.support.echo_servers import right, serving
from tests.support.harness import DEADLINE, LOCAL

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may look up a name, let alone send."""

    def fail(*_: object) -> None:
        raise AssertionError("looked up")

    monkeypatch.setattr(paths, "resolve", fail)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("ping", "the following arguments are required: TARGET"),
        ("ping h i", "unrecognized arguments: i"),
        ("ping h:0", 'argument TARGET: must have a port from 1 to 65535, got "h:0"'),
        ("ping -c 0 h", 'argument -c/--count: must be a whole number from 1 to 1000000000000, got "0"'),
        ("ping -s 5,x h", 'argument -s/--size: must be a whole number from 0 to 16777216, got "x"'),
        (
            "ping -i 0 h",
            'argument -i/--interval: must be a time in seconds, or with its unit, e.g. 0.2 or "200ms", got "0"',
        ),
        ("ping -W 400d h", None),
        ("ping -w 9000h h", None),
        ("ping -i 0.00001 h", "-i: must be at least 0.0001 seconds; `echod bench` sends faster"),
        (
            "ping -s 5,0 h",
            "-s: must be at least 1 byte: only udp:// can send an empty message",
        ),
        ("ping -c -1 h", 'argument -c/--count: must be a whole number from 1 to 1000000000000, got "-1"'),
        (
            "ping --warn 5 h",
            'argument --warn: must be RTT,LOSS%, such as 0.1,20% or 100ms,20%, got "5"',
        ),
        ("ping --warn fast h", None),
        ("ping --warn 1, h", None),
        ("ping --warn 1,5 h", None),
        ("ping --warn ,5% h", None),
        ("ping --crit 1,101% h", None),
        ("ping -4 -6 h", "argument -6: not allowed with argument -4"),
        ("ping --ca x h", "--ca, --cert and --insecure need a target that begins with tls://"),
        ("ping --proxy v1 udp://h", "--proxy: a PROXY header needs a connection, and udp:// has none"),
        ("ping --proxy v3 h", None),
        ("bench --rate 0 h", 'argument --rate: must be messages a second, more than 0 and at most 10,000,000, got "0"'),
        ("bench --rate 1e3 h", None),
        ("bench --connections 0 h", None),
        ("bench --size 0 h", None),
        ("bench --duration 0s h", None),
        ("bench --insecure h", None),
        (
            "bench --rate -1 h",
            'argument --rate: must be messages a second, more than 0 and at most 10,000,000, got "-1"',
        ),
        ("bench --size 7 udp://h", "--size: must be at least 8 over UDP, for the number of the message"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_3(capsys: Capture, words: str, error: str | None) -> None:
    """UNKNOWN, for a monitoring plugin. Nothing is sent."""
    assert cli.run(words.split()) == 3
    out, err = capsys.readouterr()
    command = words.partition(" ")[0]
    assert out == ""
    assert err.count("\n") == 1
    assert (
        err == f"echod {command}: {error} (see echod {command} --help)\n"
        if error
        else err.startswith(f"echod {command}: ")
    )


def test_a_short_interval_needs_root(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ping(8)."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert probes.run(["ping", "-i", "0.0019", "h"]) == 3
    assert "-i: less than 0.002 seconds needs root, as in ping(8)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("0.1,20%", Limit(0.1, 20)),
        ("100ms,5%", Limit(0.1, 5)),
        ("0,0%", Limit(0, 0)),
        (".5,0.5%", Limit(0.5, 0.5)),
    ],
)
def test_a_limit_is_a_time_and_a_percentage(text: str, limit: Limit) -> None:
    """The time in seconds, or with its unit. The percentage may be left out."""
    assert probes._limit(text) == limit


@pytest.mark.parametrize(
    ("text", "seconds"), [("0.2", 0.2), ("200ms", 0.2), ("5m", 300), ("1h", 3600), ("3s", 3), ("2.", 2)]
)
def test_a_time_is_in_seconds_or_has_its_unit(text: str, seconds: float) -> None:
    assert probes._time(text) == pytest.approx(seconds)


@pytest.mark.parametrize("name", ["ping", "bench"])
def test_help_is_the_same_by_both_ways(capsys: Capture, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The short way does without the other commands."""
    monkeypatch.setenv("COLUMNS", "200")
    texts = []
    for parse in (lambda: probes.run([name, "--help"]), lambda: cli.parser().parse_args([name, "--help"])):
        with pytest.raises(SystemExit) as ended:
            parse()
        assert ended.value.code == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith(f"usage: echod {name} [-h]")


def test_the_command_exits_with_its_code(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        probes.main(["ping"])
    assert ended.value.code == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_they_start_without_what_only_other_commands_need() -> None:
    """Each of these takes longer to import than all that they need."""
    code = "import sys, echod.probes; print(*sys.modules)"
    env = {
        name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")
    }  # it imports much itself
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=DEADLINE, check=True)
    loaded = set(done.stdout.split())
    assert "echod.client.ping" in loaded
    assert loaded & {"pydantic", "uvloop", "asyncio", "ssl", "h11", "traceback", "echod.config.settings"} == set()


@pytest.mark.parametrize(
    ("words", "code", "state"),
    [
        (["-q", "h"], 2, "CRITICAL - echod: tcp://h:7: no such name\n"),
        (["-q", "--ca", "/none", "tls://h"], 3, "UNKNOWN - echod: --ca: /none: No such file or directory\n"),
        (["h"], 2, ""),
        (["-q", "--json", "--ca", "/none", "tls://h"], 3, ""),
    ],
)
def test_a_monitoring_system_is_told_why_nothing_was_sent(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, state: str
) -> None:
    """On standard output: it shows nothing else."""

    def fail(*_: object) -> None:
        raise Refusal("echod: tcp://h:7: no such name", exit_code=2)

    monkeypatch.setattr(paths, "resolve", fail)
    assert probes.run(["ping", *words]) == code
    out, err = capsys.readouterr()
    assert out == state
    assert err.startswith("echod: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["ping", "bench"])
def test_a_program_finds_the_error_in_the_last_line(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """The summary also comes if the name has no address. It has the same fields as after a run."""

    def fail(*_: object) -> None:
        raise Refusal("echod: tcp://h:7: no such name", exit_code=2)

    with monkeypatch.context() as patch:
        patch.setattr(paths, "resolve", fail)
        assert probes.run([command, "--json", "h"]) == 2
    out, err = capsys.readouterr()
    assert err == "echod: tcp://h:7: no such name\n"
    summary = json.loads(out)
    assert (summary["event"], summary["error"]) == (f"{command}.summary", "tcp://h:7: no such name")
    with serving(right) as port:
        monkeypatch.setattr(paths, "resolve", lambda *_: [paths.Address(socket.AF_INET, (LOCAL, port))])
        words = ["-c", "1"] if command == "ping" else ["--duration", "0.05", "--connections", "1"]
        probes.run([command, "--json", *words, "h"])
    after = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert after["error"] is None
    assert after.keys() == summary.keys()


def test_more_connections_than_descriptors_are_wrong_usage(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says what is needed."""
    monkeypatch.setattr(probes, "hard_limit", lambda: 1024)
    assert probes.run(["bench", "--connections", "1000", "h"]) == 3
    line = "--connections: 1160 file descriptors are needed, and the hard limit is 1024 (ulimit -Hn)"
    assert capsys.readouterr().err == f"echod bench: {line} (see echod bench --help)\n"
