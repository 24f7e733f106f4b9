"""The screen and the table for people, by what the daemon answers."""

from __future__ import annotations

from typing import Any

import pytest

from echod import screen
from echod.client.totals import total
from tests.support.canned_daemon import row, status


def lines(**changes: Any) -> list[str]:
    return screen.status(status(**changes)).splitlines()


def about(name: str, **changes: Any) -> list[str]:
    """Return the line with this name, and the lines without a name below it."""
    found = lines(**changes)
    begin = next(number for number, line in enumerate(found) if line[2:].startswith(f"{name} "))
    end = begin + 1
    while end < len(found) and found[end][2:13].isspace():
        end += 1
    return found[begin:end]


def test_the_screen_of_a_healthy_daemon() -> None:
    """In full."""
    assert screen.status(status()) == (
        "  echod      0.1.0, running, pid 4711, up 1d 1h\n"
        "  config     /etc/echod/echod.toml, loaded 2m 5s ago\n"
        "  pool       [########......................] 250 of 1,000 in use, 25 %\n"
        "  when full  the next client is closed at once\n"
        "  listeners  tcp://[::]:7007 accepting, 2 of 1,024 in the backlog\n"
        "  rates      12/s accepted, 0/s rejected, 2.0 MB/s received, 2.0 kB/s sent\n"
        "  bytes      1.5 MB received, 999 B sent\n"
        "  accepted   12,345\n"
        "  closed     12,095: 12,000 eof, 95 error\n"
        "  rejected   0\n"
        "  sources    192.0.2.1 200, 2001:db8::/64 50\n"
        "  rtt        of closed connections p50 200 µs, p99 20.0 ms, max 310.0 ms; 1,234 segments sent again\n"
        "  loop lag   400 µs now; since the start p99 2.0 ms, max 250.0 ms\n"
        "  log        no lines dropped\n"
    )


def test_before_a_round_trip_is_measured_there_is_none() -> None:
    """And where the kernel does not tell."""
    tcp = {"rtt": dict.fromkeys(("p50", "p99", "max")), "retrans": 0}
    assert about("rtt", tcp=tcp) == ["  rtt        not measured yet"]


@pytest.mark.parametrize(
    ("remaining", "end"), [(None, "`echod lame-duck --off` takes it back"), (7.9, "the drain begins in 7s")]
)
def test_a_lame_duck_has_a_line(remaining: float | None, end: str) -> None:
    """Below the first, which needs attention too."""
    first, second, *_ = lines(state="lame duck", lame_duck={"age": 65.0, "remaining": remaining})
    assert first == "! echod      0.1.0, lame duck, pid 4711, up 1d 1h"
    assert second == f"! lame duck  accepting, but not ready for 1m 5s; {end}"


@pytest.mark.parametrize(("state", "mark"), [("running", " "), ("starting", "!"), ("draining", "!")])
def test_a_state_other_than_running_needs_attention(state: str, mark: str) -> None:
    """On the first line."""
    assert lines(state=state)[0].startswith(f"{mark} echod      0.1.0, {state},")


def test_without_a_file_the_configuration_is_the_defaults() -> None:
    """Instead of a path."""
    assert about("config", config=None) == ["  config     defaults, loaded 2m 5s ago"]


def test_a_refused_reload_needs_attention() -> None:
    """With each problem, escaped for the terminal."""
    last = {**status()["reload"], "success": False, "errors": ["f:1: wrong", "f:2: \x1b[31m"]}
    assert about("config", reload=last) == [
        "! config     /etc/echod/echod.toml, a reload was refused 2m 5s ago:",
        "!            f:1: wrong",
        "!            f:2: \\u001b[31m",
    ]


def test_warnings_of_a_reload_need_attention() -> None:
    """It succeeded, and says what is probably a mistake."""
    assert about("config", reload={**status()["reload"], "warnings": ["f:1: \x1b"]}) == [
        "  config     /etc/echod/echod.toml, loaded 2m 5s ago",
        "!            warning: f:1: \\u001b",
    ]


