"""Metrics as Prometheus' own parsers read them: they are the books, whole and well-formed."""

from __future__ import annotations

import errno
import os
import platform
import resource
import time
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from prometheus_client import parser
from prometheus_client.openmetrics import parser as open_parser

from echod import __version__
from echod.admin import metrics
from echod.admin.status import RESULTS
from echod.histogram import Histogram
from echod.log import Held
from echod.reload import Reloaded
from echod.server.access import REJECT_REASONS
from echod.server.datagrams import Datagrams
from echod.server.endpoint import Peer
from echod.server.pool import CLOSE_REASONS, DURATIONS
from echod.server.proxy_header import HEADERS
from tests.support.fakes import stop_clock
from tests.support.in_process import Inside
from tests.support.rig import LISTENER

if TYPE_CHECKING:
    from collections.abc import Iterator

OPEN = "application/openmetrics-text; version=1.0.0"
PROMETHEUS = f"{OPEN};q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inside]:
    stop_clock(monkeypatch, now=60.5, booted=1.6e9)
    with closing(Inside()) as daemon:
        yield daemon


def exposed(daemon: Inside, accept: str = "") -> tuple[str, str]:
    """Return the text and its content type."""
    body, content_type = uvloop.run(metrics.expose(daemon.running, accept))
    return body.decode(), content_type


def families(text: str) -> dict[str, Any]:
    """Return what each parser makes of it: Prometheus' by default, that of OpenMetrics by its last line."""
    parse: Any = open_parser if text.endswith("# EOF\n") else parser
    return {family.name: family for family in parse.text_string_to_metric_families(text)}


def samples(daemon: Inside, accept: str = "") -> Samples:
    """Return all values by name and labels."""
    found = families(exposed(daemon, accept)[0]).values()
    listed = [
        ((each.name, tuple(sorted(each.labels.items()))), each.value) for family in found for each in family.samples
    ]
    assert len(dict(listed)) == len(listed), "a series that is there twice"
    return dict(listed)


def plain(found: Samples) -> dict[str, float]:
    """Return those without labels."""
    return {name: value for (name, labels), value in found.items() if not labels}


def by(found: Samples, name: str, label: str) -> dict[str, float]:
    return {labels[0][1]: value for (each, labels), value in found.items() if each == name and labels[0][0] == label}


def proxy_headers(found: Samples) -> dict[tuple[str, str], float]:
    """Return the counts of headers by version and command."""
    return {
        (dict(labels)["version"], dict(labels)["command"]): value
        for (name, labels), value in found.items()
        if name == "echod_proxy_headers_total"
    }


PROMISED = {
    "echod_build_info",
    "echod_connections_accepted_total",
    "echod_connections_closed_total",
    "echod_connections_rejected_total",
    "echod_connections_in_use",
    "echod_lame_duck",
    "echod_listeners_missing",
    "echod_probes_total",
    "echod_proxy_headers_total",
    "echod_pool_size",
    "echod_received_bytes_total",
    "echod_sent_bytes_total",
    "echod_connection_duration_seconds_bucket",
    "echod_connection_duration_seconds_count",
    "echod_connection_duration_seconds_sum",
    "echod_tcp_rtt_seconds_bucket",
    "echod_tcp_rtt_seconds_count",
    "echod_tcp_rtt_seconds_sum",
    "echod_tcp_retransmits_total",
    "echod_accept_paused_seconds_total",
    "echod_loop_lag_seconds_bucket",
    "echod_loop_lag_seconds_count",
    "echod_loop_lag_seconds_sum",
    "echod_log_dropped_lines_total",
    "echod_log_held_lines",
    "echod_config_reload_success",
    "echod_config_reload_timestamp_seconds",
    "process_cpu_seconds_total",
    "process_virtual_memory_bytes",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_open_fds",
    "process_max_fds",
}
"""Names that dashboards and alerts of users have: none of these may be renamed or go away. A new metric needs no entry."""


