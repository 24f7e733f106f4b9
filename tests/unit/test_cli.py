"""The command line: commands, flags, exit codes and output."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from generate import reference

from echod import __version__, cli, daemon, log, screen, unix
from echod.client import control, top, watch
from echod.config import admin_socket, render
from echod.config import load as config
from echod.config.settings import Setting, declared
from tests.support.canned_daemon import Canned, row, status
from tests.support.harness import DEADLINE
from tests.support.in_process import without_privileges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from echod.log import Log
    from echod.systemd import Service

CONFIGURED = ["run", "check", "config show"]
"""The commands that read the configuration."""
ADMIN_COMMANDS = ["status", "connections", "kill 1", "reload", "top", "ready", "lame-duck", "config show --running"]
"""The commands about the running daemon."""
COMMANDS = [*CONFIGURED, "config schema", *(command.split()[0] for command in ADMIN_COMMANDS[:-1]), "ping", "bench"]
SETTINGS = list(declared())


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a configuration, whatever this one has."""
    for name in os.environ:
        if name.startswith("ECHOD_") or name in ("XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "etc" / "echod.toml")
    monkeypatch.setattr(admin_socket, "SYSTEM", tmp_path / "run" / "admin.sock")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "echod.toml"
    path.touch()
    return path


@pytest.fixture
def descriptor(request: pytest.FixtureRequest) -> Iterator[int]:
    """A standard stream's number that a test may close or take."""
    number: int = request.param
    saved = os.dup(number)
    yield number
    os.dup2(saved, number)
    os.close(saved)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Return the exit code, standard output and standard error of a command."""
    code = cli.run(words)
    return code, *capsys.readouterr()


# check


def test_check_prints_ok_for_a_valid_file(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    """And nothing else."""
    file.write_text("[pool]\nsize = 5")
    for option in ("-c", "--config"):
        assert run(capsys, "check", option, str(file)) == (os.EX_OK, f"{file}: ok\n", "")


def test_check_warns_about_a_file_without_a_key(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    """It is valid for a start, and was probably emptied by accident."""
    file.write_text("[access]\n# allow = []\n")
    code, output, errors = run(capsys, "check", "-c", str(file))
    assert (code, output) == (os.EX_OK, f"{file}: ok\n")
    assert errors.startswith(f"warning: {file}: has no key: a start takes the defaults")


@pytest.mark.parametrize("setting", ["listen.unix", "admin.socket"])
@pytest.mark.parametrize(
    ("path", "code", "problem"),
    [
        ("{}/e.sock", os.EX_OK, ""),
        ("{}", os.EX_CONFIG, "exists and is not a socket: remove it, or set another path"),
        ("{}/none/e.sock", os.EX_OK, "a start would fail now: its directory does not exist, or is closed to user"),
    ],
)
def test_check_looks_where_a_start_makes_its_sockets(
    capsys: pytest.CaptureFixture[str], file: Path, setting: str, path: str, *, code: int, problem: str
) -> None:
    """A directory may be made before the start, and the service may have another user."""
    file.write_text(f'{setting} = "{path.format(file.parent)}"\n')
    answer = run(capsys, "check", "-c", str(file))
    assert answer[:2] == (code, f"{file}: ok\n" if code == os.EX_OK else "")
    assert answer[2].count("\n") == bool(problem)
    assert problem in answer[2]


def test_check_minds_no_socket_of_a_daemon_that_runs(
    capsys: pytest.CaptureFixture[str], file: Path, tmp_path: Path
) -> None:
    """A stale one is replaced by a start."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "e.sock"))
    file.write_text(f'[listen]\nunix = "{tmp_path}/e.sock"\n')
    assert run(capsys, "check", "-c", str(file)) == (os.EX_OK, f"{file}: ok\n", "")


def test_check_finds_the_file_as_run_does(
    capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a file, it checks the defaults."""
    file.write_text("[pool]\nsize = 5")
    assert run(capsys, "check") == (os.EX_OK, "defaults: ok\n", "")
    monkeypatch.setattr(config, "DEFAULT_FILE", file)
    assert run(capsys, "check") == (os.EX_OK, f"{file}: ok\n", "")
    monkeypatch.setenv("ECHOD_CONFIG", f"{file}.other")
    assert run(capsys, "check")[0] == os.EX_NOINPUT


@pytest.mark.parametrize("command", CONFIGURED)
def test_a_missing_file_gives_exit_code_66(capsys: pytest.CaptureFixture[str], file: Path, command: str) -> None:
    """With one line."""
    file.unlink()
    assert run(capsys, *command.split(), "-c", str(file)) == (
        os.EX_NOINPUT,
        "",
        f"{file}: can't be read: No such file or directory\n",
    )


@pytest.mark.parametrize("command", CONFIGURED)
def test_an_invalid_configuration_gives_exit_code_78(
    capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """With a line for each problem of each layer."""
    file.write_text("[pool]\nsize = 0\nsise = 1\n")
    monkeypatch.setenv("ECHOD_LISTEN__PORT", "-1")
    assert run(capsys, *command.split(), "-c", str(file), "--log.level", "loud") == (
        os.EX_CONFIG,
        "",
        (
            '--log.level: log.level: must be "debug" or "info" or "warning" or "error", got "loud"\n'
            "ECHOD_LISTEN__PORT: listen.port: must be at least 0, got -1\n"
            f"{file}:2: pool.size: must be at least 1, got 0\n"
            f"{file}:3: pool.sise: unknown key; did you mean pool.size?\n"
        ),
    )


def test_warnings_do_not_change_the_result(
    capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go to standard error."""
    file.write_text("[timeouts]\nidle = '5s'\nwrite = '9s'\n")
    monkeypatch.setenv("ECHOD_POOL_SIZE", "7")
    assert run(capsys, "check", "-c", str(file)) == (
        os.EX_OK,
        f"{file}: ok\n",
        (
            "warning: ECHOD_POOL_SIZE: unknown variable, ignored; did you mean ECHOD_POOL__SIZE?\n"
            f"warning: {file}:3: timeouts.write: 9s has no effect, timeouts.idle (5s) comes first\n"
        ),
    )


def test_a_warning_about_a_variable_precedes_the_problems(
    capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may explain them."""
    file.write_text("pool.size = 0")
    monkeypatch.setenv("ECHOD_POOL_SIZE", "7")
    lines = run(capsys, "check", "-c", str(file))[2].splitlines()
    assert [line.partition(":")[0] for line in lines] == ["warning", str(file)]


def test_a_quiet_check_prints_only_errors(
    capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No warnings; the exit code is the result."""
    file.write_text("[timeouts]\nidle = '5s'\nwrite = '9s'\n")
    monkeypatch.setenv("ECHOD_POOL_SIZE", "7")
    for option in ("-q", "--quiet"):
        assert run(capsys, "check", option, "-c", str(file)) == (os.EX_OK, "", "")
    monkeypatch.delenv("ECHOD_POOL_SIZE")
    assert run(capsys, "check", "-q", "-c", str(file), "-n", "0") == (
        os.EX_CONFIG,
        "",
        "--pool.size: pool.size: must be at least 1, got 0\n",
    )


# config


def test_config_show_prints_the_settings_in_force(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    """As TOML that gives the same settings again."""
    file.write_text("[timeouts]\nidle = '90s'\n[access]\nallow = '10.0.0.0/8'")
    code, out, errors = run(capsys, "config", "show", "-c", str(file), "-p", "8080")
    assert (code, errors) == (os.EX_OK, "")
    shown = tomllib.loads(out)
    assert (shown["timeouts"]["idle"], shown["access"]["allow"], shown["listen"]["port"]) == (
        "1m30s",
        ["10.0.0.0/8"],
        8080,
    )
    file.write_text(out)
    assert run(capsys, "config", "show", "-c", str(file)) == (os.EX_OK, out, "")


def test_config_show_without_a_configuration_prints_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the shipped file."""
    code, out, errors = run(capsys, "config", "show")
    assert (code, errors) == (os.EX_OK, "")
    assert tomllib.loads(out) == tomllib.loads(reference.shipped())


def test_config_show_prints_the_origin_of_each_value(
    capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a comment, so that it stays a file that gives the same settings."""
    file.write_text("[pool]\n\nsize = 5\n[log]\nlevel = 'error'\nqueue = 7\n[listen]\nhost = [\n'::1']\n")
    monkeypatch.setenv("ECHOD_LOG__LEVEL", "debug")
    monkeypatch.setenv("ECHOD_LOG__QUEUE", "8")
    code, out, errors = run(capsys, "config", "show", "--sources", "-c", str(file), "--log.queue", "9", "-p", "1")
    assert (code, errors) == (os.EX_OK, "")
    lines = [line for line in out.splitlines() if " = " in line]
    assert len(lines) == len(SETTINGS)
    assert [line for line in lines if not line.endswith("  # default")] == [
        f'host = "::1"  # {file}:8',
        "port = 1  # --listen.port",
        f"size = 5  # {file}:3",
        'level = "debug"  # ECHOD_LOG__LEVEL',
        "queue = 9  # --log.queue",
    ]
    assert tomllib.loads(out)["log"]["queue"] == 9


def test_an_origin_is_one_line_whatever_the_files_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Otherwise the rest of the name would be read as a setting."""
    named = tmp_path / "a\n[pool]\nsize = 1\x1b.toml"
    named.write_text("pool.size = 5")
    _, out, _ = run(capsys, "config", "show", "--sources", "-c", str(named))
    assert tomllib.loads(out)["pool"]["size"] == 5
    assert "\x1b" not in out


def test_config_show_warns_on_standard_error(
    capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that standard output stays TOML."""
    file.write_text("[timeouts]\nidle = '5s'\nwrite = '9s'\n")
    monkeypatch.setenv("ECHOD_POOL_SIZE", "7")
    code, out, errors = run(capsys, "config", "show", "-c", str(file))
    assert (code, tomllib.loads(out)["timeouts"]["write"]) == (os.EX_OK, "9s")
    assert errors == (
        "warning: ECHOD_POOL_SIZE: unknown variable, ignored; did you mean ECHOD_POOL__SIZE?\n"
        f"warning: {file}:3: timeouts.write: 9s has no effect, timeouts.idle (5s) comes first\n"
    )


def test_config_show_accepts_whatever_check_accepts(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    """Neither has an internal error."""
    file.write_text(f"[access]\nper_source = 0x{'f' * 5000}\n")
    assert run(capsys, "check", "-c", str(file))[0] == run(capsys, "config", "show", "-c", str(file))[0]


def test_config_schema_prints_the_schema(
    capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the configuration is invalid: then an editor needs it most."""
    file.write_text("nonsense")
    monkeypatch.setenv("ECHOD_CONFIG", str(file))
    assert run(capsys, "config", "schema") == (os.EX_OK, render.schema(), "")


# Flags


@pytest.mark.parametrize("command", CONFIGURED)
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
@pytest.mark.parametrize("words", ["--{} \0", "--{}=\0"], ids=["word", "equals sign"])
def test_each_setting_is_a_flag(
    capsys: pytest.CaptureFixture[str], file: Path, command: str, setting: Setting, words: str
) -> None:
    """Of every command that reads the configuration, under its dotted name."""
    file.write_text("pool.size = 0")
    values = words.format(setting.name).replace("\0", "wrong?").split(" ")
    code, _, errors = run(capsys, *command.split(), "-c", str(file), *values)
    assert code == os.EX_CONFIG
    assert errors.startswith(f"--{setting.name}: {setting.name}: must be ")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["-p", "-1"], "listen.port"),
        (["-p-1"], "listen.port"),
        (["--port", "-1"], "listen.port"),
        (["-n", "-1"], "pool.size"),
        (["--pool-size=-1"], "pool.size"),
    ],
)
def test_port_and_size_have_short_flags(capsys: pytest.CaptureFixture[str], words: list[str], name: str) -> None:
    """Messages use the long name."""
    code, _, errors = run(capsys, "check", *words)
    assert code == os.EX_CONFIG
    assert re.fullmatch(rf"--{name}: {name}: must be at least \d, got -1\n", errors)


def test_the_last_of_several_flags_wins(capsys: pytest.CaptureFixture[str]) -> None:
    """So that one can be appended to an existing command."""
    assert run(capsys, "check", "-n", "0", "--pool.size", "1")[0] == os.EX_OK


@pytest.mark.parametrize(
    ("words", "program"),
    [
        ([], "echod"),
        (["chek"], "echod"),
        (["--nonsense"], "echod"),
        (["check", "--nonsense"], "echod"),
        (["check", "file.toml"], "echod"),
        (["check", "--pool", "1"], "echod"),
        (["check", "--conf", "x"], "echod"),
        (["check", "-c"], "echod check"),
        (["run", "--pool.size"], "echod run"),
        (["config"], "echod config"),
        (["config", "shw"], "echod config"),
        (["config", "--sources"], "echod config"),
        (["config", "show", "pool.size"], "echod"),
        (["config", "show", "--source"], "echod"),
        (["config", "show", "-n"], "echod config show"),
        (["config", "schema", "-c", "x"], "echod"),
        (["check", "--quie"], "echod"),
        (["status", "--pool.size", "1"], "echod"),
        (["status", "now"], "echod"),
        (["connections", "--sort", "size"], "echod connections"),
        (["connections", "--source", "evil"], "echod connections"),
        (["connections", "--source", "10.0.0.1/8"], "echod connections"),
        (["kill"], "echod kill"),
        (["kill", "x"], "echod kill"),
        (["kill", "-1"], "echod kill"),
        (["kill", "²"], "echod kill"),
        (["kill", "\u0661"], "echod kill"),
        (["kill", "1" * 20], "echod kill"),
        (["kill", "1", "--source", "::1"], "echod kill"),
        (["kill", "--source", "evil"], "echod kill"),
        (["kill", "--source", "uid:root"], "echod kill"),
        (["reload", "--json"], "echod"),
    ],
    ids=" ".join,
)
def test_wrong_usage_gives_exit_code_64(capsys: pytest.CaptureFixture[str], words: list[str], program: str) -> None:
    """With one line that refers to --help; flags can't be abbreviated."""
    code, out, errors = run(capsys, *words)
    assert (code, out) == (os.EX_USAGE, "")
    assert re.fullmatch(rf"{program}: .+ \(see {program} --help\)\n", errors)


# Version and help


def test_version_includes_uvloop_and_python(capsys: pytest.CaptureFixture[str]) -> None:
    """For bug reports."""
    with pytest.raises(SystemExit) as ended:
        cli.run(["--version"])
    assert not ended.value.code
    assert capsys.readouterr() == (
        f"echod {__version__} (uvloop {version('uvloop')}, Python {platform.python_version()})\n",
        "",
    )


@pytest.fixture
def helped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that returns the help for some words, without line breaks."""
    monkeypatch.setenv("COLUMNS", "500")

    def help_of(words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.run([*words.split(), "--help"])
        assert not ended.value.code
        out, errors = capsys.readouterr()
        assert errors == ""
        return out

    return help_of


@pytest.mark.parametrize(
    ("words", "commands"),
    [
        ("", ["run", "check", "config", "status", "connections", "top", "kill", "reload", "ready", "lame-duck"]),
        ("config", ["show", "schema"]),
    ],
)
def test_help_lists_the_commands(helped: Callable[[str], str], words: str, commands: list[str]) -> None:
    """With a line for each."""
    text = helped(words)
    assert all(re.search(rf"^ +{command}\s+\w.+$", text, re.MULTILINE) for command in commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_begins_with_usage_and_a_sentence(helped: Callable[[str], str], command: str) -> None:
    """In this order."""
    usage, described = helped(command).split("\n\n")[:2]
    assert usage.startswith(f"usage: echod {command} [-h]")
    assert re.fullmatch(r"[A-Z].+\.", described)


@pytest.mark.parametrize("command", CONFIGURED)
def test_help_of_a_command_describes_each_setting(helped: Callable[[str], str], command: str) -> None:
    """With its variable, its key and its default; and where the file is looked for."""
    text = helped(command)
    for setting in SETTINGS:
        described = f"{render.described(setting)} [{setting.variable}] [{setting.key} = {setting.default}]"
        assert described.startswith(f"{setting.field.description}")
        assert re.search(rf"--{setting.name} {re.escape(setting.form.word)}\s+{re.escape(described)}\n", text)
    assert re.search(r"-p( NUMBER)?, --port( NUMBER)?, --listen.port NUMBER\s", text)
    assert re.search(r"-n( NUMBER)?, --pool-size( NUMBER)?, --pool.size NUMBER\s", text)
    assert f"(default: $ECHOD_CONFIG, else {config.DEFAULT_FILE})" in text


def test_help_of_a_command_without_configuration_names_no_setting(helped: Callable[[str], str]) -> None:
    """It takes none."""
    assert "--pool.size" not in helped("config schema")


@pytest.mark.parametrize("command", [command.split()[0] for command in ADMIN_COMMANDS[:-1]])
def test_help_of_an_admin_command_describes_only_the_socket(helped: Callable[[str], str], command: str) -> None:
    """It needs no other setting."""
    text = helped(command)
    assert "--admin.socket" in text
    assert "--config FILE" in text
    assert "--pool.size" not in text


# The running daemon


@pytest.fixture
def canned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canned]:
    """A daemon with canned answers, at the path that the environment sets."""
    path = tmp_path / "admin.sock"
    monkeypatch.setenv("ECHOD_ADMIN__SOCKET", str(path))
    with Canned(path) as daemon:
        yield daemon


def test_status_prints_a_screen_or_json(capsys: pytest.CaptureFixture[str], canned: Canned) -> None:
    """For people or for programs."""
    for _ in range(2):
        canned.answer(200, status())
    assert run(capsys, "status") == (os.EX_OK, screen.status(status()), "")
    code, out, errors = run(capsys, "status", "--json")
    assert (code, json.loads(out), errors) == (os.EX_OK, status(), "")


def test_connections_are_sorted_and_filtered(capsys: pytest.CaptureFixture[str], canned: Canned) -> None:
    """By default, all of them by number."""
    rows = [
        row(connection=number, bytes_received=number % 3, client={"address": address, "port": 1})
        for number, address in ((2, "192.0.2.2"), (1, "192.0.2.1"), (3, "::1"), (4, "198.51.100.1"))
    ]

    def numbers(*words: str) -> list[int]:
        canned.answer(200, rows)
        code, out, errors = run(capsys, "connections", "--json", *words)
        assert (code, errors) == (os.EX_OK, "")
        return [row["connection"] for row in json.loads(out)]

    assert numbers() == [1, 2, 3, 4]
    assert numbers("--sort", "bytes") == [2, 1, 4, 3]
    assert numbers("--source", "192.0.2.0/24") == [1, 2]
    assert numbers("--source=::1", "--sort=age") == [3]
    canned.answer(200, rows)
    rows.sort(key=lambda row: int(row["connection"]))
    assert run(capsys, "connections") == (os.EX_OK, screen.connections(rows), "")


def test_config_show_running_prints_the_settings_of_the_daemon(
    capsys: pytest.CaptureFixture[str], canned: Canned, file: Path
) -> None:
    """Not those of a file that has been edited since, or is invalid now."""
    file.write_text("[pool]\nsize = 'many'\n")
    answer = {"settings": {"pool": {"size": 5}}, "origins": {"pool.size": "ECHOD_POOL__SIZE"}}
    for words, line in (("", "size = 5"), ("--sources", "size = 5  # ECHOD_POOL__SIZE")):
        canned.answer(200, answer)
        code, out, errors = run(capsys, "config", "show", "--running", "-c", str(file), *words.split())
        assert (code, out, errors) == (os.EX_OK, f"[pool]\n{line}\n", "")


def test_kill_takes_ids_or_a_network(capsys: pytest.CaptureFixture[str], canned: Canned) -> None:
    """The lines of those that were there are on standard output, and the exit code says that one was not."""
    client = {"address": "192.0.2.1", "port": 9}
    canned.answer(404, {"error": "there is no connection 1"})
    canned.answer(200, {"connection": 2, "client": client})
    expected = (os.EX_DATAERR, "killed 2, 192.0.2.1:9\n", "echod: there is no connection 1\n")
    assert run(capsys, "kill", "1", "2") == expected
    canned.answer(200, [row(connection=3, client=client)])
    canned.answer(200, {"connection": 3, "client": client})
    assert run(capsys, "kill", "--source", "192.0.2.0/24") == (os.EX_OK, "killed 3, 192.0.2.1:9\n", "")
    user = {"uid": 1000, "pid": 9}
    canned.answer(200, [row(connection=3, client=client), row(connection=4, client=user)])
    canned.answer(200, {"connection": 4, "client": user})
    assert run(capsys, "kill", "--source", "uid:1000") == (os.EX_OK, "killed 4, uid:1000,pid:9\n", "")


def test_kill_and_reload_print_the_result(capsys: pytest.CaptureFixture[str], canned: Canned) -> None:
    """In one line; the warnings of a reload follow on standard error."""
    canned.answer(200, {"connection": 7, "client": {"address": "192.0.2.1", "port": 9}})
    assert run(capsys, "kill", "7") == (os.EX_OK, "killed 7, 192.0.2.1:9\n", "")
    change = {"changed": ["pool.size"], "old": {"pool.size": 1}, "new": {"pool.size": 2}, "warnings": ["a", "b"]}
    canned.answer(200, change)
    assert run(capsys, "reload") == (os.EX_OK, "pool.size: 1 -> 2\n", "warning: a\nwarning: b\n")
    assert canned.requests == ["DELETE /connections/7", "POST /reload"]


@pytest.mark.parametrize(
    ("command", "code", "content", "exit_code", "errors"),
    [
        ("kill 7", 404, {"error": "there is no connection 7"}, os.EX_DATAERR, "echod: there is no connection 7\n"),
        (
            "reload",
            422,
            {"errors": ["f:1: a\x1b", "f:2: b"], "exit_code": 78},
            os.EX_CONFIG,
            "f:1: a\\u001b\nf:2: b\n",
        ),
        ("reload", 503, {"error": "the daemon stops"}, os.EX_UNAVAILABLE, "echod: the daemon stops\n"),
        ("status", 500, {"error": "bug"}, os.EX_SOFTWARE, 'echod: the daemon answers 500: {"error":"bug"}\n'),
    ],
)
def test_an_error_of_the_daemon_is_reported(  # noqa: PLR0917 - a table
    capsys: pytest.CaptureFixture[str],
    canned: Canned,
    command: str,
    code: int,
    content: object,
    exit_code: int,
    errors: str,
) -> None:
    """On standard error, with its own exit code."""
    canned.answer(code, content)
    assert run(capsys, *command.split()) == (exit_code, "", errors)


@pytest.mark.parametrize("command", ADMIN_COMMANDS)
def test_if_no_daemon_answers_the_exit_code_is_69(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    """One line names the path."""
    line = f"echod: no daemon answers at unix:{tmp_path}/run/admin.sock\n"
    assert run(capsys, *command.split()) == (os.EX_UNAVAILABLE, "", line)
    line = 'echod: admin.socket is "off": no daemon can be reached\n'
    assert run(capsys, *command.split(), "--admin.socket", "off") == (os.EX_UNAVAILABLE, "", line)


@pytest.mark.parametrize("command", ADMIN_COMMANDS)
def test_without_permission_for_the_socket_the_exit_code_is_77(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    """One line says who has it."""
    path = tmp_path / "closed" / "admin.sock"
    path.parent.mkdir(0)
    try:
        with without_privileges():
            code, out, errors = run(capsys, *command.split(), "--admin.socket", str(path))
    finally:
        path.parent.chmod(0o700)
    assert (code, out) == (os.EX_NOPERM, "")
    assert errors == f"echod: unix:{path}: no permission: be root, the daemon's user, or a member of its group\n"


@pytest.mark.parametrize("command", ADMIN_COMMANDS)
def test_an_invalid_admin_socket_is_reported(capsys: pytest.CaptureFixture[str], file: Path, command: str) -> None:
    """Like any setting, and like any file."""
    file.write_text("[admin]\nsocket = 'relative.sock'")
    code, out, errors = run(capsys, *command.split(), "-c", str(file))
    assert (code, out) == (os.EX_CONFIG, "")
    assert errors.startswith(f"{file}:2: admin.socket: must be ")
    line = f"{file}x: can't be read: No such file or directory\n"
    assert run(capsys, *command.split(), "-c", f"{file}x") == (os.EX_NOINPUT, "", line)


@pytest.mark.parametrize("setting", ["off", "/nowhere/admin.sock"])
@pytest.mark.parametrize("named", [True, False], ids=["-c", "default"])
def test_a_daemon_is_found_although_its_file_has_another_path_now(  # noqa: PLR0917 - a table
    capsys: pytest.CaptureFixture[str],
    file: Path,
    canned: Canned,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    named: bool,  # noqa: FBT001 - as pytest passes it
) -> None:
    """At the path of "auto", if it is the default file; with -c, only the daemon of that file is meant."""
    monkeypatch.delenv("ECHOD_ADMIN__SOCKET")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(canned.path.parent))
    monkeypatch.setattr(config, "DEFAULT_FILE", file)
    file.write_text(f"[admin]\nsocket = '{setting}'")
    canned.answer(200, {"changed": [], "old": {}, "new": {}, "warnings": []})
    code, _, _ = run(capsys, "reload", *(["-c", str(file)] if named else []))
    assert code == (os.EX_UNAVAILABLE if named else os.EX_OK)


def test_a_daemon_is_found_although_its_file_is_invalid_now(
    capsys: pytest.CaptureFixture[str], file: Path, canned: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then an operator needs it most."""
    monkeypatch.delenv("ECHOD_ADMIN__SOCKET")
    file.write_text(f"[pool]\nsize = 0\n[admin]\nsocket = '{canned.path}'")
    canned.answer(200, status())
    assert run(capsys, "status", "-c", str(file))[0] == os.EX_OK


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Canned, Canned]]:
    """The instances 1 and 2 of the user."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in "12":
        (tmp_path / "echod" / name).mkdir(parents=True)
    with Canned(tmp_path / "echod/1/admin.sock") as one, Canned(tmp_path / "echod/2/admin.sock") as two:
        yield one, two


def test_a_command_speaks_of_all_instances(capsys: pytest.CaptureFixture[str], two: tuple[Canned, Canned]) -> None:
    """What one refuses is an error, after the lines of the others."""
    client = {"address": "192.0.2.1", "port": 9}
    two[0].answer(200, {"connection": 7, "client": client})
    two[1].answer(404, {"error": "there is no connection 7"})
    errors = "echod: instance 2: there is no connection 7\n"
    assert run(capsys, "kill", "1/7", "2/7") == (os.EX_DATAERR, "killed 1/7, 192.0.2.1:9\n", errors)
    two[0].answer(200, {"changed": [], "old": {}, "new": {}, "warnings": ["a"]})
    two[1].answer(422, {"errors": ["f:1: a"], "exit_code": 78})
    assert run(capsys, "reload") == (
        os.EX_CONFIG,
        "instance 1: reloaded, nothing has changed\n",
        "warning: instance 1: a\ninstance 2: f:1: a\n",
    )
    for each in two:
        each.answer(503, {"status": "lame duck"})
    code, out, _ = run(capsys, "ready")
    assert (code, out) == (os.EX_UNAVAILABLE, "")
    for each in two:
        each.answer(200, {"lame_duck": True})
    lines = "".join(f"instance {name}: lame duck: accepting, but not ready\n" for name in "12")
    assert run(capsys, "lame-duck") == (os.EX_OK, lines, "")


def test_ready_names_the_instance_that_hangs_before_a_health_check_gives_up(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, two: tuple[Canned, Canned], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of containers allow 3 s and more for the whole command."""
    assert control.READY_TIMEOUT <= 2
    path, connect = tmp_path / "echod/3/admin.sock", unix.connect
    # The others have all of that time, also on a slow machine.
    monkeypatch.setattr(unix, "connect", lambda to, timeout: connect(to, min(timeout, 0.1) if to == path else timeout))
    two[0].answer(200, {"status": "ready"})
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(path))
        hung.listen()
        two[1].answer(200, {"status": "ready"})
        line = f"echod: instance 3: unix:{path}: no answer within 2 s\n"
        assert run(capsys, "ready") == (os.EX_UNAVAILABLE, "", line)


def test_one_instance_is_picked_by_its_name(
    capsys: pytest.CaptureFixture[str], two: tuple[Canned, Canned], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers are those of a single daemon. A variable for the socket does not matter then."""
    monkeypatch.setenv("ECHOD_ADMIN__SOCKET", "/none.sock")
    two[1].answer(200, status(pid=2))
    assert run(capsys, "status", "--instance", "2") == (os.EX_OK, screen.status(status(pid=2)), "")
    two[1].answer(200, {"connection": 7, "client": {"address": "192.0.2.1", "port": 9}})
    assert run(capsys, "kill", "--instance=2", "7") == (os.EX_OK, "killed 7, 192.0.2.1:9\n", "")
    two[1].answer(200, {"settings": {"pool": {"size": 5}}, "origins": {}})
    words = ("config", "show", "--running")
    assert run(capsys, *words, "--instance", "2") == (os.EX_OK, "[pool]\nsize = 5\n", "")
    line = "echod: no instance 3 runs; there are: 1, 2\n"
    assert run(capsys, "status", "--instance", "3") == (os.EX_UNAVAILABLE, "", line)
    assert two[0].requests == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("status --instance 1 --admin.socket /a.sock", "echod: give either --instance or --admin.socket"),
        ("config show --instance 1", "echod config show: --instance needs --running"),
        ("config show --running", "echod: choose one of the instances by --instance: 1, 2"),
        ("kill 7", "echod: kill: 7: name the instance too, as `echod connections` does: INSTANCE/ID"),
        ("kill --instance 2 2/7 1/7", "echod kill: 1/7 is of another instance than 2: leave out --instance"),
    ],
)
@pytest.mark.usefixtures("two")
def test_what_leaves_the_instance_open_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], words: str, line: str
) -> None:
    """With what to write instead."""
    assert run(capsys, *words.split()) == (os.EX_USAGE, "", f"{line}\n")


def test_watch_goes_on_while_an_instance_restarts(
    capsys: pytest.CaptureFixture[str], two: tuple[Canned, Canned], clock: Clock
) -> None:
    """Its first line says that one does not answer."""
    for each in two:
        each.answer(200, status())
    two[0].answer(200, status())
    clock.last = 2
    first, second = interrupted(capsys, "status", "--watch")[0].split("  instances  2\n")[1].split("! echod: ")
    assert "instance 2: unix:" not in first
    assert second.startswith("instance 2: unix:")
    assert "\n! instances  1 of 2 answer\n" in second


class Clock:
    """Sleeps that return at once; the last one is ended by Ctrl-C."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.last = 1

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) == self.last:
            raise KeyboardInterrupt

    @staticmethod
    def monotonic() -> float:
        return 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    return clock


def interrupted(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """Return standard output and standard error of a command that is ended by Ctrl-C."""
    with pytest.raises(KeyboardInterrupt):
        cli.run(words)
    return capsys.readouterr()


def on_terminal(
    monkeypatch: pytest.MonkeyPatch, words: list[str], lines: int, *, term: str = "xterm"
) -> tuple[int | None, str]:
    """Return the exit code of a command on a terminal with this number of lines, and its output.

    The code is None if it was ended by Ctrl-C.
    """
    ours, theirs = os.openpty()
    monkeypatch.setenv("LINES", str(lines))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", term)
    written = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while data := os.read(ours, 4096):
                written.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    code = None
    with (
        open(theirs, "w") as terminal,  # noqa: PTH123 - a descriptor has no path
        monkeypatch.context() as patch,
        contextlib.suppress(KeyboardInterrupt),
    ):
        patch.setattr(sys, "stdout", terminal)
        code = cli.run(words)
    reader.join()
    os.close(ours)
    return code, written.decode().replace("\r\n", "\n")


def test_watch_redraws_a_terminal_every_second(monkeypatch: pytest.MonkeyPatch, canned: Canned, clock: Clock) -> None:
    """Until Ctrl-C. While no daemon answers, as during a restart, the screen says so."""
    answers = [status(pid=pid) for pid in (1, 2, 3)]
    for answer in answers[:2]:
        canned.answer(200, answer)
    canned.answer_raw(b"")
    canned.answer(200, answers[2])
    clock.last = 4
    code, text = on_terminal(monkeypatch, ["status", "--watch"], 100)
    assert code is None
    missing = f"! echod: unix:{canned.path}: no valid answer; is it the admin socket of echod?\n"
    screens = list(map(screen.status, answers))
    assert text.split("\x1b[H\x1b[2J") == ["", *screens[:2], missing, screens[2]]
    assert clock.slept == [1, 1, 1, 1]


@pytest.mark.parametrize("words", [["status", "--watch"], ["status", "--watch", "--json"], ["top"]])
def test_what_is_watched_has_to_answer_at_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str]
) -> None:
    """A wrong path is no restart."""
    line = f"echod: no daemon answers at unix:{tmp_path}/none\n"
    assert run(capsys, *words, "--admin.socket", f"{tmp_path}/none") == (os.EX_UNAVAILABLE, "", line)


def test_watch_does_not_scroll(monkeypatch: pytest.MonkeyPatch, canned: Canned, clock: Clock) -> None:
    """Lines that do not fit are left out; the last line is for the cursor."""
    canned.answer(200, [row(connection=number) for number in range(50)])
    _, text = on_terminal(monkeypatch, ["connections", "--watch"], 10)
    assert text.count("\n") == 9
    assert text.endswith("\n")
    assert clock.slept == [1]


def test_watch_on_a_dumb_terminal_has_no_escapes(monkeypatch: pytest.MonkeyPatch, canned: Canned, clock: Clock) -> None:
    """One screen follows the other, as in a pipe."""
    for _ in range(2):
        canned.answer(200, status())
    clock.last = 2
    _, text = on_terminal(monkeypatch, ["status", "--watch"], 10, term="dumb")
    assert text == screen.status(status()) * 2
    assert clock.slept == [1, 1]


def test_top_without_escapes_follows_the_size_of_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], canned: Canned
) -> None:
    """A dumb one gets what fits; a pipe gets all."""
    rows = [row(connection=number, bytes_received=number) for number in range(50)]
    clock = Clock()
    monkeypatch.setattr(top, "time", clock)
    for _ in range(2):
        canned.answer(200, status())
        canned.answer(200, rows)
    text = on_terminal(monkeypatch, ["top"], 20, term="dumb")[1]
    assert text.startswith(screen.brief(status()))
    assert len(text.rstrip("\n").splitlines()) == 19
    clock.slept.clear()
    text = interrupted(capsys, "top", "--sort", "id", "--source", "192.0.2.1")[0]
    title = f"50 connections from 192.0.2.1/32, sorted by id\n{screen.connections(rows)}\n"
    assert text == f"{screen.brief(status())}\n{title}"


