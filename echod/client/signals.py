"""INT, TERM and QUIT while a command measures, as ping(8) takes them."""

from __future__ import annotations

import os
import select
import signal
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import FrameType

    from echod.client.poller import Poller

_STOP = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Notes INT and TERM (make an end), and QUIT (say how it goes), and wakes the poller. A second INT or TERM ends at once."""

    def __init__(self, poller: Poller) -> None:
        self.stopped = False
        self._asked = False
        self._poller = poller
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        poller.add(self._fd, select.EPOLLIN, self._read)

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (*_STOP, signal.SIGQUIT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._poller.remove(self._fd)
        os.close(self._fd)

    def asked(self) -> bool:
        """Return whether QUIT has come since the last time."""
        asked, self._asked = self._asked, False
        return asked

    def _read(self, _: int) -> None:
        os.eventfd_read(self._fd)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGQUIT:
            self._asked = True
        else:
            self.stopped = True
            signal.signal(number, signal.SIG_DFL)
        os.eventfd_write(self._fd, 1)
