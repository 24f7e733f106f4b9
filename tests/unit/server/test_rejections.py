"""The lines about refused connections, on a clock that goes only when told to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from echod import clock
from echod.server import rejections
from echod.server.endpoint import Peer
from echod.server.rejections import Rejections
from tests.support.rig import LISTENER

if TYPE_CHECKING:
    from tests.support.rig import Rig

CLIENT = Peer("192.0.2.9", 1)


def refuse(rig: Rig, number: int, reason: str = "pool_full") -> None:
    for _ in range(number):
        rig.rejections.log(CLIENT, LISTENER, reason)


def suppressed(rig: Rig) -> list[dict[str, int]]:
    """Return what each line says of those before it that have no line."""
    return [line.get("suppressed", {}) for line in rig.lines.events("connection.rejected")]


NONE: list[dict[str, int]] = [{}]


def test_at_most_ten_refusals_a_second_are_logged(rig: Rig) -> None:
    """This holds for any second. Each refusal has a line or is counted in one, also if no further one comes."""
    refuse(rig, 9)
    rig.loop.advance(0.5)
    refuse(rig, 16)
    rig.loop.advance(0.5)
    assert suppressed(rig) == NONE * 10
    rig.loop.advance(0.1)
    assert suppressed(rig) == [*NONE * 10, {"pool_full": 14}]
    refuse(rig, 10)
    assert len(suppressed(rig)) == 19
    rig.loop.advance(10)
    assert suppressed(rig) == [*NONE * 10, {"pool_full": 14}, *NONE * 8, {"pool_full": 1}]


def test_the_next_line_says_how_many_have_none(rig: Rig) -> None:
    """If it comes before the timer runs, the timer logs nothing."""
    refuse(rig, 12)
    rig.loop.now += 1.1  # as in a busy loop: the time is over, and the timer has not run yet
    refuse(rig, 1)
    rig.loop.advance(10)
    assert suppressed(rig) == [*NONE * 10, {"pool_full": 2}]


def test_refusals_without_a_line_are_counted_by_reason(rig: Rig) -> None:
    """A flood of one reason does not hide that there was another one."""
    refuse(rig, 10)
    refuse(rig, 3, "denied")
    refuse(rig, 2, "per_source")
    rig.loop.now += 1.1
    refuse(rig, 1, "denied")
    assert suppressed(rig) == [*NONE * 10, {"denied": 3, "per_source": 2}]


def test_a_refusal_that_gets_its_line_late_does_not_count_as_one_without(rig: Rig) -> None:
    """The other ones of its reason do, and a reason with none of them is left out."""
    refuse(rig, 12)
    refuse(rig, 1, "denied")
    rig.loop.advance(2)
    assert suppressed(rig) == [*NONE * 10, {"pool_full": 2}]
    refuse(rig, 9)
    refuse(rig, 2, "denied")
    rig.loop.advance(2)
    assert suppressed(rig)[-1] == {"denied": 1}
    refuse(rig, 10)
    rig.loop.advance(2)
    assert suppressed(rig)[-1] == {}


def test_after_a_second_there_is_a_line_at_once(rig: Rig) -> None:
    """The very moment at which the second ends counts as after it."""
    refuse(rig, Rejections.LINES)
    rig.loop.now += Rejections.SECOND
    refuse(rig, 1)
    assert suppressed(rig) == NONE * (Rejections.LINES + 1)


def test_a_flood_in_one_turn_of_the_loop_is_limited_too(rig: Rig) -> None:
    """The timer of the second before does not let one more line through."""
    refuse(rig, 12)
    rig.loop.now += 1.1
    refuse(rig, 12)
    assert suppressed(rig) == [*NONE * 10, {"pool_full": 2}, *NONE * 9]
    rig.loop.advance(0)
    assert len(suppressed(rig)) == 20


def test_a_flush_logs_what_has_no_line_yet(rig: Rig) -> None:
    """If every refusal has its line, it logs nothing."""
    rig.rejections.flush()
    assert suppressed(rig) == []
    refuse(rig, 13)
    rig.rejections.flush()
    assert suppressed(rig) == [*NONE * 10, {"pool_full": 2}]
    assert rig.loop.timers == 0
    rig.rejections.flush()
    assert len(suppressed(rig)) == 11


def test_a_line_names_client_listener_and_reason(rig: Rig) -> None:
    """It has no `suppressed` if every refusal before it has a line."""
    refuse(rig, 1, "denied")
    assert rig.lines.lines == [
        {
            "level": "warning",
            "event": "connection.rejected",
            "client": {"address": "192.0.2.9", "port": 1},
            "listener": LISTENER,
            "reason": "denied",
        }
    ]


def test_the_late_line_is_about_the_last_refusal(rig: Rig) -> None:
    """Of those without a line, the last one is the most useful."""
    refuse(rig, 11, "pool_full")
    refuse(rig, 1, "denied")
    rig.loop.advance(2)
    assert [line["reason"] for line in rig.lines.lines] == ["pool_full"] * 10 + ["denied"]


def test_every_refusal_is_counted_by_its_reason(rig: Rig) -> None:
    """The count has those without a line too, and a late line does not count again."""
    refuse(rig, 12, "pool_full")
    refuse(rig, 3, "denied")
    assert rig.rejections.count == {"pool_full": 12, "denied": 3}
    rig.loop.advance(10)
    assert rig.rejections.count == {"pool_full": 12, "denied": 3}


def test_the_last_refusals_are_kept_with_their_time(rig: Rig) -> None:
    """Those without a line are kept too, and the oldest ones are dropped."""
    before = clock.now()
    refuse(rig, rejections.RECENT, "pool_full")
    refuse(rig, 2, "denied")
    recent = rig.rejections.recent
    assert [rejection.reason for _, rejection in recent] == ["pool_full"] * (rejections.RECENT - 2) + ["denied"] * 2
    at, last = recent[-1]
    assert before <= recent[0][0] <= at <= clock.now()
    assert last == (CLIENT, LISTENER, "denied", None)
