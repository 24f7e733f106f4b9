"""A terminal on which one screen is drawn again and again, as top(1) does.

While it is in use, it shows its alternate screen without a cursor, and passes each key at once. However the command ends or
is suspended, the terminal is put back first. Escape sequences are those of ECMA-48 and xterm.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

_ENTER = b"\x1b[?1049h\x1b[?25l"  # the alternate screen, and no cursor
_LEAVE = b"\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _REST = (
    "\x1b[H",
    "\x1b[K",
    "\x1b[J",
)  # to the first line; erase the rest of the line, of the screen
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)


def is_capable() -> bool:
    """Say whether standard output is a terminal that knows escape sequences.

    Emacs and CI jobs have dumb ones, which show them. One that nobody has named may be such.
    """
    return sys.stdout.isatty() and (os.environ.get("TERM") or "dumb") != "dumb"


def _ignore(*_: object) -> None:
    pass


class Terminal:
    """The terminal of standard output, and the keys of standard input, by descriptor. `write` writes to standard output."""

    def __init__(self, write: Callable[[str], None], keys: int = 0, output: int = 1) -> None:
        self._write = write
        self._input, self._output = keys, output
        self._mode: list[Any] | None = None
        """What standard input was set to before."""
        self._has_keys = os.isatty(self._input)

    def __enter__(self) -> Self:
        self._awake, waking = os.pipe()
        os.set_blocking(waking, False)
        self._stack = contextlib.ExitStack()
        self._stack.callback(os.close, self._awake)
        self._stack.callback(os.close, waking)
        self._stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(waking, warn_on_full_buffer=False))
        handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]] = {
            **dict.fromkeys(_ENDING, self._end),
            signal.SIGTSTP: self._suspend,
            signal.SIGWINCH: _ignore,  # it wakes `wait`
        }
        for number, handler in handlers.items():
            self._stack.callback(signal.signal, number, signal.signal(number, handler))
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()
        self._stack.close()

    def _take(self) -> None:
        if self._has_keys:
            self._mode = termios.tcgetattr(self._input)
            tty.setcbreak(self._input)
        os.write(self._output, _ENTER)

    def _give_back(self) -> None:
        with contextlib.suppress(OSError):  # the terminal has gone
            os.write(self._output, _LEAVE)
        if self._mode:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._input, termios.TCSADRAIN, self._mode)

    # A request to a daemon may take seconds. These two act at once, in the midst of it; they use no buffered stream.

    def _end(self, number: int, _: object) -> None:
        """End by the signal, as a command without a handler does."""
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    def _suspend(self, *_: object) -> None:
        """Stop until the shell continues this job."""
        self._give_back()
        signal.raise_signal(signal.SIGSTOP)
        self._take()

    @property
    def size(self) -> tuple[int, int]:
        """How many lines and columns there are."""
        try:
            columns, lines = os.get_terminal_size(self._output)
        except OSError:
            columns, lines = 0, 0
        return lines or 24, columns or 80  # 0: unknown, as on some serial lines

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines, as far as there is room. What does not change does not flicker."""
        height, width = self.size
        fitting = [f"{line[:width]}{_END_OF_LINE}" for line in lines[:height]]
        self._write(_HOME + "\n".join(fitting) + _REST)

    def wait(self, seconds: float) -> str:
        """Wait for so long, for keys, or for a signal; return the keys. Raises `EOFError` if the terminal has gone."""
        inputs = [self._awake, self._input] if self._has_keys else [self._awake]
        ready, _, _ = select.select(inputs, [], [], seconds)
        if self._awake in ready:
            os.read(self._awake, 4096)
        if self._input not in ready:
            return ""
        keys = os.read(self._input, 4096)
        if not keys:
            raise EOFError
        return keys.decode(errors="replace")