@pytest.mark.parametrize("accept", ["", OPEN, PROMETHEUS])
def test_the_promised_metrics_are_there(daemon: Inside, accept: str) -> None:
    """By the same names in each form, each with its help. Any other begins with the name of the program or `process`."""
    names = {name for name, _ in samples(daemon, accept)}
    assert names >= PROMISED
    assert names == {name for name, _ in samples(daemon)}
    assert all(name.startswith(("echod_", "process_")) for name in names)
    assert all(family.documentation for family in families(exposed(daemon, accept)[0]).values())


@pytest.mark.parametrize(
    "accept",
    [
        PROMETHEUS,
        "application/openmetrics-text",
        'Application/OpenMetrics-Text ; Version="1.0.0" ; Q=1.000',
        f"text/plain;version=0.0.4,{OPEN}",
        f"*/*,{OPEN}",
        f"text/plain;q=0.1,{OPEN};q=0.2",
        f"application/openmetrics-text;version=0.0.1;q=1,{OPEN};q=0.4,text/plain;q=0.3",
        f"{OPEN};escaping=allow-utf-8;q=0.6,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.8,text/plain;version=0.0.4;q=0.3",
        "text/plain;q=0.5,*/*",
        "application/*",
    ],
)
def test_openmetrics_is_given_when_asked_for(daemon: Inside, accept: str) -> None:
    """As RFC 9110 weighs it. The answer says so, and ends as it has to: once."""
    text, content_type = exposed(daemon, accept)
    assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert text.count("# EOF\n") == 1
    assert text.endswith("# EOF\n")


@pytest.mark.parametrize(
    "accept",
    [
        f"{OPEN};q=0.5,text/plain",
        f"{OPEN};q=0.5,text/plain;version=0.0.4;q=0.6",
        f"{OPEN};q=0",
        f"{OPEN};q=0,*/*",
        f"{OPEN};q=2",
        f"{OPEN};q=nan",
        "application/openmetrics-text;version=2.0.0",
        "application/openmetrics-text;version=1.1.0,*/*;q=0.1",
        "text/plain;version=1.0.0",
        "text/*,application/*",
        "",
        "*/*",
        "text/html",
        "text/plain;version=0.0.4",
        "application/openmetrics-text;version=x",
        "application/openmetrics-text;version=1.x",
        "application/openmetrics-text;version=2.\xff",
        "application/openmetrics-text;version=0.0.1",
        ",;=,",
    ],
)
def test_otherwise_it_is_the_plain_form(daemon: Inside, accept: str) -> None:
    """Also for who asks for a version that is none, or in characters that no answer can repeat."""
    text, content_type = exposed(daemon, accept)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert "# EOF" not in text


@pytest.mark.parametrize("accept", ["", OPEN])
def test_all_label_values_are_there_from_the_start(daemon: Inside, accept: str) -> None:
    """A series that begins with 1 would show no increase."""
    found = samples(daemon, accept)
    assert by(found, "echod_connections_closed_total", "reason") == dict.fromkeys(CLOSE_REASONS, 0.0)
    assert by(found, "echod_connections_rejected_total", "reason") == dict.fromkeys(REJECT_REASONS, 0.0)
    assert proxy_headers(found) == dict.fromkeys(HEADERS, 0.0)