@pytest.mark.parametrize(
    ("in_use", "bar", "text", "mark"),
    [
        (0, 0, "0 of 1,000 in use, 0 %", " "),
        (899, 27, "899 of 1,000 in use, 90 %", " "),
        (900, 27, "900 of 1,000 in use, 90 %", "!"),
        (1000, 30, "1,000 of 1,000 in use, 100 %", "!"),
        (2500, 30, "2,500 of 1,000 in use, 250 %", "!"),
    ],
    ids=["empty", "not yet", "nearly full", "full", "more than full, by a reload that made it smaller"],
)
def test_the_pool_is_shown_as_a_bar(in_use: int, bar: int, text: str, mark: str) -> None:
    """Never longer than its frame; if nearly full, it needs attention."""
    pool = {"size": 1000, "in_use": in_use, "when_full": "wait"}
    assert about("pool", pool=pool) == [f"{mark} pool       [{'#' * bar}{'.' * (30 - bar)}] {text}"]
    assert about("when full", pool=pool) == ["  when full  the next client waits in the backlog"]


def test_each_listener_has_a_line() -> None:
    """One that is paused or missing needs attention, and so does a daemon without listeners."""
    listeners = [
        {"listener": f"tcp://127.0.0.{number}:7", "state": state, "backlog": 8, "queued": 0}
        for number, state in ((1, "accepting"), (2, "paused"), (3, "retired"), (4, "waiting"), (5, "missing"))
    ]
    assert about("listeners", listeners=listeners) == [
        "  listeners  tcp://127.0.0.1:7 accepting, 0 of 8 in the backlog",
        "!            tcp://127.0.0.2:7 paused, 0 of 8 in the backlog",
        "             tcp://127.0.0.3:7 retired, 0 of 8 in the backlog",
        "             tcp://127.0.0.4:7 waiting, 0 of 8 in the backlog",
        "!            tcp://127.0.0.5:7 missing, 0 of 8 in the backlog",
    ]
    assert about("listeners", listeners=[]) == ["! listeners  none"]
    udp = {"listener": "udp://[::]:7", "state": "answering", "backlog": None, "queued": None}
    assert about("listeners", listeners=[udp]) == ["  listeners  udp://[::]:7 answering"]


def test_udp_has_a_line_if_it_is_served() -> None:
    """What the kernel has dropped needs attention."""
    datagrams = {"echoed": 12000, "denied": 0, "rate": 5}
    udp = {"datagrams": datagrams, "bytes_received": 768000, "bytes_sent": 767000, "kernel_drops": 0}
    assert not [line for line in lines(udp=None) if "udp" in line]
    line = "  udp        12,005: 12,000 echoed, 5 rate; 768.0 kB received, 767.0 kB sent"
    assert about("udp", udp=udp) == about("udp", udp=udp | {"kernel_drops": None}) == [line]
    lost = "!            1,234 datagrams found the queue of their socket full"
    assert about("udp", udp=udp | {"kernel_drops": 1234}) == [line, lost]


def test_a_missing_address_needs_attention() -> None:
    """Below the listeners that there are, if there are any. One that was lost is shown once."""
    missing = [{"listener": f"tcp://192.0.2.{number}:7", "reason": "can't listen: why"} for number in (1, 2)]
    listeners = status()["listeners"]
    assert about("listeners", missing=missing, listeners=listeners) == [
        "  listeners  tcp://[::]:7007 accepting, 2 of 1,024 in the backlog",
        "!            tcp://192.0.2.1:7 missing: can't listen: why",
        "!            tcp://192.0.2.2:7 missing: can't listen: why",
    ]
    lost = {"listener": "tcp://192.0.2.1:7", "state": "missing", "backlog": 8, "queued": 0}
    for there in ([], [lost]):
        assert about("listeners", missing=missing[:1], listeners=there) == [
            "! listeners  tcp://192.0.2.1:7 missing: can't listen: why",
        ]
    retired = lost | {"state": "retired"}
    assert about("listeners", missing=missing[:1], listeners=[retired]) == [
        "  listeners  tcp://192.0.2.1:7 retired, 0 of 8 in the backlog",
        "!            tcp://192.0.2.1:7 missing: can't listen: why",
    ]


def test_what_the_kernel_does_not_tell_is_a_question_mark() -> None:
    """As in a sandbox; everything else is shown."""
    listeners = [{"listener": "tcp://[::]:7007", "state": "accepting", "backlog": None, "queued": None}]
    assert about("listeners", listeners=listeners) == ["  listeners  tcp://[::]:7007 accepting, ? of ? in the backlog"]
    (_, cells) = screen.connections([row(pending=None, tcp=None)]).splitlines()
    assert cells.split() == ["1", "192.0.2.1:40000", "1m", "1s", "0s", "1.5", "kB", "?", "open", "?", "?"]