def test_a_screen_that_is_not_watched_is_complete(monkeypatch: pytest.MonkeyPatch, canned: Canned) -> None:
    """A terminal can scroll back."""
    canned.answer(200, [row(connection=number) for number in range(50)])
    code, text = on_terminal(monkeypatch, ["connections"], 10)
    assert (code, text.count("\n")) == (os.EX_OK, 51)
    assert "\x1b" not in text


@pytest.mark.parametrize("on_a_terminal", [False, True])
def test_watched_json_is_a_line_every_second(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    canned: Canned,
    clock: Clock,
    *,
    on_a_terminal: bool,
) -> None:
    """On a terminal or in a pipe. That no daemon answers is said once on standard error."""
    canned.answer(200, status(pid=1))
    for _ in range(2):
        canned.answer_raw(b"")
    canned.answer(200, status(pid=2))
    clock.last = 4
    words = ["status", "--json", "--watch"]
    if on_a_terminal:
        text, errors = on_terminal(monkeypatch, words, 10)[1], capsys.readouterr().err
    else:
        text, errors = interrupted(capsys, *words)
    assert [json.loads(line)["pid"] for line in text.splitlines()] == [1, 2]
    assert errors == f"echod: unix:{canned.path}: no valid answer; is it the admin socket of echod?\n"
    assert clock.slept == [1, 1, 1, 1]


