"""The soak's clients, books and arithmetic; the soak itself is `make soak`."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import socket
import threading
import xml.etree.ElementTree as ET
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.soak import clients as clients_of_soak
from tests.soak import report
from tests.soak.books import LogBooks, compare
from tests.soak.children import Child, ChildError
from tests.soak.clients import KINDS, Books, Kind
from tests.soak.crowd import Crowd, Echoes, Group
from tests.soak.trend import trend
from tests.support import log_document
from tests.support.harness import LOCAL, reset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from tests.soak.clients import Ends, Outcome

    Serve = Callable[[socket.socket], None]


# What clients notice


def echo(sock: socket.socket) -> None:
    while data := sock.recv(1 << 16):
        sock.sendall(data)


def refuse(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


def cut(sock: socket.socket) -> None:
    sock.sendall(sock.recv(1))


def cut_with_reset(sock: socket.socket) -> None:
    cut(sock)
    reset(sock)


def lie(sock: socket.socket) -> None:
    data = bytearray(sock.recv(1 << 16))
    data[-1] ^= 1
    sock.sendall(data)
    sock.recv(1)


def foresee(sock: socket.socket) -> None:
    """Send what would come next."""
    begin = clients_of_soak._PATTERN.index(sock.recv(1 << 16))
    sock.sendall(clients_of_soak._PATTERN[begin : begin + 1001])
    sock.recv(1)


@contextlib.contextmanager
def serving(serve: Serve) -> Iterator[int]:
    """Serve one client."""

    def run() -> None:
        with contextlib.suppress(ConnectionError), listener.accept()[0] as sock:
            serve(sock)

    with socket.create_server((LOCAL, 0)) as listener:
        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def meet(serve: Serve, ends: Ends, size: int = 1000, *, messages: int = 1) -> Books:
    """Return what a client says of one that serves it so."""
    with serving(serve) as port:
        crowd = Crowd(port, 1, (Kind("kind", 1, None, ends, size, size, messages=messages),))
        more = True
        while crowd.turn(more=more):
            more = False
        return crowd.books


@pytest.mark.parametrize("ends", ["close", "half-close", "reset", "reset unread"])
def test_a_client_that_gets_its_echo_ends_as_it_wants(ends: Ends) -> None:
    books = meet(echo, ends, 200_000)
    outcome: Outcome = "reset" if ends.startswith("reset") else "eof"
    assert books.ended == {("kind", outcome): 1}
    if ends != "reset unread":
        assert books.sent == books.got == {outcome: 200_000}


def test_a_client_sends_one_message_after_the_other() -> None:
    books = meet(echo, "close", messages=20)
    assert books.sent == books.got == {"eof": 20_000}


@pytest.mark.parametrize("ends", ["close", "half-close", "reset", "idle"])
def test_a_client_that_gets_nothing_was_refused(ends: Ends) -> None:
    assert meet(refuse, ends).ended == {("kind", "refused"): 1}


@pytest.mark.parametrize("serve", [cut, cut_with_reset])
@pytest.mark.parametrize("ends", ["close", "half-close", "reset", "idle"])
def test_a_client_that_is_cut_off_before_its_time_says_so(ends: Ends, serve: Serve) -> None:
    books = meet(serve, ends)
    assert books.ended == {("kind", "failed"): 1}
    assert "after 1 of 1000 bytes" in books.failures[0]


@pytest.mark.parametrize(("serve", "says"), [(lie, "is wrong"), (foresee, "more came back")])
def test_a_client_notices_bytes_that_are_not_its_own(serve: Serve, says: str) -> None:
    (failure,) = meet(serve, "idle").failures
    assert says in failure


def test_a_client_that_finds_nobody_says_so() -> None:
    with socket.create_server((LOCAL, 0)) as listener:
        port = listener.getsockname()[1]
    crowd = Crowd(port, 1, (Kind("kind", 1, None, "close", 1, 1),))
    more = True
    while crowd.turn(more=more):
        more = False
    assert "refused" in crowd.books.failures[0]


def test_a_client_that_does_not_read_waits_for_its_end() -> None:
    def stall(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.sendall(sock.recv(1000))
        reset(sock)

    assert meet(stall, "deaf", 1 << 23).ended == {("kind", "write_timeout"): 1}


# When they come


def test_clients_come_as_fast_as_they_leave_or_so_many_in_a_second() -> None:
    fast, slow = Group(KINDS[0], 0.0), Group(Kind("slow", 5, 2, "close", 1, 1), 0.0)
    assert fast.coming(0.0) == KINDS[0].at_once
    fast.open = KINDS[0].at_once - 1
    assert fast.coming(0.0) == 1
    assert [slow.coming(now) for now in (0.0, 0.1, 0.5, 0.6, 1.5)] == [5, 0, 1, 0, 2]
    slow.open = 4
    assert slow.coming(100.0) == 1


def test_a_wave_comes_when_all_of_it_can_come() -> None:
    group = Group(Kind("wave", 10, 5, "close", 1, 1, waves=True), 0.0)
    assert [group.coming(now) for now in (0.0, 1.9, 2.1, 2.2)] == [10, 0, 10, 0]
    group.open = 1
    assert group.coming(9.0) == 0


# The books


def line(event: str, **fields: Any) -> bytes:
    """Return the example of docs/logs.md with these fields."""
    return orjson.dumps(log_document.events()[event].examples[0] | fields)


WHO = {"client": {"address": LOCAL, "port": 1}, "listener": "tcp://127.0.0.1:7"}
REASONS: tuple[Outcome, ...] = ("eof", "reset", "idle_timeout", "write_timeout")


def closed(number: int, reason: str) -> bytes:
    return line(
        "connection.closed",
        connection=number,
        bytes_received=10,
        bytes_sent=10,
        reason=reason,
        in_use=0,
        **WHO,
    )


def log() -> LogBooks:
    books = LogBooks()
    for number, reason in enumerate(REASONS):
        books.take(line("connection.opened", connection=number, in_use=1, **WHO))
        books.take(closed(number, reason))
    books.take(line("connection.rejected", reason="denied", suppressed={"denied": 1}, **WHO))
    books.take(line("daemon.stopped", connections=4, bytes_received=40, aborted=0, uptime=1.0))
    return books


def clients() -> Books:
    books = Books()
    for reason in REASONS:
        books.book("kind", reason, 10, 10)
    books.book("kind", "refused", 1)
    books.book("denied", "refused", 1)
    return books


def metrics() -> dict[Any, float]:
    return {
        ("echod_connections_accepted_total", ()): 4,
        ("echod_connection_duration_seconds_count", ()): 4,
        **{("echod_connections_closed_total", (("reason", reason),)): 1 for reason in REASONS},
        ("echod_connections_closed_total", (("reason", "error"),)): 0,
        ("echod_connections_rejected_total", (("reason", "denied"),)): 1,
        ("echod_connections_rejected_total", (("reason", "pool_full"),)): 1,
        ("echod_received_bytes_total", ()): 40,
        ("echod_sent_bytes_total", ()): 40,
        ("echod_log_dropped_lines_total", ()): 0,
    }


def problems(clients: Books, log: LogBooks, metrics: dict[Any, float], reloads: tuple[int, int] = (0, 0)) -> str:
    return "\n".join(check.found for check in compare(clients, log, metrics, reloads) if not check.kept)


def test_books_that_agree_have_no_problem() -> None:
    assert problems(clients(), log(), metrics()) == ""


def test_who_cannot_know_may_be_either() -> None:
    """Reset at once: the daemon had it for a connection, or refused it."""
    some = clients()
    del some.ended["kind", "reset"]
    some.book("kind", "unknown", 10, 0)
    assert problems(some, log(), metrics()) == ""


@pytest.mark.parametrize("series", metrics())
def test_each_series_that_is_one_more_is_noticed(series: Any) -> None:
    changed = metrics()
    changed[series] += 1
    assert problems(clients(), log(), changed)


@pytest.mark.parametrize("entry", clients().ended)
def test_each_client_too_many_is_noticed(entry: tuple[str, Outcome]) -> None:
    some = clients()
    some.ended[entry] += 1
    assert problems(some, log(), metrics())


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize(("book", "by"), [("sent", -1), ("got", 1)])
def test_each_byte_that_was_never_sent_is_noticed(reason: Outcome, book: str, by: int) -> None:
    some = clients()
    getattr(some, book)[reason] += by
    assert problems(some, log(), metrics())


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"{", "JSON"),
        (closed(0, "eof"), "KeyError"),
        (line("connection.opened", connection=9, in_use=1, **WHO), "never closed"),
        (line("connection.rejected", reason="denied", **WHO), "rejected"),
        (line("internal.error", message="it fell over"), "it fell over"),
        (line("config.reloaded", changed=[], old={}, new={}, seconds=0.1), "reloads"),
        (line("daemon.stopped", connections=4, bytes_received=40, aborted=1, uptime=1.0), "1 connections cut"),
    ],
)
def test_each_line_that_is_one_too_many_is_noticed(raw: bytes, says: str) -> None:
    books = log()
    books.take(raw)
    assert says in problems(clients(), books, metrics())


# Memory


def steps(*levels: float) -> list[tuple[float, float]]:
    some = random.Random(3)
    return [(float(at), level + some.gauss(0, 10)) for at, level in enumerate(levels)]


def test_a_slope_lies_within_its_interval() -> None:
    flat, rising = trend(steps(*[1000.0] * 300)), trend(steps(*[1000.0 + 0.5 * at for at in range(300)]))
    assert flat.is_none
    assert rising.low < 0.5 < rising.high
    assert rising.low > 0.45


def test_the_interval_is_not_fooled_by_values_that_stay_for_long() -> None:
    """A level that changes at random every 30 s has no trend, but 300 points of it seem to."""
    some = random.Random(5)
    found = [trend(steps(*[level for _ in range(10) for level in [some.gauss(0, 100)] * 30])) for _ in range(200)]
    assert 180 <= sum(each.is_none for each in found) <= 198


def run(leak: float, noise: float = 0.0) -> report.Run:
    some = random.Random(1)
    served = [at * 3000 for at in range(120)]
    return report.Run(
        about=["a title"],
        samples=[
            report.Sample(float(at), int(50e6 + leak * each + some.gauss(0, noise)), 20, 100, each)
            for at, each in enumerate(served)
        ],
        echoes=[Echoes(float(at), 0.0002, 0.002, 0.02) for at in range(120)],
    )


@pytest.mark.parametrize(("leak", "noise", "kept"), [(0, 0, True), (0, 1e6, True), (16, 5e5, False), (16, 0, False)])
def test_sixteen_bytes_per_connection_are_a_leak(leak: float, noise: float, kept: bool) -> None:  # noqa: FBT001
    assert report.growth(run(leak, noise).last_half).kept == kept


def test_of_a_short_run_nothing_is_said() -> None:
    assert "too short" in report.growth(run(0).samples[:5]).found


# The rest


def test_the_drawing_is_xml_with_a_curve_for_each_series() -> None:
    drawn = ET.fromstring(report.drawing(run(1)))  # noqa: S314 - our own
    curves = [each for each in drawn.iter() if each.tag.endswith("polyline")]
    assert len(curves) == 2 + 3 + 1 + 1
    assert all(len(each.attrib["points"].split()) in (2, 119, 120) for each in curves)


def test_a_run_that_broke_at_once_is_drawn_too() -> None:
    one = run(0)
    del one.samples[1:]
    one.echoes.clear()
    assert "polyline" in report.drawing(one)


def test_the_text_says_what_was_broken() -> None:
    one = dataclasses.replace(run(0), checks=compare(clients(), log(), metrics(), (1, 0)), clients=deepcopy(clients()))
    text = report.text(one)
    assert "FAIL  books: log" in text
    assert "ok    books: bytes" in text
    assert report.as_json(one)["clients"][0] == {"kind": "kind", "ended": "eof", "count": 1}


def say(pipe: Connection, word: str) -> str:
    pipe.send(word)
    pipe.recv()
    return f"{word}!"


def leave(_: Connection) -> None:
    raise SystemExit(0)


def fall(_: Connection) -> None:
    raise ValueError("over")


def test_a_child_says_and_returns_something() -> None:
    child = Child("child", say, "hello")
    while not (news := child.news()):
        pass
    child.end()
    assert (news, child.result()) == (["hello"], "hello!")


def test_a_child_that_dies_is_noticed() -> None:
    with pytest.raises(ChildError, match="child has died"):
        Child("child", leave).result()


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(ChildError, match=r"child: ValueError\('over'\)"):
        Child("child", fall).result()
