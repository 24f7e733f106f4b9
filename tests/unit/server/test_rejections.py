"""The lines about refused connections, on a clock that goes when told to."""

from __future__ import annotations

import time

from echod.server import rejections
from echod.server.rejections import Rejections
from tests.support.fakes import FakeLoop, Lines


class Refused:
    """Rejections with a log and a clock."""

    def __init__(self) -> None:
        self.loop, self.lines = FakeLoop(), Lines()
        self.rejections = Rejections(self.loop.asyncio, self.lines.log)

    def refuse(self, number: int, reason: str = "pool_full") -> None:
        for _ in range(number):
            self.rejections.log(("192.0.2.1", 1), "tcp://192.0.2.2:7", reason)

    @property
    def suppressed(self) -> list[int]:
        """What each line says of those before it that had none."""
        return [line.get("suppressed", 0) for line in self.lines.events("connection.rejected")]


def test_rejections_are_limited_to_ten_a_second() -> None:
    """In any second; lines and suppressed ones add up, also when nobody is refused after that."""
    refused = Refused()
    refused.refuse(9)
    refused.loop.advance(0.5)
    refused.refuse(16)
    refused.loop.advance(0.5)
    assert refused.suppressed == [0] * 10
    refused.loop.advance(0.1)
    assert refused.suppressed == [0] * 10 + [14]
    refused.refuse(10)
    assert len(refused.suppressed) == 19
    refused.loop.advance(10)
    assert refused.suppressed == [0] * 10 + [14] + [0] * 8 + [1]


def test_the_next_line_says_how_many_had_none() -> None:
    """Also if it comes before the timer, and then the timer says nothing."""
    refused = Refused()
    refused.refuse(12)
    refused.loop.now += 1.1  # as a busy loop sees it: the time is over, the timer not yet run
    refused.refuse(1)
    refused.loop.advance(10)
    assert refused.suppressed == [0] * 10 + [2]


def test_when_the_time_is_over_there_is_a_line_at_once() -> None:
    """From the very moment on."""
    refused = Refused()
    refused.refuse(Rejections.LINES)
    refused.loop.now += Rejections.SECOND
    refused.refuse(1)
    assert refused.suppressed == [0] * (Rejections.LINES + 1)


def test_a_flood_in_one_round_of_the_loop_is_limited_too() -> None:
    """The timer of the second before does not let one more through."""
    refused = Refused()
    refused.refuse(12)
    refused.loop.now += 1.1
    refused.refuse(12)
    assert refused.suppressed == [0] * 10 + [2] + [0] * 9
    refused.loop.advance(0)
    assert len(refused.suppressed) == 20


def test_a_flush_says_what_is_left_to_say() -> None:
    """At the end of the daemon's life, or for nothing."""
    refused = Refused()
    refused.rejections.flush()
    assert refused.suppressed == []
    refused.refuse(13)
    refused.rejections.flush()
    assert refused.suppressed == [0] * 10 + [2]
    assert refused.loop.timers == 0


def test_a_line_says_who_was_refused_where_and_why() -> None:
    """And says nothing of others when there were none."""
    refused = Refused()
    refused.refuse(1, "denied")
    assert refused.lines.lines == [
        {
            "level": "warning",
            "event": "connection.rejected",
            "client": {"address": "192.0.2.1", "port": 1},
            "listener": "tcp://192.0.2.2:7",
            "reason": "denied",
        }
    ]


def test_the_late_line_is_about_the_last_one() -> None:
    """Of those suppressed, it is the one that is still of interest."""
    refused = Refused()
    refused.refuse(11, "pool_full")
    refused.refuse(1, "denied")
    refused.loop.advance(2)
    assert [line["reason"] for line in refused.lines.lines] == ["pool_full"] * 10 + ["denied"]


def test_every_refusal_is_counted_by_its_reason() -> None:
    """Also those that have no line."""
    refused = Refused()
    refused.refuse(12, "pool_full")
    refused.refuse(3, "denied")
    assert refused.rejections.count == {"pool_full": 12, "denied": 3}
    refused.loop.advance(10)
    assert refused.rejections.count == {"pool_full": 12, "denied": 3}


def test_the_last_refusals_are_kept() -> None:
    """With when each was; also those that have no line, and not more than are looked at."""
    refused = Refused()
    before = time.time()
    refused.refuse(rejections.RECENT, "pool_full")
    refused.refuse(2, "denied")
    recent = refused.rejections.recent
    assert [reason for *_, reason in recent] == ["pool_full"] * (rejections.RECENT - 2) + ["denied"] * 2
    at, *what = recent[-1]
    assert before <= recent[0][0] <= at <= time.time()
    assert what == [("192.0.2.1", 1), "tcp://192.0.2.2:7", "denied"]
