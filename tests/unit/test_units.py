"""The units agree with the daemon. tests/system starts them on a booted Debian."""

from __future__ import annotations

from pathlib import Path

from generate import units

from echod import limits, reload, systemd
from echod.client import control
from echod.config.settings import Settings
from echod.server import drain

SERVICE = (Path(__file__).parents[2] / "systemd/echod.service").read_text()
SETTINGS = Settings.model_construct()
LOG_PATIENCE = 5.0  # seconds, the default of `Log.close`


def directives(unit: str) -> list[str]:
    """Return the lines of a unit that are neither empty nor comments."""
    return [line for line in unit.splitlines() if line and not line.startswith("#")]


def seconds(name: str) -> float:
    """Return a time of echod.service."""
    (value,) = [line.partition("=")[2] for line in directives(SERVICE) if line.startswith(f"{name}=")]
    return float(value.removesuffix("s"))


def test_an_instance_differs_from_the_service_in_these_lines_only() -> None:
    service, instance = directives(SERVICE), directives(units.instance(SERVICE))
    assert [line for line in service if line not in instance] == [
        "Description=Echo daemon (RFC 862)",
        "ExecStart=/usr/bin/echod run",
        "RuntimeDirectory=echod",
    ]
    assert [line for line in instance if line not in service] == [
        "Description=Echo daemon (RFC 862), instance %i",
        "Conflicts=echod.service echod.socket",
        "After=echod.service echod.socket",
        "Environment=ECHOD_INSTANCE=%i",
        "EnvironmentFile=-/etc/echod/%i.env",
        "ExecStart=/usr/bin/echod run --listen.reuse_port true",
        "RuntimeDirectory=echod/%i",
    ]


def test_each_line_has_its_reason() -> None:
    """In a comment above it, in echod.service. Lines that belong together share one."""
    for block in SERVICE.split("\n\n")[2:-1]:
        lines = block.strip().splitlines()
        first = next(index for index, line in enumerate(lines) if not line.startswith("["))
        assert lines[first].startswith("#") or lines[first].startswith(("Description=", "User=")), block


def test_the_shipped_drain_ends_before_the_manager_ends_it() -> None:
    """With all that follows the drain. For a longer drain, the daemon asks systemd for more time."""
    assert SETTINGS.timeouts.drain is not None
    most = SETTINGS.timeouts.drain + drain.LAST_READ + drain.LINGER + LOG_PATIENCE
    assert most < seconds("TimeoutStopSec")
    assert systemd._STOP_GOES_ON > 1 + LOG_PATIENCE


def test_a_reload_gives_up_before_the_manager_does() -> None:
    """If the file hangs, the daemon gives up first, then `echod reload`, then systemd, so that each can log why."""
    assert reload.LONGEST < control.RELOAD_TIMEOUT < seconds("TimeoutStartSec")


def test_the_start_limit_never_stops_the_restarts() -> None:
    """It allows more starts than RestartSec= makes in the interval, and some by hand on top."""
    (burst,) = [int(line.partition("=")[2]) for line in directives(SERVICE) if line.startswith("StartLimitBurst=")]
    assert burst >= seconds("StartLimitIntervalSec") / seconds("RestartSec") + 10


def test_the_shipped_pool_fits_the_limit_of_descriptors() -> None:
    """The daemon raises its soft limit up to the hard one."""
    (value,) = [line.partition("=")[2] for line in directives(SERVICE) if line.startswith("LimitNOFILE=")]
    assert limits.needed(SETTINGS.pool.size) <= int(value.partition(":")[2])