def test_a_watched_screen_in_a_pipe_has_no_escapes(
    capsys: pytest.CaptureFixture[str], canned: Canned, clock: Clock
) -> None:
    """One screen follows the other."""
    for _ in range(2):
        canned.answer(200, status())
    clock.last = 2
    assert interrupted(capsys, "status", "--watch") == (screen.status(status()) * 2, "")
    assert clock.slept == [1, 1]


# The process


def test_main_exits_with_the_code_of_its_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs the command of `sys.argv`."""
    for words, code in ((["check"], os.EX_OK), (["check", "-n", "0"], os.EX_CONFIG), ([], os.EX_USAGE)):
        monkeypatch.setattr(sys, "argv", ["echod", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == code
    assert capsys.readouterr().out == "defaults: ok\n"


def test_a_thread_that_hangs_does_not_hold_up_the_end() -> None:
    """Such as one that reads a file while the daemon stops."""
    code = """
import threading
from echod import cli

def run(_):
    threading.Thread(target=threading.Event().wait).start()
    return 7

cli.run = run
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stderr) == (7, "")


# Standard streams


@pytest.mark.parametrize("descriptor", [1], indirect=True)
@pytest.mark.parametrize(
    "words", [["check"], ["config", "show"], ["config", "schema"], ["--help"], ["--version"]], ids=" ".join
)
def test_an_answer_that_cannot_be_written_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, descriptor: int, words: list[str]
) -> None:
    """A script must not read "ok" from a full disk. Descriptor 1 is left on /dev/null."""
    full = Path("/dev/full").open("w")  # noqa: SIM115 - closing it fails as well
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert cli.run(words) == os.EX_SOFTWARE
    assert capsys.readouterr() == ("", "echod: standard output: No space left on device\n")
    assert os.path.samestat(os.fstat(descriptor), Path(os.devnull).stat())
    with contextlib.suppress(OSError):
        full.close()


