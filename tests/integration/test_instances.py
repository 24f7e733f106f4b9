"""Several daemons on one port, and the commands that speak of all of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.harness import ECHOD, LOCAL, Echod, command, environment, free_port, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Instances:
    """The instances 1 and 2 of a user."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.port = free_port()
        self.daemons: list[Echod] = []

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name in "12":
                below = self._directory / "echod" / name
                below.mkdir(parents=True)
                config = f'[listen]\nhost = "{LOCAL}"\nport = {self.port}\nreuse_port = true\n[pool]\nsize = 10\n'
                variables = {"RUNTIME_DIRECTORY": str(below), "ECHOD_INSTANCE": name}
                self.daemons.append(stack.enter_context(Echod(config, directory=below, env=variables)))
            yield

    def ask(self, words: str) -> subprocess.CompletedProcess[str]:
        return command(*words.split(), env=self.variables)

    @property
    def variables(self) -> dict[str, str]:
        return {"XDG_RUNTIME_DIR": str(self._directory)}

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.ask("connections --json").stdout)
        return rows

    def seat(self, stack: contextlib.ExitStack) -> None:
        """Connect until both have clients: the kernel chooses where a connection goes."""
        while len({row["instance"] for row in self.rows()}) < len(self.daemons):
            for _ in range(4):
                client = stack.enter_context(socket.create_connection((LOCAL, self.port)))
                client.sendall(b"x")
                assert client.recv(1) == b"x"


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Instances]:
    two = Instances(tmp_path)
    with two.started():
        yield two


@pytest.mark.slow
def test_the_commands_speak_of_both(two: Instances) -> None:
    """`status` adds up, `connections` has ids that `kill` takes, and `reload` fails if one refuses."""
    with contextlib.ExitStack() as stack:
        two.seat(stack)
        rows = two.rows()
        answer = json.loads(two.ask("status --json").stdout)
        assert answer["total"]["pool"] == {"size": 20, "in_use": len(rows)}
        assert [each["pid"] for each in answer["instances"].values()] == [each.process.pid for each in two.daemons]
        (first, *_), (second, *_) = ([row for row in rows if row["instance"] == name] for name in "12")
        wanted = [f"{row['instance']}/{row['connection']}" for row in (first, second)]
        done = two.ask(f"kill {' '.join(wanted)}")
        assert [line.split(",")[0] for line in done.stdout.splitlines()] == [f"killed {each}" for each in wanted]
        assert {row["instance"] for row in rows} == {"1", "2"}
    two.daemons[0].file.write_text(two.daemons[0].file.read_text().replace("size = 10", "size = 5"))
    two.daemons[1].file.write_text("pool.size = 0")
    done = two.ask("reload")
    assert (done.returncode, done.stdout) == (os.EX_CONFIG, "instance 1: pool.size: 10 -> 5\n")
    assert done.stderr == f"instance 2: {two.daemons[1].file}:1: pool.size: must be at least 1, got 0\n"
    assert two.ask("status --instance 1").stdout.startswith("  echod ")


@pytest.mark.slow
def test_an_instance_that_hangs_hides_no_other(two: Instances) -> None:
    """It is reported beside them, each time it is asked, until it answers again."""
    watching = subprocess.Popen(
        [*ECHOD, "status", "--watch"], stdout=subprocess.PIPE, text=True, env=environment(**two.variables)
    )
    with watching, two.daemons[0].deadline():
        assert watching.stdout
        assert watching.stdout.readline() == "  instances  2\n"
        with two.daemons[1].suspended():
            until_line(
                watching,
                f"! echod: instance 2: unix:{two.variables['XDG_RUNTIME_DIR']}/echod/2/admin.sock: no answer within 2 s",
            )
            assert watching.stdout.readline() == "! instances  1 of 2 answer\n"
            done = two.ask("ready")
            line = (
                f"echod: instance 2: unix:{two.variables['XDG_RUNTIME_DIR']}/echod/2/admin.sock: no answer within 2 s\n"
            )
            assert (done.returncode, done.stdout, done.stderr) == (os.EX_UNAVAILABLE, "", line)
        until_line(watching, "  instances  2\n")
        watching.send_signal(signal.SIGINT)
        watching.stdout.read()


def until_line(process: subprocess.Popen[str], beginning: str) -> None:
    output = process.stdout
    assert output
    until(lambda: output.readline().startswith(beginning), what=beginning)
