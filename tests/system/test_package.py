"""The package: clean, installed, upgraded under load, purged without a trace."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.harness import DEADLINE, until
from tests.system.machine import CONFIG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.system.machine import Machine

SOURCE = Path(__file__).parents[2]
SNAPSHOT = (
    "find / -xdev -ignore_readdir_race \\( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /var/log -o -path /var/cache"
    " -o -path /var/lib/dpkg -o -path /var/lib/apt -o -path /var/lib/systemd \\) -prune -o -print | sort;"
    " getent passwd; getent group; find /var/lib/systemd/deb-systemd* /etc/systemd 2>/dev/null | sort;"
    " grep -l echod -r /etc /var/lib/dpkg/info /var/lib/systemd 2>/dev/null; true"
)
"""What is there: files, users, groups, and what remembers a unit."""
BACKUPS = {"/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-"}
"""What the tools for users keep of the state before their last change."""


def run(*words: object) -> str:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=10 * DEADLINE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def newer(package: Path) -> Iterator[Path]:
    """The package once more, with a higher version and another configuration."""
    tree = package.parent / "newer"
    run("dpkg-deb", "--raw-extract", package, tree)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace("\nVersion: ", "\nVersion: 1000."))
    config = tree / CONFIG[1:]
    config.write_text(config.read_text() + "\n# Of the new version.\n")
    built = package.parent / "echod_newer.deb"
    run("dpkg-deb", "--root-owner-group", "--build", tree, built)
    run("rm", "-r", tree)
    yield built
    built.unlink()


@pytest.fixture
def clean(booted: Callable[[], Machine]) -> Iterator[Machine]:
    """A system of its own, on which nothing is installed yet."""
    with booted() as machine:
        yield machine


def install(machine: Machine, package: Path) -> None:
    machine.run(
        f"DEBIAN_FRONTEND=noninteractive apt-get install -y -o Dpkg::Options::=--force-confold /mnt/{package.name}"
    )


def test_lintian_finds_nothing(package: Path) -> None:
    """Neither errors nor warnings, but for what is overridden with a reason."""
    assert run("lintian", "--allow-root", "--fail-on", "error,warning", package) == ""


def test_it_is_built_without_strip(tmp_path: Path) -> None:
    """A bare Debian has no binutils. The package then keeps the symbols, and a line says so."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in ("/usr/bin", "/usr/local/bin"):  # the first one wins: Debian's
        for program in Path(folder).iterdir():
            if program.name != "strip" and not (programs / program.name).is_symlink():
                (programs / program.name).symlink_to(program)
    done = subprocess.run(
        ["make", "--no-print-directory", "deb", "DEB_VERSION=0.0.1"],  # noqa: S607
        cwd=SOURCE,
        env=os.environ | {"PATH": str(programs)},
        capture_output=True,
        text=True,
        timeout=10 * DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "apt install binutils" in done.stderr
    built = SOURCE / done.stdout.splitlines()[-1]
    run("dpkg-deb", "--info", built)
    built.unlink()


def test_it_holds_all_that_belongs_to_it(package: Path) -> None:
    """The command, the units, the manual pages, the completions, the guides, the configuration."""
    names = {line.split()[5] for line in run("dpkg-deb", "--contents", package).splitlines()}
    for name in (
        "etc/echod/echod.toml",
        "usr/bin/echod",
        "usr/sbin/echod-restart",
        "usr/lib/systemd/system/echod.service",
        "usr/lib/systemd/system/echod@.service",
        "usr/lib/systemd/system/echod.socket",
        "usr/lib/sysusers.d/echod.conf",
        "usr/share/man/man8/echod.8.gz",
        "usr/share/man/man8/echod-restart.8.gz",
        "usr/share/man/man5/echod.toml.5.gz",
        "usr/share/bash-completion/completions/echod",
        "usr/share/zsh/vendor-completions/_echod",
        "usr/share/fish/vendor_completions.d/echod.fish",
        "usr/share/doc/echod/README.md",
        "usr/share/doc/echod/docs/configuration.md",
    ):
        assert f"./{name}" in names


def test_it_installs_starts_and_is_purged_without_a_trace(clean: Machine, package: Path) -> None:
    """On a clean system, with one command each; also what the operator has enabled of it is gone."""
    before = clean.run(SNAPSHOT).splitlines()
    clean.run(f"apt-get install -y /mnt/{package.name}")
    assert clean.echo(7) == b"hi\n"
    assert clean.run("systemctl is-enabled echod") == "enabled\n"
    assert clean.run("echod --version").startswith("echod ")
    assert clean.run("man --path echod; man -w echod.toml; man -w echod-restart")
    clean.run("systemctl enable echod.socket echod@1 2>&1")
    clean.run("systemctl start echod@1")
    clean.run("install -D -m 644 /usr/share/echod/socket-activated.conf -t /etc/systemd/system/echod.service.d/")
    clean.write("/etc/echod/1.env", "ECHOD_LOG__LEVEL=debug\n")
    clean.run("apt-get purge -y echod")
    assert not clean.answers(7)
    after = clean.run(SNAPSHOT).splitlines()
    assert (set(after) ^ set(before)) - BACKUPS == set()
    assert clean.run("systemctl list-units --all --no-legend 'echod*'") == ""


def test_a_removal_keeps_the_configuration_for_the_next_time(clean: Machine, package: Path) -> None:
    """And the service is as it was, then."""
    install(clean, package)
    clean.run(f"sed -i 's/^port = 7$/port = 77/' {CONFIG}; systemctl disable echod 2>&1")
    clean.run("apt-get remove -y echod")
    assert "port = 77\n" in clean.read(CONFIG)
    install(clean, package)
    assert "port = 77\n" in clean.read(CONFIG)
    assert clean.shell("systemctl is-enabled echod").stdout == "disabled\n"
    assert clean.state("echod") == "inactive"


def test_an_upgrade_keeps_an_edited_configuration_and_restarts(clean: Machine, package: Path, newer: Path) -> None:
    """With another one in the new package; one that nobody has edited is replaced."""
    install(clean, package)
    clean.run(f"sed -i 's/^port = 7$/port = 77/' {CONFIG}; systemctl reload echod")
    pid = clean.pid("echod")
    install(clean, newer)
    assert "port = 77\n" in clean.read(CONFIG)
    assert "Of the new version" not in clean.read(CONFIG)
    assert clean.pid("echod") not in (0, pid)
    assert clean.echo(77) == b"hi\n"


def test_an_upgrade_restarts_the_instances_that_run(clean: Machine, package: Path, newer: Path) -> None:
    """And does not start the service in their place, though that may still be enabled."""
    install(clean, package)
    clean.run("systemctl start echod@1 echod@2")
    before = {clean.pid(f"echod@{number}") for number in (1, 2)}
    install(clean, newer)
    after = {clean.pid(f"echod@{number}") for number in (1, 2)}
    assert 0 not in after
    assert not after & before
    assert clean.state("echod") == "inactive"
    assert clean.echo(7) == b"hi\n"


def test_an_upgrade_under_load_refuses_no_connection(clean: Machine, package: Path, newer: Path) -> None:
    """With echod.socket: whoever connects is served by the old process or by the new one, and gets all of its echo."""
    install(clean, package)
    clean.run("systemctl disable --now echod 2>&1; systemctl enable --now echod.socket 2>&1")
    assert clean.echo(7) == b"hi\n"
    pid = clean.pid("echod")
    done = threading.Event()
    answers: list[bytes] = []
    failures: list[OSError] = []

    def load() -> None:
        clean.enter_network()
        while not done.is_set():
            try:
                answers.append(clean.echo_here(7))
            except OSError as error:
                failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(answers) > 100, what="the load")
        install(clean, newer)
        before = len(answers)
        until(lambda: len(answers) > before + 100, what="the load after the upgrade")
    finally:
        done.set()
        for thread in threads:
            thread.join()
    print(f"{len(answers)} connections during an upgrade, {len(failures)} failed")  # noqa: T201 - a figure
    assert failures == []
    assert set(answers) == {b"hi\n"}
    assert clean.pid("echod") not in (0, pid)
    assert clean.run("dpkg-query -W -f '${Version}' echod").startswith("1000.")
    assert clean.run("systemctl is-enabled echod.socket") == "enabled\n"
