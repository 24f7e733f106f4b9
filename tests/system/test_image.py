"""The image: built by `make image`, and run by podman and crun with as few rights as there are."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.harness import DEADLINE, Echod, environment, opened, read_all, send_all, until
from tests.system.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).parents[2]
MANIFEST = SOURCE / "config/kubernetes/echod.yaml"
USER = 65532
LARGEST = 120_000_000
"""Bytes that the image may have."""
RIGHTS = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges")
HOST = "--network=host"
STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{memory}/graph"
runroot = "{memory}/run"
"""
LIMITS = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=1024:1024"]
"""
"""Without CAP_SYS_RESOURCE, podman can't raise them to its own defaults."""


class Podman:
    """Podman in mounts of its own: with a storage in memory, and without cgroups v2 beside v1, which crun does not support."""

    def __init__(self, folder: Path) -> None:
        memory = folder / "memory"
        memory.mkdir()
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", _HOLD, str(memory)],  # noqa: S607
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout
        assert self._holder.stdout.readline() == b"ready\n"
        files = {"CONTAINERS_STORAGE_CONF": STORAGE.format(memory=memory), "CONTAINERS_CONF": LIMITS}
        for name, text in files.items():
            (folder / name).write_text(text)
        variables = {name: str(folder / name) for name in files}
        self.environment = environment(**variables, BUILDAH_ISOLATION="chroot", BUILDAH_LAYERS="false")
        self.there = ["nsenter", "--target", str(self._holder.pid), "--mount"]

    def close(self) -> None:
        self.run("podman", "rm", "--all", "--force", "--time=0")
        self._holder.kill()  # and with it all that is mounted there
        self._holder.communicate()

    def tried(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.there, *(str(word) for word in words)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=10 * DEADLINE,
            check=False,
        )

    def run(self, *words: object) -> str:
        done = self.tried(*words)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def inspect(self, name: str) -> Any:
        (found,) = json.loads(self.run("podman", "inspect", name))
        return found


_HOLD = 'umount /sys/fs/cgroup/unified 2>/dev/null; mount -t tmpfs tmpfs "$0" && echo ready; exec sleep infinity'


