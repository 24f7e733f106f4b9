"""`echod top`: the state of the daemons and their connections on one screen, drawn again each second.

It goes on while no daemon answers, so that it survives a restart.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from echod import screen
from echod.client import control
from echod.client.admin_client import TIMEOUT
from echod.client.terminal import Terminal
from echod.client.totals import total
from echod.client.watch import PATIENCE, PERIOD
from echod.errors import Refusal
from echod.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from echod.client.control import Row, User
    from echod.client.instances import Instances
    from echod.networks import Network

_SHARE = 0.1
"""The part of the time that the list of connections may take. A list of 15,000 costs a daemon much of a second."""


class Top:
    """What the screen shows. `find` returns the daemons that run now; it is given how many seconds an answer may take."""

    def __init__(self, find: Callable[[float], Instances], order: str, source: Network | User | None) -> None:
        self._find = find
        self._order = order
        self._source = source
        self._head: list[str] = []
        self._rows: list[Row] = []
        self._several = False
        self._listed = -float("inf")
        self._due = -float("inf")
        """When the connections may be listed again, as `time.monotonic`."""

    def refresh(self, patience: float = TIMEOUT) -> None:
        """Ask the daemons, for an answer within these seconds. Raises `Refusal` if none answers."""
        instances = self._find(patience)
        answers, failures = control.statuses(instances)
        self._several = instances.several
        if time.monotonic() >= self._due:
            began = time.monotonic()
            self._rows, more = control.rows_of(instances, source=self._source)
            failures = {**more, **failures}
            self._listed = time.monotonic()
            self._due = began + (self._listed - began) / _SHARE
        text = (
            screen.brief_instances(answers, total(list(answers.values())), len(failures))
            if instances.several
            else "".join(map(screen.brief, answers.values()))
        )
        self._head = [*_lines(*failures.values()), *text.splitlines()]

    def try_refresh(self) -> None:
        """Ask the daemons; if none answers, show that, and list the connections as soon as one does."""
        try:
            self.refresh(PATIENCE)
        except Refusal as refusal:
            self._head, self._rows, self._due = _lines(refusal), [], -float("inf")

    def next_order(self) -> None:
        """Sort by the next column."""
        orders = list(control.ORDERS)
        self._order = orders[(orders.index(self._order) + 1) % len(orders)]

    def lines(self, height: int | None, hint: str = "") -> list[str]:
        """Return the screen, with only the first rows if it has a height."""
        number = len(self._rows)
        of = f" from {self._source}" if self._source else ""
        age = time.monotonic() - self._listed
        old = f", {screen.span(age)} ago" if self._rows and age >= 2 * PERIOD else ""
        title = f"{number:,} connection{'' if number == 1 else 's'}{of}, sorted by {self._order}{old}{hint}"
        above = [*self._head, "", title]
        room = None if height is None else max(0, height - len(above) - 1)
        rows = control.in_order(self._rows, self._order)[:room]
        return [*above, *screen.connections(rows, several=self._several).splitlines()]


def _lines(*refusals: Refusal) -> list[str]:
    return [f"! {printable(line)}" for refusal in refusals for line in refusal.lines]


def on_terminal(top: Top, write: Callable[[str], None]) -> None:
    """Draw the screen each second, and act on keys, until `q`. Raises `Refusal` if no daemon answers at first."""
    top.refresh()
    with Terminal(write) as terminal:
        due = time.monotonic() + PERIOD
        while True:
            terminal.draw(top.lines(terminal.size[0], " (s: sort by the next column, q: quit)"))
            try:
                keys = terminal.wait(max(0.0, due - time.monotonic()))
            except EOFError:
                return
            if "q" in keys:
                return
            for _ in range(keys.count("s")):
                top.next_order()
            if time.monotonic() >= due:
                top.try_refresh()
                due = time.monotonic() + PERIOD


def as_text(top: Top, write: Callable[[str], None], height: int | None) -> None:
    """Write one screen below the other, each second, for ever. Raises `Refusal` if no daemon answers at first."""
    top.refresh()
    while True:
        write("\n".join([*top.lines(height), "", ""]))
        time.sleep(PERIOD)
        top.try_refresh()