def test_the_last_rejected_clients_are_shown() -> None:
    """Below the totals by reason, up to a few."""
    rejections = [
        {
            "age": age,
            "client": {"address": address, "port": 9},
            "listener": "tcp://[::]:7007",
            "reason": "denied",
        }
        for age, address in [(1.2, "2001:db8::1"), *((5.0, "192.0.2.1"),) * 9]
    ]
    counts = {**status()["connections"], "rejected": {"denied": 1000, "pool_full": 0}}
    first, second, *rest = about("rejected", connections=counts, rejections=rejections)
    assert first == "  rejected   1,000: 1,000 denied"
    assert second == "             [2001:db8::1]:9 denied, 1s ago"
    assert rest == ["             192.0.2.1:9 denied, 5s ago"] * 4


def test_without_connections_the_sources_are_none() -> None:
    """As a word."""
    assert about("sources", sources=[]) == ["  sources    none"]


def test_losses_need_attention() -> None:
    """Time without accepting."""
    assert about("paused", accept_paused_seconds=0.1) == [
        "! paused     100.0 ms without accepting, for lack of descriptors or memory"
    ]


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ({"dropped": 1234}, "! log        1,234 lines dropped"),
        ({"held": 37, "held_since": 0.9}, "  log        no lines dropped"),
        (
            {"held": 1234, "held_since": 1.0},
            "! log        no lines dropped, 1,234 held for 1s: standard output takes nothing",
        ),
        (
            {"dropped": 5, "held": 37, "held_since": 75.5, "error": "EPIPE"},
            "! log        5 lines dropped, 37 held for 1m 15s: EPIPE",
        ),
        ({"held": 1, "held_since": 0.2, "error": "ENOSPC"}, "! log        no lines dropped, 1 held for 0s: ENOSPC"),
        (
            {"error": "ENOENT"},
            "! log        no lines dropped; its file was moved or removed, and can't be opened again: ENOENT",
        ),
    ],
)
def test_lines_of_the_log_that_do_not_arrive_need_attention(log: dict[str, Any], line: str) -> None:
    """How many, for how long, and why. Lines that are held for less than a second are on their way."""
    nothing = {"dropped": 0, "held": 0, "held_since": None, "error": None}
    assert about("log", log=nothing | log) == [line]


def test_connections_are_a_table() -> None:
    """Numbers are aligned to the right."""
    rows = [
        row(),
        row(
            connection=12345,
            client={"address": "2001:db8::1", "port": 9},
            age=5.0,
            idle=3.4,
            bytes_received=2_000_000,
            pending=65536,
            state="stalled",
            tcp=None,
        ),
        row(connection=3, client={"uid": 1000, "pid": 4711}, tcp=None),
        row(connection=4, client={"uid": None, "pid": None}, tcp=None),
    ]
    assert screen.connections(rows) == (
        "   ID  CLIENT               AGE  IDLE   BYTES  PENDING  STATE       RTT  RETRANS\n"
        "    1  192.0.2.1:40000    1m 1s    0s  1.5 kB      0 B  open     250 µs        0\n"
        "12345  [2001:db8::1]:9       5s    3s  2.0 MB  65.5 kB  stalled       ?        ?\n"
        "    3  uid:1000,pid:4711  1m 1s    0s  1.5 kB      0 B  open          ?        ?\n"
        "    4  uid:?,pid:?        1m 1s    0s  1.5 kB      0 B  open          ?        ?\n"
    )