class Container(Echod):
    """A daemon in a container, which is removed when it ends."""

    def __init__(self, podman: Podman, image: str, directory: Path) -> None:
        self._podman = podman
        self.name = f"echod-{uuid.uuid4().hex}"
        directory.chmod(0o755)  # for its user
        mount = f"--volume={directory}:{directory}:ro"
        super().__init__(
            directory=directory,
            env=podman.environment | {"ECHOD_ADMIN__SOCKET": "auto"},
            prefix=podman.there,
            patience=5 * DEADLINE,
            program=["podman", "run", "--rm", f"--name={self.name}", "--env=ECHOD_*", mount, HOST, *RIGHTS, image],
        )

    @functools.cached_property
    def pid(self) -> int:
        """What its PID 1 is called outside."""
        return int(self._podman.inspect(self.name)["State"]["Pid"])

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(self.pid, number)

    def execute(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._podman.tried("podman", "exec", self.name, *words)

    def errors(self) -> str:
        """Return standard error, without what podman says about the missing systemd, whose timers check its health."""
        return "".join(line for line in super().errors().splitlines(keepends=True) if "healthcheck" not in line)


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    with contextlib.closing(Podman(tmp_path_factory.mktemp("podman"))) as opened:
        yield opened


@pytest.fixture(scope="module")
def image(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build it from the Debian that the other tests boot, without an index of packages."""
    wheels = tmp_path_factory.mktemp("wheels")
    (python,) = Path(ROOT).glob("usr/lib/python3.*")
    pip = (sys.executable, "-m", "pip", "--quiet", "download", "--no-deps", "--require-hashes", "--only-binary=:all:")
    pins = SOURCE / "packaging/requirements/run.txt"
    podman.run(*pip, f"--requirement={pins}", f"--python-version={python.name[6:]}", f"--dest={wheels}")
    podman.run("sh", "-c", 'tar -C "$0" -c . | podman import - localhost/base', ROOT)
    make = ("make", "--no-print-directory", f"--directory={SOURCE}", "image", "ENGINE=podman")
    made = podman.run(*make, "BASE=localhost/base", f"WHEELS={wheels}")
    return made.splitlines()[-1]


def check_rights(pid: int) -> None:
    """Look whether a process is an ordinary user that can get no capability."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert {*status["Uid"].split(), *status["Gid"].split()} == {str(USER)}
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert int(status["NoNewPrivs"]) == 1


def test_it_is_small(podman: Podman, image: str) -> None:
    """As it lies on a disk, unpacked."""
    assert podman.inspect(image)["Size"] < LARGEST


def test_it_serves_without_any_right(podman: Podman, image: str, tmp_path: Path) -> None:
    """As an ordinary user, without capabilities, on a root that nobody can write to. Each line of its log is JSON."""
    with Container(podman, image, tmp_path) as daemon:
        assert daemon.echo(b"hello") == b"hello"
        check_rights(daemon.pid)
        assert daemon.execute("sh", "-c", "echo >/file").returncode != 0
        assert daemon.wait_for("daemon.started")["pid"] == 1


def test_commands_in_the_container_ask_it(podman: Podman, image: str, tmp_path: Path) -> None:
    """Without a mount for the admin socket."""
    with Container(podman, image, tmp_path) as daemon:
        assert "0 of 1,024 in use" in daemon.execute("echod", "status").stdout
        assert daemon.execute("echod", "reload").returncode == 0
        assert podman.run("podman", "run", "--rm", HOST, *RIGHTS, image, "--version").startswith("echod ")


def test_its_health_is_whether_it_is_ready(podman: Podman, image: str, tmp_path: Path) -> None:
    assert podman.inspect(image)["Healthcheck"]["Test"] == ["CMD", "echod", "ready"]
    with Container(podman, image, tmp_path) as daemon, daemon.connect() as client:
        assert daemon.execute("echod", "ready").returncode == 0
        assert podman.tried("podman", "healthcheck", "run", daemon.name).returncode == 0
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("daemon.draining")
        assert daemon.execute("echod", "ready").returncode == os.EX_UNAVAILABLE
        send_all(client, b"last")
        assert read_all(client) == b"last"


def test_a_stop_lets_connections_finish(podman: Podman, image: str, tmp_path: Path) -> None:
    """As `podman stop` and Kubernetes stop it: TERM, and KILL only much later."""
    with Container(podman, image, tmp_path) as daemon, daemon.connect() as client:
        stop = subprocess.Popen(
            [*podman.there, "podman", "stop", f"--time={10 * DEADLINE:.0f}", daemon.name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=podman.environment,
        )
        daemon.wait_for("daemon.draining")
        send_all(client, b"last")
        assert read_all(client) == b"last"
        assert daemon.wait() == 0
        assert daemon.events("daemon.stopped")[0]["aborted"] == 0
        assert stop.wait(DEADLINE) == 0


def test_hup_reloads(podman: Podman, image: str, tmp_path: Path) -> None:
    with Container(podman, image, tmp_path) as daemon:
        assert daemon.reload("[pool]\nsize = 7")["event"] == "config.reloaded"
        assert daemon.execute("echod", "config", "show", "--running").stdout.count("size = 7\n") == 1


def test_term_counts_from_the_first_instruction(podman: Podman, image: str, tmp_path: Path) -> None:
    """Python has no handler in its first milliseconds, and the kernel gives no signal to PID 1 that has no handler for it.

    A gate makes these milliseconds as long as the test needs.
    """
    tmp_path.chmod(0o755)
    gate, command = tmp_path / "gate", tmp_path / "echod"
    os.mkfifo(gate)
    command.write_text('#!/bin/sh\nread -r _ </mnt/gate\nexec /usr/local/lib/echod/bin/python -I -m echod "$@"\n')
    command.chmod(0o755)
    name = f"echod-{uuid.uuid4().hex}"
    mounts = (f"--volume={tmp_path}:/mnt:ro", f"--volume={command}:/usr/local/bin/echod:ro")
    podman.run("podman", "run", "--detach", f"--name={name}", *mounts, HOST, *RIGHTS, image)
    with opened(gate) as waiting:
        os.kill(podman.inspect(name)["State"]["Pid"], signal.SIGTERM)
        os.write(waiting, b"\n")
    until(lambda: not podman.inspect(name)["State"]["Running"], what="its end", interval=0.2)
    assert podman.inspect(name)["State"]["ExitCode"] == 0
    assert "daemon.started" not in podman.run("podman", "logs", name)


def test_the_manifest_for_kubernetes_runs(podman: Podman, image: str, tmp_path: Path) -> None:
    """As far as podman is like Kubernetes: with the ConfigMap and the rights of the Deployment, and one replica."""
    text = MANIFEST.read_text().replace("replicas: 2", "replicas: 1")
    text = re.sub(r"image: .*", f"image: localhost/{image}", text)
    (tmp_path / "echod.yaml").write_text(re.sub(r" {10}ports:\n(?: {12}.*\n)+", "", text))
    podman.run("podman", "kube", "play", "--network=none", tmp_path / "echod.yaml")
    ready = ("podman", "exec", "echod-pod-0-echod", "echod", "ready")
    until(lambda: podman.tried(*ready).returncode == 0, what="the pod", interval=0.2)
    check_rights(podman.inspect("echod-pod-0-echod")["State"]["Pid"])
    running = podman.run("podman", "exec", "echod-pod-0-echod", "echod", "config", "show", "--running")
    assert "receive_buffer = 32768\n" in running
    podman.run("podman", "pod", "rm", "--force", "--time=0", "echod-pod-0")
