"""The units: that what they say agrees with the daemon, and one of them with the other. Booted, they are in tests/system."""

from __future__ import annotations

from pathlib import Path

from echod import limits, reload, systemd
from echod.client import control
from echod.config.settings import Settings
from echod.server import drain

UNITS = Path(__file__).parents[2] / "systemd"
SETTINGS = Settings.model_construct()
LOG_PATIENCE = 5.0  # seconds, of `Log.close` with its default


def directives(name: str) -> list[str]:
    """Return the lines of a unit that are neither empty nor comments."""
    return [line for line in (UNITS / name).read_text().splitlines() if line and not line.startswith("#")]


def seconds(name: str) -> float:
    """Return a time of echod.service."""
    (value,) = [line.partition("=")[2] for line in directives("echod.service") if line.startswith(f"{name}=")]
    return float(value.removesuffix("s"))


def test_an_instance_differs_from_the_service_in_what_makes_it_one() -> None:
    """A line that is changed in the one has to be changed in the other."""
    service, instance = directives("echod.service"), directives("echod@.service")
    assert [line for line in service if line not in instance] == [
        "Description=Echo daemon (RFC 862)",
        "ExecStartPre=-/usr/bin/echod check -q",
        "ExecStart=/usr/bin/echod run",
        "RuntimeDirectory=echod",
    ]
    assert [line for line in instance if line not in service] == [
        "Description=Echo daemon (RFC 862), process %i",
        "Conflicts=echod.service echod.socket",
        "After=echod.service echod.socket",
        "EnvironmentFile=-/etc/echod/%i.env",
        "ExecStartPre=-/usr/bin/echod check -q --listen.reuse_port true",
        "ExecStart=/usr/bin/echod run --listen.reuse_port true",
        "RuntimeDirectory=echod/%i",
    ]


def test_each_line_has_its_reason() -> None:
    """Above it, in echod.service, be it for several lines together."""
    text = (UNITS / "echod.service").read_text()
    for block in text.split("\n\n")[2:-1]:
        lines = block.strip().splitlines()
        first = next(index for index, line in enumerate(lines) if not line.startswith("["))
        assert lines[first].startswith("#") or lines[first].startswith(("Description=", "User=")), block


def test_the_shipped_drain_ends_before_the_manager_ends_it() -> None:
    """With all that follows it; a longer one asks for more time."""
    assert SETTINGS.timeouts.drain is not None
    most = SETTINGS.timeouts.drain + drain.LAST_READ + drain.LINGER + LOG_PATIENCE
    assert most < seconds("TimeoutStopSec")
    assert systemd._STOP_GOES_ON > 1 + LOG_PATIENCE


def test_a_reload_gives_up_before_the_manager_does() -> None:
    """First the daemon on a file that hangs, then the command, then systemd: each can say why."""
    assert reload.LONGEST < control.RELOAD_PATIENCE < seconds("TimeoutStartSec")


def test_trying_again_is_never_over() -> None:
    """However fast each try fails, the start limit takes more of them than there can be; and some by hand."""
    (burst,) = [
        int(line.partition("=")[2]) for line in directives("echod.service") if line.startswith("StartLimitBurst=")
    ]
    assert burst >= seconds("StartLimitIntervalSec") / seconds("RestartSec") + 10


def test_the_shipped_pool_fits_the_limit_of_descriptors() -> None:
    """The soft limit is raised by the daemon."""
    (value,) = [line.partition("=")[2] for line in directives("echod.service") if line.startswith("LimitNOFILE=")]
    assert limits.needed(SETTINGS.pool.size) <= int(value.partition(":")[2])
