"""One booted system for all tests of the service, with the package installed; others for what spoils it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.system.machine import CONFIG, Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT, PACKAGE = (os.environ.get(name, "") for name in ("ECHOD_TEST_ROOT", "ECHOD_TEST_PACKAGE"))
"""By `make test-system`: a Debian to boot, and the package to install."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is here where nothing can be booted."""
    if not ROOT:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="`make test-system` runs it: as root, on Debian"))


@pytest.fixture(scope="session")
def package() -> Path:
    return Path(PACKAGE).resolve()


@pytest.fixture(scope="session")
def booted(tmp_path_factory: pytest.TempPathFactory, package: Path) -> Callable[[], Machine]:
    """Return what boots a clean system, with the package's folder on /mnt."""

    def boot() -> Machine:
        return Machine(Path(ROOT), package.parent, tmp_path_factory.mktemp("machine") / "console.log")

    return boot


@pytest.fixture(scope="session")
def installed(booted: Callable[[], Machine], package: Path) -> Iterator[Machine]:
    """A system on which the package has just been installed, as an operator does it."""
    with booted() as machine:
        machine.run(f"apt-get install -y /mnt/{package.name}")
        machine.shipped = machine.read(CONFIG)
        yield machine


@pytest.fixture
def machine(installed: Machine) -> Iterator[Machine]:
    """The system with the service stopped, as it was shipped, and with nothing in its journal that matters."""
    reset(installed)
    installed.begin()
    yield installed
    reset(installed)


def reset(machine: Machine) -> None:
    machine.shell("pkill -CONT -x echod")
    machine.run("systemctl stop echod.socket echod.service 'echod@*.service'")
    machine.run(
        "rm -rf /etc/systemd/system/echod.*.d /etc/echod/*.env && systemctl daemon-reload && systemctl reset-failed"
    )
    machine.configure(machine.shipped)


def timed(machine: Machine, command: str) -> float:
    """Return the seconds that a command takes which has to succeed."""
    began = time.monotonic()
    machine.run(command)
    return time.monotonic() - began