@pytest.mark.parametrize("descriptor", [1], indirect=True)
def test_a_closed_pipe_gives_the_exit_code_of_sigpipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, descriptor: int
) -> None:
    """As with `head -1`, and without a message. Descriptor 1 is left on /dev/null."""
    reader, writer = os.pipe()
    os.close(reader)
    pipe = os.fdopen(writer, "w")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        assert cli.run(["config", "schema"]) == 128 + signal.SIGPIPE
    assert capsys.readouterr() == ("", "")
    assert os.path.samestat(os.fstat(descriptor), Path(os.devnull).stat())
    with contextlib.suppress(OSError):
        pipe.close()


@pytest.mark.parametrize("descriptor", [2], indirect=True)
def test_errors_that_cannot_be_written_leave_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, descriptor: int, file: Path
) -> None:
    """Scripts rely on it. Descriptor 2 is left on /dev/null."""
    full = Path("/dev/full").open("w")  # noqa: SIM115 - closing it fails as well
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", full)
        assert cli.run(["check", "-c", str(file), "-n", "0"]) == os.EX_CONFIG
    assert os.path.samestat(os.fstat(descriptor), Path(os.devnull).stat())
    with contextlib.suppress(OSError):
        full.close()


def journal(path: Path) -> str:
    """Return the value of $JOURNAL_STREAM for which this file is the stream to the journal."""
    status = path.stat()
    return f"{status.st_dev}:{status.st_ino}"


