"""The daemon's books in the forms of Prometheus and OpenMetrics, read when they are asked for.

It imports Prometheus' library, and is imported only if the admin service runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import resource
import time
from collections import Counter
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from echod import __version__, clock
from echod.admin import negotiation
from echod.admin.status import RESULTS
from echod.server import tls
from echod.server.access import REJECT_REASONS
from echod.server.pool import CLOSE_REASONS
from echod.server.proxy_header import HEADERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client import Metric
    from prometheus_client.registry import Collector

    from echod.admin.status import Running
    from echod.histogram import Histogram
    from echod.server.datagrams import Datagrams

_OPEN = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_PLAIN = "text/plain; version=0.0.4; charset=utf-8"
_END = b"# EOF\n"  # of an OpenMetrics document
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = resource.getpagesize()
_PROC = Path("/proc/self")
_VERSIONS = {"version": __version__, "python": platform.python_version(), "uvloop": version("uvloop")}


def _opened(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:  # no /proc
        return None


_STAT = _opened(_PROC / "stat")  # opened now, for the time when descriptors have run out


class _Reading(NamedTuple):
    """A metric, with the values that it has now as further arguments of what makes it."""

    make: Callable[..., Metric]
    name: str
    text: str
    values: tuple[Any, ...]

    def collect(self) -> Iterator[Metric]:
        """Yield it, as Prometheus' library wants it for writing."""
        yield self.make(self.name, self.text, *self.values)


async def expose(running: Running, accept: str) -> tuple[bytes, str]:
    """Return the metrics and their content type, in the best form that `accept` admits.

    All values are read at one moment. To write them out takes longer: what has not changed since the last time is not written
    anew, and for the rest, echoes go on in between.
    """
    content_type = _chosen(accept)
    parts = []
    await running.server.pool.count_open()
    for reading in list(_read(running)):
        before = _written.cache_info().misses
        parts.append(_written(content_type, reading))
        if _written.cache_info().misses != before:
            await asyncio.sleep(0)
    end = _END if content_type == _OPEN else b""
    return b"".join(parts) + end, content_type


@lru_cache(maxsize=64)
def _written(content_type: str, reading: _Reading) -> bytes:
    encode = openmetrics.generate_latest if content_type == _OPEN else generate_latest
    return encode(cast("Collector", reading)).removesuffix(_END)


def _chosen(accept: str) -> str:
    """Return the content type that the client wants most. OpenMetrics has to be wanted more, or to be named."""
    wanted, plain = (negotiation.wanted(accept, *form.split("; ")[:2]) for form in (_OPEN, _PLAIN))
    quality, precision = wanted
    is_open = quality and (wanted > plain or (wanted == plain and precision >= negotiation.NAMED))
    return _OPEN if is_open else _PLAIN


def _read(running: Running) -> Iterator[_Reading]:
    server, reloads, log = running
    pool = server.pool
    yield _Reading(_build, "echod_build", "Versions.", ())
    yield _counter("echod_connections_accepted", "Connections that got a worker.", pool.accepted)
    yield _by_reason("echod_connections_closed", "Connections that have ended, by reason.", CLOSE_REASONS, pool.closed)
    yield _by_reason(
        "echod_connections_rejected", "Connections closed at once, by reason.", REJECT_REASONS, server.rejections.count
    )
    yield _counter("echod_probes", "Checks: ended by the client without a byte, or of a load balancer.", server.probes)
    yield _Reading(
        _proxy_headers,
        "echod_proxy_headers",
        "PROXY headers that were read, by version and command; UNKNOWN names no client.",
        tuple((version, command, server.proxies.headers[version, command]) for version, command in HEADERS),
    )
    handshakes = server.handshakes
    yield _Reading(
        _labelled,
        "echod_tls_handshakes",
        "TLS handshakes, by how they ended.",
        ("result", *((result, handshakes.count[result]) for result in tls.RESULTS)),
    )
    yield _histogram("echod_tls_handshake_seconds", "From accept to the end of a TLS handshake.", handshakes.seconds)
    if handshakes.loaded:
        yield _gauge(
            "echod_tls_certificate_expiry_timestamp_seconds",
            "Until when the certificate is valid, in Unix time.",
            handshakes.loaded.certificate.not_after.timestamp(),
        )
    yield _gauge("echod_connections_in_use", "Open connections.", len(pool.in_use))
    yield _gauge("echod_lame_duck", "Whether it accepts, but is not ready: a lame duck.", server.lame_duck is not None)
    yield _gauge("echod_pool_size", "Workers: the most connections at one time.", pool.size)
    yield _counter("echod_received_bytes", "Bytes read, also of open connections.", pool.bytes_received)
    yield _counter("echod_sent_bytes", "Bytes written back, also of open connections.", pool.bytes_sent)
    yield _histogram("echod_connection_duration_seconds", "From accept to close.", pool.durations)
    yield _histogram(
        "echod_tcp_rtt_seconds", "Round-trip times, as the kernel had smoothed them at close.", pool.round_trips
    )
    yield _counter("echod_tcp_retransmits", "Segments sent again, counted at close.", pool.retransmits)
    yield _gauge(
        "echod_listeners_missing", "Addresses to listen on that can't be bound, now.", len(server.listeners.missing)
    )
    yield _counter(
        "echod_accept_paused_seconds",
        "Time without accepting because descriptors or memory had run out, added up over the listeners.",
        server.listeners.paused_seconds,
    )
    yield _histogram("echod_loop_lag_seconds", "How late the event loop's timer was, once a second.", server.lag)
    yield _counter("echod_log_dropped_lines", "Lines that the log's sink did not take in time.", log.dropped)
    yield _gauge("echod_log_held_lines", "Lines that the log's sink has not taken yet.", log.held.lines)
    if server.udp:
        yield from _udp(server.udp)
    yield _gauge(
        "echod_config_reload_success", "Whether the last reload, or the start, went well.", not reloads.last.errors
    )
    yield _gauge(
        "echod_config_reload_timestamp_seconds",
        "When the configuration in force was loaded, in Unix time.",
        clock.unix_time(reloads.last.in_force_since),
    )
    yield from _process()