@pytest.mark.parametrize("accept", ["", OPEN])
def test_values_are_those_of_the_books(daemon: Inside, accept: str) -> None:
    """Of connections that have ended and of those that are open."""
    for data in (b"12345", b"12"):
        _, transport = daemon.rig.take()
        transport.receive(data)
        transport.receive_eof()
        daemon.loop.run()
    _, transport = daemon.rig.take()
    transport.window = 1
    transport.receive(b"1234567")
    for _ in range(2):
        daemon.server.rejections.log(Peer("192.0.2.8", 1), LISTENER, "denied")
    daemon.server.listeners._paused_seconds = 0.75
    daemon.log.lost = 9
    daemon.log.late = Held(37, 12.3456, "EPIPE")
    daemon.server.set_lame_duck(on=True)
    daemon.listen("127.0.0.1", "192.0.2.1")
    daemon.server.proxies.headers["v2", "PROXY"] = 5
    daemon.server.proxies.probes = 2
    daemon.server.pool.unused = 4
    found = samples(daemon, accept)
    expected = {
        "echod_connections_accepted_total": 3.0,
        "echod_connections_in_use": 1.0,
        "echod_lame_duck": 1.0,
        "echod_listeners_missing": 1.0,
        "echod_probes_total": 6.0,
        "echod_pool_size": 3.0,
        "echod_received_bytes_total": 14.0,
        "echod_sent_bytes_total": 8.0,
        "echod_connection_duration_seconds_count": 2.0,
        "echod_accept_paused_seconds_total": 0.75,
        "echod_log_dropped_lines_total": 9.0,
        "echod_log_held_lines": 37.0,
        "echod_config_reload_success": 1.0,
        "echod_config_reload_timestamp_seconds": 1600000040.5,
    }
    assert {name: plain(found)[name] for name in expected} == expected
    assert by(found, "echod_connections_closed_total", "reason")["eof"] == 2.0
    assert by(found, "echod_connections_rejected_total", "reason")["denied"] == 2.0
    assert proxy_headers(found)["v2", "PROXY"] == 5.0


def test_all_values_are_of_one_moment(daemon: Inside) -> None:
    """What happens while they are written out is in none of them."""
    metrics._written.cache_clear()  # or nothing might have to be written, in no time

    async def scrape() -> str:
        exposing = metrics.expose(daemon.running, "")
        steps = exposing.send(None)
        assert steps is None
        daemon.rig.take()
        try:
            while True:
                exposing.send(None)
        except StopIteration as end:
            return str(end.value[0], "ascii")

    text = uvloop.run(scrape())
    assert "echod_connections_accepted_total 0.0" in text
    assert "echod_connections_in_use 0.0" in text
    assert plain(samples(daemon))["echod_connections_in_use"] == 1.0


def test_only_what_has_changed_is_written_anew(daemon: Inside) -> None:
    """Most of it has not, between two scrapes; and what has is never that of before."""
    metrics._written.cache_clear()
    samples(daemon)
    before = metrics._written.cache_info().misses
    daemon.rig.take()
    assert plain(samples(daemon))["echod_connections_in_use"] == 1.0
    written = metrics._written.cache_info().misses - before
    assert 2 <= written < 8  # those two, and the process's


@pytest.mark.parametrize("accept", ["", OPEN])
def test_a_histogram_is_cumulative(daemon: Inside, accept: str) -> None:
    """With a bucket for each bound, and one for all."""
    daemon.server.lag = Histogram(0.001, 0.01)
    for value in (0.0005, 0.002, 0.002, 7.0):
        daemon.server.lag.observe(value)
    found = samples(daemon, accept)
    assert by(found, "echod_loop_lag_seconds_bucket", "le") == {"0.001": 1.0, "0.01": 3.0, "+Inf": 4.0}
    assert plain(found)["echod_loop_lag_seconds_count"] == 4.0
    assert plain(found)["echod_loop_lag_seconds_sum"] == pytest.approx(7.0045)
    bounds = by(found, "echod_connection_duration_seconds_bucket", "le")
    assert list(bounds) == [*map(str, DURATIONS), "+Inf"]


def test_a_refused_reload_shows(daemon: Inside) -> None:
    """As a success that is none, with the time of what is in force."""
    daemon.reloads.last = Reloaded(20.0, 10.0, errors=["wrong"])
    found = plain(samples(daemon))
    assert found["echod_config_reload_success"] == 0.0
    assert found["echod_config_reload_timestamp_seconds"] == 1.6e9 + 10


def test_versions_are_labels(daemon: Inside) -> None:
    """A dashboard shows which daemon runs what."""
    ((labels, value),) = [
        (dict(labels), value) for (name, labels), value in samples(daemon).items() if name == "echod_build_info"
    ]
    assert labels == {"version": __version__, "python": platform.python_version(), "uvloop": version("uvloop")}
    assert value == 1.0