@pytest.mark.parametrize(
    ("words", "name", "text"),
    [
        (["config", "schema"], "stdout", "<6>{\n<6> "),
        (["check", "-c", "/nonexistent"], "stderr", "<3>/nonexistent: "),
        (["check"], "stderr", "<4>warning: ECHOD_X: unknown variable"),
    ],
)
def test_in_the_journal_each_line_has_its_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], name: str, text: str
) -> None:
    """So that errors can be filtered, and the output of ExecReload= be told from the daemon's lines."""
    monkeypatch.setenv("ECHOD_X", "1")
    number = {"stdout": 1, "stderr": 2}[name]
    saved = os.dup(number)
    try:
        with (tmp_path / "journal").open("w") as stream, monkeypatch.context() as patch:
            os.dup2(stream.fileno(), number)
            patch.setenv("JOURNAL_STREAM", journal(tmp_path / "journal"))
            patch.setattr(sys, name, stream)
            cli.run(words)
    finally:
        os.dup2(saved, number)
        os.close(saved)
    assert text in (tmp_path / "journal").read_text()


def test_a_bug_in_the_daemon_is_a_log_line_and_exit_code_70(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the traceback as a field."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(daemon, "run", fail)
    with (tmp_path / "log").open("w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert cli.run(["run"]) == os.EX_SOFTWARE
    (line,) = (tmp_path / "log").read_text().splitlines()
    logged = json.loads(line)
    assert (logged["level"], logged["event"]) == ("error", "internal.error")
    assert "ZeroDivisionError: a bug" in logged["exception"]


@pytest.mark.parametrize(("lines", "text"), [(0, ""), (1, "1 line"), (1234, "1234 lines")])
def test_lines_that_could_not_be_written_are_counted_on_standard_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, lines: int, text: str
) -> None:
    """The exit code is that of the daemon: a log that can't be written is no reason to fail."""

    def run(_: object, log: Log, *__: object) -> None:
        for number in range(lines):
            log.info("event", number=number)

    monkeypatch.setattr(daemon, "run", run)
    with Path("/dev/full").open("w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert cli.run(["run"]) == os.EX_OK
    assert capfd.readouterr().err == (f"echod: {text} of the log could not be written: ENOSPC\n" if text else "")


def test_a_bug_in_a_command_is_a_traceback_and_exit_code_70(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the bug report."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(config, "load", fail)
    code, out, err = run(capsys, "check")
    assert (code, out) == (os.EX_SOFTWARE, "")
    assert err.startswith("echod: internal error, please report it:\nTraceback")
    assert "ZeroDivisionError: a bug" in err


def test_run_passes_its_warnings_to_the_daemon(
    capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which logs them: nobody may be reading standard error."""
    seen: list[config.Loaded] = []
    monkeypatch.setattr(daemon, "run", lambda loaded, _, load, __: seen.extend((loaded, load(loaded.file))))
    monkeypatch.setenv("ECHOD_POOL_SIZE", "7")
    with file.with_name("log").open("w") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        assert cli.run(["run", "-c", str(file), "-n", "5"]) == os.EX_OK
    assert capsys.readouterr() == ("", "")
    assert [loaded.warnings for loaded in seen] == [
        ["ECHOD_POOL_SIZE: unknown variable, ignored; did you mean ECHOD_POOL__SIZE?"]
    ] * 2


@pytest.mark.parametrize("words", [["-c", "echod.toml"], []])
def test_run_keeps_the_absolute_path_of_its_file(file: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """However the file is named: a command that shows it may run in another folder."""
    seen: list[Path | None] = []
    monkeypatch.setattr(daemon, "run", lambda loaded, *_: seen.append(loaded.file))
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv("ECHOD_CONFIG", file.name)
    with file.with_name("log").open("w") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        assert cli.run(["run", *words]) == os.EX_OK
    assert seen == [file]


def test_a_relative_path_in_a_directory_that_was_removed_is_a_missing_file(
    capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no bug."""
    (file.parent / "gone").mkdir()
    monkeypatch.chdir(file.parent / "gone")
    (file.parent / "gone").rmdir()
    problem = (os.EX_NOINPUT, "", "echod.toml: can't be read: No such file or directory\n")
    assert run(capsys, "run", "-c", "echod.toml") == problem
    assert run(capsys, "check", "-c", "echod.toml") == problem


def test_a_reload_reads_the_same_file_with_the_same_flags_and_variables(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they were at start; only the content of the file may change, and a reload refuses a device."""
    seen: list[config.Loaded] = []

    def serve(loaded: config.Loaded, _: log.Log, load: Callable[[Path | None], config.Loaded], __: Service) -> None:
        file.write_text("[log]\nqueue = 7\nlevel = 'error'\n[pool]\nsize = 6")
        monkeypatch.setenv("ECHOD_LOG__LEVEL", "warning")
        seen.extend((loaded, load(loaded.file)))
        file.unlink()
        file.symlink_to("/dev/zero")
        load(loaded.file)

    monkeypatch.setattr(daemon, "run", serve)
    monkeypatch.setenv("ECHOD_LOG__LEVEL", "debug")
    with file.with_name("log").open("w") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        assert cli.run(["run", "-c", str(file), "-n", "5"]) == os.EX_NOINPUT
    values = [(it.settings.pool.size, it.settings.log.level, it.settings.log.queue) for it in seen]
    assert values == [(5, "debug", 65536), (5, "debug", 7)]


def test_without_a_thread_for_the_log_there_is_no_daemon(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line names the limit of the system."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(log, "Log", fail)
    code, out, err = run(capsys, "run")
    assert (code, out) == (os.EX_SOFTWARE, "")
    assert err == "echod: the log's thread: can't start new thread: allow more tasks (TasksMax=, ulimit -u)\n"


@pytest.mark.parametrize("text", [None, "[pool]\nsize = 0", "[timeouts]\nidle = '5s'\nwrite = '9s'"])
def test_a_name_with_control_characters_breaks_no_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | None
) -> None:
    """They are escaped."""
    named = tmp_path / "a\nb\x1b[31m.toml"
    if text is not None:
        named.write_text(text)
    _, out, err = run(capsys, "check", "-c", str(named))
    lines = (out + err).splitlines()
    assert len(lines) == (2 if text and "idle" in text else 1)
    assert all("a\\u000ab\\u001b[31m.toml" in line for line in lines)
