"""One answer made from those of several instances."""

from __future__ import annotations

from typing import Any

from echod.client.totals import total
from tests.support.canned_daemon import status


def listener(url: str = "tcp://[::]:7", **changes: Any) -> dict[str, Any]:
    return {"listener": url, "state": "accepting", "backlog": 100, "queued": 1, **changes}


def rejection(age: float) -> dict[str, Any]:
    return {"age": age, "client": {"address": "192.0.2.1", "port": 9}, "reason": "denied"}


def test_counts_sizes_and_rates_are_added() -> None:
    """A reason that only one has counts as well: another version may know it."""
    one = status(
        pool={"size": 10, "in_use": 3, "when_full": "wait"},
        connections={"accepted": 5, "closed": {"eof": 2}, "rejected": {"denied": 1}},
        bytes_received=7,
        rates={"interval": 1.0, "accepted": 0.125, "rejected": 0.0, "bytes_received": 1.0, "bytes_sent": 1.0},
    )
    two = status(
        pool={"size": 20, "in_use": 4, "when_full": "wait"},
        connections={"accepted": 6, "closed": {"eof": 1, "new": 4}, "rejected": {"denied": 0}},
        bytes_received=8,
        rates={"interval": 1.1, "accepted": 2.0, "rejected": 1.0, "bytes_received": 0.0, "bytes_sent": 1.0},
    )
    found = total([one, two])
    assert found["pool"] == {"size": 30, "in_use": 7}
    assert found["connections"] == {"accepted": 11, "closed": {"eof": 3, "new": 4}, "rejected": {"denied": 1}}
    assert (found["bytes_received"], found["bytes_sent"]) == (15, 2 * 999)
    assert found["rates"] == {"accepted": 2.125, "rejected": 1.0, "bytes_received": 1.0, "bytes_sent": 2.0}


def test_what_udp_has_done_is_added() -> None:
    """By those that serve it; what one does not know is unknown."""
    parts = [
        {"datagrams": {"echoed": number}, "bytes_received": 10, "bytes_sent": number, "kernel_drops": drops}
        for number, drops in ((1, 5), (2, 7), (4, None))
    ]
    one, two, three = (status(udp=part) for part in parts)
    assert total([status(), status()])["udp"] is None
    expected = {"datagrams": {"echoed": 3}, "bytes_received": 20, "bytes_sent": 3, "kernel_drops": 12}
    assert total([status(), one, two])["udp"] == expected
    assert total([one, three])["udp"]["kernel_drops"] is None


def test_a_listener_of_all_is_one() -> None:
    """With what waits at all its sockets, and the state that matters most."""
    one = status(listeners=[listener(), listener("tcp://[::]:8")])
    two = status(listeners=[listener(state="waiting", queued=5)])
    three = status(listeners=[listener(state="retired")])
    assert total([one, two, three])["listeners"] == [
        listener(state="waiting", backlog=300, queued=7),
        listener("tcp://[::]:8"),
    ]


def test_of_a_listener_what_one_does_not_know_is_unknown() -> None:
    """So is a state that this version does not know, which is shown."""
    one, two = status(listeners=[listener()]), status(listeners=[listener(queued=None, backlog=None, state="new")])
    for answers in ([one, two], [two, one]):
        assert total(answers)["listeners"] == [listener(queued=None, backlog=None, state="new")]


def test_an_address_that_is_missing_is_listed_once() -> None:
    """Though each instance misses it."""
    missing = [{"listener": f"tcp://192.0.2.{number}:7", "reason": "not here"} for number in (1, 2)]
    assert total([status(missing=missing), status(missing=missing[:1])])["missing"] == missing


def test_the_largest_sources_of_all_are_listed() -> None:
    """Ten of them, each once."""
    many = [{"source": f"192.0.2.{number}", "connections": number} for number in range(1, 11)]
    found = total([status(sources=many), status(sources=[{"source": "192.0.2.1", "connections": 100}])])["sources"]
    assert [(each["source"], each["connections"]) for each in found[:2]] == [("192.0.2.1", 101), ("192.0.2.10", 10)]
    more = total([status(sources=many), status(sources=[{"source": "::1", "connections": 2}])])["sources"]
    assert len(more) == 10
    assert "192.0.2.1" not in {each["source"] for each in more}


def test_the_newest_rejections_of_all_are_listed() -> None:
    """Twenty of them."""
    one = status(rejections=[rejection(age) for age in range(0, 30, 2)])
    two = status(rejections=[rejection(age) for age in range(1, 31, 2)])
    assert [each["age"] for each in total([one, two])["rejections"]] == list(range(20))


def test_what_has_no_sum_is_left_out() -> None:
    """No process id, no state."""
    assert not {"pid", "state", "uptime", "loop_lag"} & total([status()]).keys()
