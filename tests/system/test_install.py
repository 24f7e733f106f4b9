"""`make install` and `make uninstall`: into a folder, and from there onto a system without a package."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.harness import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.system.machine import Machine

SOURCE = Path(__file__).parents[2]


def make(target: str, root: Path, python: str = "/usr/bin/python3") -> None:
    done = tried(target, root, python)
    assert done.returncode == 0, done.stdout + done.stderr


def tried(
    target: str, root: Path, python: str = "/usr/bin/python3", **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", target, f"DESTDIR={root}", "PREFIX=/usr/local", f"PYTHON={python}"],  # noqa: S607
        cwd=SOURCE,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=10 * DEADLINE,
        check=False,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    make("install", tmp_path / "tree")
    return tmp_path / "tree"


def test_uninstall_takes_all_away_but_the_configuration(tree: Path) -> None:
    """Which install does not touch either, once it is there."""
    config = tree / "etc/echod/echod.toml"
    assert "\nport = 7\n" in config.read_text()
    config.write_text("# edited\n")
    make("install", tree, "python3")  # of whatever is first in the PATH
    make("uninstall", tree)
    assert config.read_text() == "# edited\n"
    assert [path for path in tree.rglob("*") if not path.is_dir()] == [config]


def test_an_install_that_fails_leaves_what_is_there(tree: Path) -> None:
    """Such as without an index; and nothing of its own."""
    before = sorted(tree.rglob("*"))
    assert tried("install", tree, PIP_NO_INDEX="1").returncode != 0
    assert sorted(tree.rglob("*")) == before


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    """In one line, before anything is done; make adds its own."""
    done = tried("install", tmp_path, "python3.99")
    first, second = done.stderr.splitlines()
    assert first.startswith("python3.99: not found; ")
    assert second.startswith("make")
    assert list(tmp_path.iterdir()) == []


def test_what_is_installed_runs_where_it_was_meant_to(booted: Callable[[], Machine], package: Path, tree: Path) -> None:
    """Below /usr/local, with nothing of the folder in which it was put together."""
    archive = package.parent / "installed.tar"
    subprocess.run(["tar", "-C", str(tree), "--owner=0", "--group=0", "-cf", str(archive), "."], check=True)  # noqa: S607
    try:
        with booted() as machine:
            machine.run(f"tar -C / --no-overwrite-dir -xf /mnt/{archive.name}")
            assert machine.shell(f"grep -rl {tree} /usr/local/lib/echod /usr/local/lib/systemd").stdout == ""
            machine.run("systemd-sysusers && systemctl daemon-reload && systemctl start echod")
            assert machine.run("echo hi | nc -N localhost 7") == "hi\n"
            assert machine.run("echod status")
            machine.run("systemctl reload echod && systemctl stop echod")
    finally:
        archive.unlink()
