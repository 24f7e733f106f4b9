"""The report of `bench` as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from echod.client.figures import QUANTILES
from echod.screen import size
from echod.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from echod.client.figures import Distribution

    Fields = Mapping[str, Any]

_BAR = 40
"""Characters of the longest bar."""


def report(fields: Fields) -> str:
    """Return the lines. One that needs attention begins with an exclamation mark."""
    return "".join(f"{printable(text)}\n" for text in _report(fields))


def progress(echoes: int, seconds: float, latency: Distribution) -> str:
    """Return how it goes."""
    return f"{seconds:.0f} s, {echoes:,} echoes, p50 {_ms(latency.quantile(0.5))}, p99 {_ms(latency.quantile(0.99))}"


def _report(fields: Fields) -> Iterator[str]:
    rate = f"{fields['rate']:,g} messages a second" if fields["rate"] else "as fast as it goes"
    number = fields["connections"]
    connections = "1 connection" if number == 1 else f"{number:,} connections"
    yield f"{fields['target']}: {connections}, {fields['size']:,} bytes, {rate}"
    per_second = f"{fields['messages_per_second']:,.1f} a second, {size(fields['bytes_per_second'])}/s each way"
    yield f"{fields['messages']:,} messages came back in {fields['duration']:.1f} s: {per_second}"
    if fields["messages"]:
        yield from _latency(fields)
    if fields["lost"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in fields["errors"].items())
        yield f"! {fields['lost']:,} lost: {reasons}"
    if fields["late"]:
        yield f"! {fields['late']:,} of the lost came back too late"
    if fields["duplicates"]:
        yield f"! {fields['duplicates']:,} came back twice"
    if fields["wrong"]:
        yield f"! {fields['wrong']:,} wrong, the first one: {fields['first_wrong']}"
    yield from _client(fields)


def _latency(fields: Fields) -> Iterator[str]:
    since = (
        "the moment at which each was due" if fields["rate"] else "its sending (closed loop: not what users wait for)"
    )
    yield f"latency from {since}:"
    for name in ("min", *QUANTILES, "max"):
        yield f"{name:>10} {_ms(fields['latency'][name]):>14}"
    rows = fields["histogram"]
    most = max(row["messages"] for row in rows)
    yield f"{'up to':>10} {'messages':>14}"
    for row in rows:
        bar = "#" * round(_BAR * row["messages"] / most)
        yield f"{row['up_to'] * 1e3:>7.6g} ms {row['messages']:>14,} {bar}".rstrip()


def _client(fields: Fields) -> Iterator[str]:
    client = fields["client"]
    if not fields["rate"]:
        return
    lateness = client["lateness"]
    if lateness["count"]:
        figures = ", ".join(f"{name} {_ms(lateness[name])}" for name in ("p50", "p99", "max"))
        yield f"this client sent its messages late by {figures}"
    if not client["kept_schedule"]:
        unsent = f", and did not send {client['unsent']:,} messages" if client["unsent"] else ""
        yield f"! this client could not keep its own schedule{unsent}: the latencies are partly its own"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.3f} ms"