def test_the_process_is_this_one(daemon: Inside) -> None:
    """By the names and in the units that dashboards know."""
    before = time.process_time()
    found = plain(samples(daemon))
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert before - 2 * tick <= found["process_cpu_seconds_total"] <= time.process_time() + 2 * tick
    assert 0 < found["process_start_time_seconds"] < time.time()
    assert 1e6 < found["process_resident_memory_bytes"] < found["process_virtual_memory_bytes"]
    assert found["process_max_fds"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_what_proc_does_not_tell_is_left_out(daemon: Inside, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There may be no /proc, or one that an emulator makes up, with zeros for the memory."""
    names = {name for name, _ in samples(daemon)}
    memory = {"process_virtual_memory_bytes", "process_resident_memory_bytes"}
    file = tmp_path / "stat"
    file.write_text("7 (qemu) S " + " ".join(["0"] * 50))
    fd = metrics._opened(file)
    assert fd is not None
    monkeypatch.setattr(metrics, "_STAT", fd)
    assert {name for name, _ in samples(daemon)} == names - memory
    os.close(fd)
    monkeypatch.setattr(metrics, "_STAT", metrics._opened(tmp_path / "missing"))
    assert {name for name, _ in samples(daemon)} == names - memory - {"process_start_time_seconds"}


def test_the_start_is_when_the_process_began() -> None:
    """As the kernel has it, to a hundredth of a second and what its clocks differ."""
    with closing(Inside()) as daemon:
        began = plain(samples(daemon))["process_start_time_seconds"]
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    assert time.time() - began == pytest.approx(age, abs=1.0)


def test_open_descriptors_are_counted() -> None:
    """One more is one more."""
    before = metrics.open_descriptors()
    with Path(os.devnull).open():
        assert metrics.open_descriptors() == before + 1
    assert metrics.open_descriptors() == before


def test_an_old_kernel_has_to_list_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says 0 for the size of their directory."""

    class Old:
        def __truediv__(self, _: str) -> Old:
            return self

        def stat(self) -> os.stat_result:
            return os.stat_result([0] * 10)

        def iterdir(self) -> Iterator[int]:
            return iter(range(5))

    monkeypatch.setattr(metrics, "_PROC", Old())
    assert metrics.open_descriptors() == 5


def test_without_a_descriptor_an_old_kernel_leaves_out_how_many_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """That metric alone: just then the others are of interest."""

    def none_left() -> int:
        raise OSError(errno.EMFILE, "")

    monkeypatch.setattr(metrics, "open_descriptors", none_left)
    with closing(Inside()) as daemon:
        found = plain(samples(daemon))
    assert "process_open_fds" not in found
    assert "process_max_fds" in found


def test_a_limit_that_a_sandbox_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some refuse prlimit64 as a whole, to prevent that it is set."""

    def refuse(_: int) -> tuple[int, int]:
        raise PermissionError(errno.EPERM, "")

    with closing(Inside()) as daemon:
        monkeypatch.setattr(resource, "getrlimit", refuse)
        found = plain(samples(daemon))
    assert "process_max_fds" not in found
    assert "process_open_fds" in found


def test_what_udp_has_done_is_counted_if_it_is_served(daemon: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what became of each datagram; a kernel that does not tell its drops leaves out that one."""
    assert not [name for name, _ in samples(daemon) if "udp" in name]
    datagrams = daemon.running.server._datagrams()
    datagrams.results.update(echoed=3, rate=2)
    datagrams.bytes_received, datagrams.bytes_sent = 50, 30
    found = samples(daemon)
    counts = by(found, "echod_udp_datagrams_total", "result")
    assert counts == {**dict.fromkeys(RESULTS, 0), "echoed": 3, "rate": 2}
    assert by(found, "echod_udp_bytes_total", "direction") == {"received": 50, "sent": 30}
    assert plain(found)["echod_udp_kernel_drops_total"] == 0
    monkeypatch.setattr(Datagrams, "kernel_drops", None)
    assert "echod_udp_kernel_drops_total" not in plain(samples(daemon))