def _udp(udp: Datagrams) -> Iterator[_Reading]:
    yield _by("result", "echod_udp_datagrams", "Datagrams, by what became of them.", RESULTS, udp.results)
    moved = Counter({"received": udp.bytes_received, "sent": udp.bytes_sent})
    yield _by("direction", "echod_udp_bytes", "Bytes in datagrams, without headers.", moved, moved)
    if udp.kernel_drops is not None:
        text = "Datagrams that the kernel dropped because the queue of their socket was full."
        yield _counter("echod_udp_kernel_drops", text, udp.kernel_drops)


def _counter(name: str, text: str, value: float) -> _Reading:
    return _Reading(CounterMetricFamily, name, text, (value,))


def _gauge(name: str, text: str, value: float) -> _Reading:
    return _Reading(GaugeMetricFamily, name, text, (value,))


def _by_reason(name: str, text: str, reasons: Iterable[str], counts: Counter[str]) -> _Reading:
    return _by("reason", name, text, reasons, counts)


def _by(label: str, name: str, text: str, values: Iterable[str], counts: Counter[str]) -> _Reading:
    # 0 too: a series that begins with 1 shows no increase.
    return _Reading(_labelled, name, text, (label, *((value, counts[value]) for value in values)))


def _labelled(name: str, text: str, label: str, *counts: tuple[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in counts:
        family.add_metric([value], count)
    return family


def _proxy_headers(name: str, text: str, *counts: tuple[str, str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["version", "command"])
    for *labels, count in counts:
        family.add_metric(labels, count)
    return family


def _histogram(name: str, text: str, values: Histogram) -> _Reading:
    bounds = (*map(str, values.bounds), "+Inf")
    buckets = tuple(zip(bounds, values.cumulative(), strict=True))
    return _Reading(HistogramMetricFamily, name, text, (buckets, values.sum))


def _build(name: str, text: str) -> Metric:
    return InfoMetricFamily(name, text, _VERSIONS)


def _process() -> Iterator[_Reading]:
    """Yield the standard metrics of a process, by the names of Prometheus' library, without what the kernel does not tell.

    Not by its collector, which lists all descriptors one by one: 0.5 ms with 1,000 connections, 5 ms with 10,000.
    """
    yield _counter("process_cpu_seconds", "User and system time.", time.process_time())
    if _STAT is not None:
        stat = os.pread(_STAT, 1024, 0).rpartition(b")")[2].split()  # proc(5): from the third field on
        if int(stat[21]):  # emulators say 0
            yield _gauge("process_virtual_memory_bytes", "Virtual memory.", int(stat[20]))
            yield _gauge("process_resident_memory_bytes", "Resident memory.", int(stat[21]) * _PAGE)
        yield _gauge("process_start_time_seconds", "Start, in Unix time.", clock.unix_time(int(stat[19]) / _TICK))
    # Where the kernel does not count them, they have to be listed, which takes one: there may be none left.
    with contextlib.suppress(OSError):
        yield _gauge("process_open_fds", "Open file descriptors.", open_descriptors())
    with contextlib.suppress(OSError):
        yield _gauge("process_max_fds", "Limit of them.", resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def open_descriptors() -> int:
    """Return how many descriptors are open: what Linux 6.2 and newer knows at once, an older one has to list."""
    directory = _PROC / "fd"
    return directory.stat().st_size or len(list(directory.iterdir()))
