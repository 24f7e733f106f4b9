"""What several instances do together: one answer to `GET /status` made from that of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SOURCES = 10
"""Sources in a total, those with the most connections, as in the answer of one daemon."""
REJECTIONS = 20
"""Rejected clients in a total, the newest first, as in the answer of one daemon."""
_ADDED = ("connections", "bytes_received", "bytes_sent", "rates")
_STATES = ("missing", "paused", "waiting", "retired", "accepting", "answering")
"""The states of a listener. Of several sockets with one address, the first of these is shown."""


def total(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums of these answers to `GET /status`, under the same names.

    A field that has no meaning for several processes, such as `pid`, is left out.
    """
    pools = [answer["pool"] for answer in answers]
    return {
        "pool": {name: sum(pool[name] for pool in pools) for name in ("size", "in_use")},
        **{name: _sum([answer[name] for answer in answers]) for name in _ADDED},
        "udp": _udp([answer["udp"] for answer in answers if answer["udp"]]),
        "listeners": _listeners(each for answer in answers for each in answer["listeners"]),
        "missing": _missing(each for answer in answers for each in answer["missing"]),
        "sources": _sources(each for answer in answers for each in answer["sources"]),
        "rejections": _newest(each for answer in answers for each in answer["rejections"]),
    }


def _sum(values: Sequence[Any]) -> Any:  # noqa: ANN401 - a number, or an object of numbers
    """Return the sum of numbers, or the sums of those that objects have under the same name."""
    if not isinstance(values[0], dict):
        return round(sum(values), 3)
    names = dict.fromkeys(name for value in values for name in value if name != "interval")
    return {name: _sum([value[name] for value in values if name in value]) for name in names}


def _udp(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the sums of those that serve UDP; `None` if none does."""
    drops = [part["kernel_drops"] for part in parts]
    added = [{name: value for name, value in part.items() if name != "kernel_drops"} for part in parts]
    return {**_sum(added), "kernel_drops": None if None in drops else sum(drops)} if parts else None


def _listeners(listeners: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each address once: with `listen.reuse_port`, each instance has a socket of its own for it."""
    found: dict[str, dict[str, Any]] = {}
    for each in listeners:
        known = found.setdefault(each["listener"], {**each, "backlog": 0, "queued": 0})
        known["state"] = min(known["state"], each["state"], key=_urgency)
        for name in ("backlog", "queued"):
            known[name] = None if None in (known[name], each[name]) else known[name] + each[name]
    return list(found.values())


def _missing(missing: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return each address once: instances usually miss the same ones."""
    return list({each["listener"]: each for each in missing}.values())


def _urgency(state: str) -> int:
    return _STATES.index(state) if state in _STATES else -1  # one that this version does not know is shown


def _sources(sources: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the sources with the most connections. One that is not among the first of an instance is not counted there."""
    counts: dict[str, int] = {}
    for each in sources:
        counts[each["source"]] = counts.get(each["source"], 0) + each["connections"]
    largest = sorted(counts.items(), key=lambda source: -source[1])
    return [{"source": source, "connections": count} for source, count in largest[:SOURCES]]


def _newest(rejections: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rejections, key=lambda each: each["age"])[:REJECTIONS]
