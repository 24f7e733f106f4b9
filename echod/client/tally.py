"""The books of `ping`: what became of the messages, how long they took, and the exit status that follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from echod.client.figures import Distribution
from echod.client.paths import NO_SERVICE

if TYPE_CHECKING:
    from echod.client.kernel import Tcp
    from echod.client.paths import Address

OK, WARNING, CRITICAL = 0, 1, NO_SERVICE
STATES = ("OK", "WARNING", "CRITICAL")
UNKNOWN = "UNKNOWN"
"""The words of monitoring plugins: for the exit codes 0, 1 and 2, and for 3."""
_SMOOTHING = 16  # RFC 3550, 6.4.1


class Limit(NamedTuple):
    """What the average round trip (seconds) and the part of lost messages (percent) may be."""

    rtt: float
    loss: float

    def fields(self) -> dict[str, float]:
        """Return it as JSON has it."""
        return self._asdict()


class Count:
    """What became of some of the messages."""

    def __init__(self) -> None:
        self.sent = self.echoed = self.lost = self.wrong = 0
        self.echo = Distribution()

    def move(self, before: str, now: str) -> None:
        """Count a message under its outcome, and no longer under the one before; "" if it is counted the first time."""
        for outcome, change in (before or "sent", 1 if not before else -1), (now, 1):
            setattr(self, outcome, getattr(self, outcome) + change)

    @property
    def loss(self) -> float:
        """The part of the messages that are lost, in percent."""
        return 100 * self.lost / self.sent if self.sent else 0.0

    def row(self) -> dict[str, Any]:
        """Return the counts, and the average time of an echo if there is one."""
        average = round(self.echo.average, 9) if self.echoed else None
        return {"sent": self.sent, "echoed": self.echoed, "lost": self.lost, "wrong": self.wrong, "avg": average}


class Tally(Count):
    """What became of all messages, and of those of each size and to each address."""

    def __init__(self) -> None:
        super().__init__()
        self.late = self.duplicates = self.reordered = 0
        self.connections = self.ended = self.retrans = 0
        self.first_lost: str | None = None
        """Why the first of the lost messages has no echo."""
        self.first_wrong: str | None = None
        self.connect = Distribution()
        self.tls = Distribution()
        self.jitter = 0.0
        """Seconds by which one round trip differs from the one before, smoothed (RFC 3550, 6.4.1)."""
        self.sizes: dict[int, Count] = {}
        self.addresses: dict[Address, Count] = {}
        self.tcp: Tcp | None = None
        """What the kernel has last told."""
        self._before: float | None = None

    def parts(self, size: int, address: Address) -> list[Count]:
        """Return all counts that a message belongs to."""
        return [self, self.sizes.setdefault(size, Count()), self.addresses.setdefault(address, Count())]

    def took(self, seconds: float) -> None:
        """Note the round trip of the next echo, for the jitter."""
        if self._before is not None:
            self.jitter += (abs(seconds - self._before) - self.jitter) / _SMOOTHING
        self._before = seconds

    def judge(self, warn: Limit | None, crit: Limit | None) -> tuple[int, str]:
        """Return the exit code, and which limit was exceeded."""
        over_crit, over_warn = self._over("--crit", crit), self._over("--warn", warn)
        if over_crit or self.wrong or not self.echoed:
            return CRITICAL, over_crit
        return (WARNING, over_warn) if self.lost or over_warn else (OK, "")

    def _over(self, option: str, limit: Limit | None) -> str:
        if limit is None:
            return ""
        over = ["rtt"] if self.echo.average > limit.rtt else []
        over += ["loss"] if self.loss > limit.loss else []
        return f"{' and '.join(over)} above {option}" if over else ""

    def black_hole(self) -> int | None:
        """Return the size from which on nothing came back, if smaller messages did."""
        lost = [size for size in self.sizes if not self.sizes[size].echoed]
        right = [size for size in self.sizes if self.sizes[size].echoed]
        return min(lost) if lost and right and max(right) < min(lost) else None

    def fields(self) -> dict[str, Any]:
        """Return the figures of the summary."""
        return {
            **self.row(),
            "first_lost": self.first_lost,
            "first_wrong": self.first_wrong,
            "loss": round(self.loss, 3),
            **{name: getattr(self, name) for name in ("late", "duplicates", "reordered", "connections", "ended")},
            **{name: getattr(self, name).fields() for name in ("connect", "tls", "echo")},
            "jitter": round(self.jitter, 9),
            "retrans": self.retrans,
            "tcp": self.tcp.fields() if self.tcp else None,
            "sizes": [{"size": size} | count.row() for size, count in sorted(self.sizes.items())],
            "servers": [{"server": address.fields()} | count.row() for address, count in self.addresses.items()],
            "black_hole": self.black_hole(),
        }
