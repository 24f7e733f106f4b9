"""The text of `ping`, made of the fields that `--json` has."""

from __future__ import annotations

from typing import Any

import pytest

from echod.client import ping_lines
from echod.client.tally import Tally

SERVER = {"server": {"address": "::1", "port": 7}, "seq": 3, "size": 56}


@pytest.mark.parametrize(
    ("event", "fields", "line"),
    [
        ("echo", {"time": 0.0012}, "56 bytes from [::1]:7: seq=3 time=1.200 ms"),
        (
            "echo",
            {"time": 0.0012, "tcp": {"rtt": 0.0007}, "retrans": 2},
            "56 bytes from [::1]:7: seq=3 time=1.200 ms rtt=0.700 ms retrans=2",
        ),
        ("lost", {"error": "connection refused"}, "no echo from [::1]:7: seq=3 connection refused"),
        ("wrong", {"error": "1 byte missing\n"}, "wrong echo from [::1]:7: seq=3 1 byte missing\\u000a"),
        ("late", {"time": 3.1}, "late echo from [::1]:7: seq=3 time=3100.000 ms"),
        ("duplicate", {"time": 0.1}, "second echo from [::1]:7: seq=3 time=100.000 ms"),
        (
            "disconnected",
            {"age": 300.04, "error": "the server closed the connection"},
            "connection to [::1]:7 has ended after 300.0 s: the server closed the connection",
        ),
    ],
)
def test_each_event_is_a_line(event: str, fields: dict[str, Any], line: str) -> None:
    """Of printable characters."""
    assert ping_lines.line(f"ping.{event}", SERVER | fields) == f"{line}\n"


def summary(tally: Tally) -> list[str]:
    extra = {"state": "OK", "limit": None, "target": "tcp://h:7", "duration": 1.0, "warn": None, "crit": None}
    return ping_lines.summary(tally.fields() | extra).splitlines()


def test_what_is_unusual_has_a_line_in_the_summary() -> None:
    """And else has none."""
    tally = Tally()
    tally.sent = tally.wrong = 1
    tally.first_wrong, tally.first_lost = "1 byte missing at offset 3", "given up before it was wrong"
    tally.late, tally.duplicates, tally.reordered, tally.ended = 2, 3, 4, 5
    assert summary(tally) == [
        "OK - 0 of 1 echoed, 0 % lost, 1 wrong: 1 byte missing at offset 3 | loss=0%;;;0;100 wrong=1;;;0",
        "1 sent, 0 echoed, 0 lost, 1 wrong, in 1.0 s to tcp://h:7",
        "2 of the lost came back too late",
        "3 came back twice",
        "4 came back after a later one",
        "connections that the server or the network has ended: 5",
    ]


def test_the_jitter_is_that_of_rfc_3550() -> None:
    """A sixteenth of each change of the round trip, smoothed (6.4.1)."""
    tally = Tally()
    for seconds in (0.010, 0.026, 0.010):
        tally.took(seconds)
    assert tally.jitter == pytest.approx(0.001 + 0.015 / 16)