def test_without_connections_the_table_has_only_its_head() -> None:
    """It shows the columns."""
    assert screen.connections([]) == "ID  CLIENT  AGE  IDLE  BYTES  PENDING  STATE  RTT  RETRANS\n"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (1_500_000, "1.5 MB"),
        (2e9, "2.0 GB"),
        (3e12, "3.0 TB"),
        (4e15, "4.0 PB"),
        (5e18, "5,000.0 PB"),
    ],
)
def test_bytes_have_a_unit(number: float, text: str) -> None:
    """The largest that gives at least 1."""
    assert screen.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m 0s"),
        (3599.9, "59m 59s"),
        (3600, "1h 0m"),
        (86399, "23h 59m"),
        (86400, "1d 0h"),
        (90061.5, "1d 1h"),
        (1e8, "1157d 9h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    """That is precise enough for people."""
    assert screen.span(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 µs"), (0.0000004, "0 µs"), (0.00025, "250 µs"), (0.001, "1.0 ms"), (0.25, "250.0 ms"), (2.5, "2.5 s")],
)
def test_a_short_duration_has_a_small_unit(seconds: float, text: str) -> None:
    """Such as a round-trip time."""
    assert screen.fine(seconds) == text


# Several instances


def test_the_screen_of_instances_has_totals_and_a_row_each() -> None:
    """The lines of each that need attention follow."""
    one, two = status(pid=1), status(pid=22, pool={"size": 20, "in_use": 19, "when_full": "wait"}, state="draining")
    answers = {"1": one, "blue": two}
    assert screen.instances(answers, total([one, two]), 0) == (
        "  instances  2\n"
        "  pool       [########......................] 269 of 1,020 in use, 26 %\n"
        "  listeners  tcp://[::]:7007 accepting, 4 of 2,048 in the backlog\n"
        "  rates      24/s accepted, 0/s rejected, 4.0 MB/s received, 4.0 kB/s sent\n"
        "  bytes      3.0 MB received, 2.0 kB sent\n"
        "  accepted   24,690\n"
        "  closed     24,190: 24,000 eof, 190 error\n"
        "  rejected   0\n"
        "  sources    192.0.2.1 400, 2001:db8::/64 100\n"
        "\n"
        "  INSTANCE  STATE     PID     UP  IN USE   SIZE  ACCEPTED/S  REJECTED/S  RECEIVED/S  SENT/S  LOOP LAG\n"
        "  1         running     1  1d 1h     250  1,000          12           0      2.0 MB  2.0 kB    400 µs\n"
        "  blue      draining   22  1d 1h      19     20          12           0      2.0 MB  2.0 kB    400 µs\n"
        "! blue       echod      0.1.0, draining, pid 22, up 1d 1h\n"
        "! blue       pool       [############################..] 19 of 20 in use, 95 %\n"
    )


def test_the_screen_of_instances_says_how_many_do_not_answer() -> None:
    """Its first line needs attention then."""
    assert screen.instances({"1": status()}, total([status()]), 2).startswith("! instances  1 of 3 answer\n")


def test_a_brief_screen_has_the_first_lines_and_those_that_need_attention() -> None:
    """Where rows of connections need the room."""
    text = screen.brief(status(log={"dropped": 5, "held": 0, "held_since": None, "error": None}))
    assert [line[:13].rstrip() for line in text.splitlines()] == ["  echod", "  pool", "  rates", "  rejected", "! log"]
    text = screen.brief_instances({"1": status(listeners=[])}, total([status(listeners=[])]), 0)
    names = [line[:13].rstrip() for line in text.splitlines()]
    expected = [
        "  instances",
        "  pool",
        "! listeners",
        "  rates",
        "  rejected",
        "",
        "  INSTANCE  S",
        "  1         r",
        "! 1",
    ]
    assert names == expected


def test_the_table_of_several_instances_names_them() -> None:
    """And the ids are those that `kill` takes."""
    rows = [row(instance="1", connection=7), row(instance="blue", connection=12)]
    head, first, second = screen.connections(rows, several=True).splitlines()
    assert head.split()[:3] == ["INSTANCE", "ID", "CLIENT"]
    assert first.split()[:2] == ["1", "1/7"]
    assert second.split()[:2] == ["blue", "blue/12"]
    assert screen.connections([], several=True).split()[0] == "INSTANCE"


@pytest.mark.parametrize(
    ("valid_in", "expires_in", "line"),
    [
        (0.0, 30 * 86400.0, "  tls        CN=e, expires in 30d 0h (2027-01-01T00:00:00Z)"),
        (0.0, 86400.0, "! tls        CN=e, expires in 1d 0h (2027-01-01T00:00:00Z)"),
        (0.0, -1.0, "! tls        CN=e, expired (2027-01-01T00:00:00Z)"),
        (3600.0, 30 * 86400.0, "! tls        CN=e, not valid for another 1h 0m (2026-01-01T00:00:00Z)"),
    ],
)
def test_a_certificate_that_clients_refuse_or_soon_will_needs_attention(
    valid_in: float, expires_in: float, line: str
) -> None:
    tls = {
        "certificate": "/etc/echod/tls.pem",
        "subject": "CN=e",
        "not_before": "2026-01-01T00:00:00Z",
        "not_after": "2027-01-01T00:00:00Z",
        "valid_in": valid_in,
        "expires_in": expires_in,
    }
    assert about("tls", tls=tls) == [line]
    # With an empty subject, as some authorities leave it, the file says which certificate it is.
    assert about("tls", tls={**tls, "subject": ""}) == [line.replace("CN=e", "/etc/echod/tls.pem")]
