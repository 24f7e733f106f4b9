"""The README and the guides: what they tell people to type does what they say, and what they refer to is there."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from echod import cli
from tests.support import guides
from tests.support.certificates import pem_file
from tests.support.guides import GUIDES, README, ROOT
from tests.support.harness import DEADLINE, Echod, command, environment, free_port, read_all
from tests.support.log_document import check_line, events

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.guides import Command

ELSEWHERE = {
    "make run": "test_make_run_does_what_the_readme_says",
    "make deb": "test_it_installs_starts_and_is_purged_without_a_trace",
    "sudo apt install ./dist/echod_*.deb": "test_it_installs_starts_and_is_purged_without_a_trace",
    "echo hi | nc -N localhost 7": "test_start_returns_when_the_port_answers_in_less_than_a_second",
    "sudo make install": "test_what_is_installed_runs_where_it_was_meant_to",
    "sudo systemd-sysusers": "test_what_is_installed_runs_where_it_was_meant_to",
    "systemctl disable --now echod": "test_the_service_and_the_instances_take_each_others_place",
    "systemctl enable --now echod@1 echod@2": "test_two_instances_share_the_port_and_both_serve",
    "systemctl enable --now echod.socket": "test_the_first_client_starts_it",
    "systemd-run": "test_a_check_as_the_service_finds_what_one_by_root_does_not",
    "systemctl stop echod.socket echod.service": "test_another_port_as_the_guide_has_it",
    "systemctl start echod.socket": "test_another_port_as_the_guide_has_it",
    "echod status --instance 1": "test_the_commands_speak_of_all_instances",
    "echod status --json | jq '.instances[]": "test_the_commands_speak_of_all_instances",
    "echod-restart": "test_the_instances_restart_one_by_one_and_refuse_nobody",
    "promtool check rules": "test_promtool_accepts_the_rules_and_the_scrape_configuration",
    "promtool test rules": "test_rules_do_what_their_tests_say",
    "make image": "test_it_serves_without_any_right",
    "podman run": "test_it_serves_without_any_right",
    "kubectl apply": "test_the_manifest_for_kubernetes_runs",
    "make bench": "test_make_knows_the_targets_of_the_guides",
    "make soak": "test_make_knows_the_targets_of_the_guides",
    "make mutate": "test_make_knows_the_targets_of_the_guides",
}
"""Commands by how they begin, and the test that runs them, because they need a system of their own or much time."""
SOURCES = {"127.0.0.7": 12, "127.0.0.9": 3}
"""Clients of the daemon that the guides show, by address; `per_source` is 12, so two more of the first are rejected."""

ids = pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)


class Session:
    """A shell of somebody who follows a guide, with a daemon that has some clients.

    The daemon's port, file and socket stand for those that the guides name.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "bin").mkdir()
        (directory / "etc").mkdir()
        self._runtime = directory / "run"
        self._runtime.mkdir()
        echod = directory / "bin" / "echod"
        echod.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m echod "$@"\n')
        echod.chmod(0o755)
        self._port = free_port()
        (toml,) = guides.blocks(README, "toml")
        (directory / "echod.toml").write_text(toml)
        bad = re.sub(r"size = \d+", "size = 0", toml).replace("when_full", "when_ful")
        (directory / "bad.toml").write_text(bad)
        self._environment = environment(XDG_RUNTIME_DIR=str(self._runtime))
        self._environment["PATH"] = f"{directory / 'bin'}:{self._environment['PATH']}"

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """Have the daemon run, and then a file beside it that a reload finds different."""
        config = f"[listen]\nport = {self._port}\n[pool]\nsize = 20\n[access]\nper_source = 12\n"
        with (
            Echod(config, directory=self._directory / "etc", env={"XDG_RUNTIME_DIR": str(self._runtime)}) as daemon,
            contextlib.ExitStack() as stack,
        ):
            for source, number in SOURCES.items():
                for _ in range(number):
                    stack.enter_context(daemon.connect(source=source))
            daemon.wait_for("connection.opened", count=sum(SOURCES.values()))
            for _ in range(2):
                with daemon.connect(source="127.0.0.7") as rejected:
                    assert read_all(rejected) == b""
            assert daemon.echo(b"x") == b"x"
            daemon.wait_for("connection.closed")
            (self._directory / "echod.log").write_bytes(b"".join(daemon.raw))
            daemon.file.write_text(config.replace("size = 20", "size = 40"))
            yield

    def run(self, command: Command) -> str:
        """Return what a command writes, with the names that the guides have."""
        text = command.text.replace("7007", str(self._port))
        text = re.sub(r"/run/echod/(?:1/)?admin\.sock", str(self._runtime / "echod" / "admin.sock"), text)
        done = subprocess.run(
            ["sh", "-c", text],  # noqa: S607
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode == 0 or command.output, done.stdout
        return done.stdout.replace(str(self._directory / "etc"), "/etc/echod")


def run_elsewhere(command: Command) -> bool:
    return any(command.text.startswith(beginning) for beginning in ELSEWHERE)


def programs(command: Command) -> set[str]:
    return set(re.findall(r"(?:^|\| )(?:\w+=\S+ )*([a-z]\w*)", command.text)) - {"echod"}


@ids
def test_the_commands_do_what_the_guide_says(guide: Path, tmp_path: Path) -> None:
    """One after the other, with the output that it shows, but for numbers."""
    commands = [each for each in guides.commands(guide) if not run_elsewhere(each)]
    missing = {program for each in commands for program in programs(each) if not shutil.which(program)}
    session = Session(tmp_path)
    with session.started() if commands else contextlib.nullcontext():
        for each in commands:
            if not programs(each) & missing:
                output = session.run(each)
                assert not each.output or guides.matches(output, each.output), f"{each.text}\n{output}"
    if missing:
        pytest.skip(f"all but the commands with {', '.join(sorted(missing))}, which is not installed")


@pytest.mark.parametrize(
    ("output", "same"),
    [
        ("a 3 of 1,024 in use, 4.1 ms\nrest\nof it\nlast\n", True),
        ("a 20 of 30 in use, 6 µs\nlast\n", True),
        ("a 20 of 30 used, 6 µs\nlast\n", False),
        ("a 20 of 30 in use, 6 µs\n", False),
        ("a 20 of 30 in use, 6 µs\nlast\nmore\n", False),
    ],
)
def test_an_output_is_compared_but_for_numbers(output: str, *, same: bool) -> None:
    """And "..." stands for any lines, or none."""
    assert guides.matches(output, ["a 12 of 20 in use, 1 s", "...", "last"]) == same


def test_what_is_run_elsewhere_is_run_there() -> None:
    """By a test of that name; and there is no entry for a command that no guide has any more."""
    tests = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert set(ELSEWHERE.values()) <= tests
    texts = [each.text for guide in GUIDES for each in guides.commands(guide)]
    assert [beginning for beginning in ELSEWHERE if not any(text.startswith(beginning) for text in texts)] == []


def test_make_run_does_what_the_readme_says() -> None:
    """It serves on port 7007, by the shipped file."""
    assert "echod run --config config/echod.toml" in targets()["run"]
    assert tomllib.loads((ROOT / "config/echod.toml").read_text())["listen"]["port"] == 7007


@ids
def test_make_knows_the_targets_of_the_guides(guide: Path) -> None:
    texts = guides.inline(guide) + [each.text for each in guides.commands(guide)]
    named = {found[1] for text in texts if (found := re.match(r"(?:sudo )?make ([a-z-]+)", text))}
    assert named <= targets().keys()


def targets() -> dict[str, str]:
    """Return the recipes of the Makefile. They are read, because `make --dry-run` runs what calls make again."""
    return dict(re.findall(r"^([a-z-]+):.*\n((?:\t.*\n)*)", (ROOT / "Makefile").read_text(), re.MULTILINE))


@ids
def test_the_command_line_knows_the_commands_of_the_guide(guide: Path) -> None:
    """Also those within the text: each is one that echod accepts."""
    for text in guides.inline(guide):
        if text.startswith("echod ") and text not in ("echod --version", "echod kill", "echod ping", "echod bench"):
            cli.parser().parse_args(text.partition(" |")[0].split()[1:])  # raises Refusal if not


@ids
def test_the_files_of_the_guide_are_valid(guide: Path, tmp_path: Path) -> None:
    """To `echod check`, without a warning."""
    for text in guides.blocks(guide, "toml"):
        file = tmp_path / "echod.toml"
        file.write_text(re.sub(r"/[\w./-]+\.pem", pem_file(), text))  # certificates that are there
        done = command("check", "-c", str(file))
        assert (done.returncode, done.stderr) == (0, ""), text


@ids
def test_the_lines_of_the_guide_are_lines_of_the_log(guide: Path) -> None:
    """With fields and values as docs/logs.md has them, if not with all fields; its own examples are complete."""
    for block in guides.blocks(guide, "json"):
        for line in map(json.loads, block.splitlines()):
            check_line(completed(line, events()[line["event"]].examples[0]))


def completed(line: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    """Return a line with what it leaves out, also within `tcp` and `syn`."""
    parts = {name: example[name] | line[name] for name in ("tcp", "syn") if isinstance(line.get(name), dict)}
    return example | line | parts


@ids
def test_what_the_guide_links_to_is_there(guide: Path) -> None:
    """Files, and headings in them."""
    for target in guides.links(guide):
        path, _, anchor = target.partition("#")
        file = guide.parent / path if path else guide
        assert file.exists(), target
        assert not anchor or anchor in guides.anchors(file), target


def test_the_speed_in_the_readme_is_the_measured_one() -> None:
    """Each ratio of its table is in docs/performance.md."""
    measured = (ROOT / "docs" / "performance.md").read_text()
    section = README.read_text().partition("## Speed")[2].partition("\n## ")[0]
    ratios = re.findall(r"\d\.\d\d\b", section)
    assert len(ratios) > 10
    assert [ratio for ratio in ratios if f"x{ratio} (" not in measured] == []
