"""`--watch`: an answer that is asked for again and again, and shown each second.

It goes on while no daemon answers, so that it survives a restart.
"""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

from echod.client import terminal
from echod.client.admin_client import TIMEOUT
from echod.client.control import Reply
from echod.errors import Refusal
from echod.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

PERIOD = 1.0
"""Seconds between two answers."""
PATIENCE = 2.0
"""Seconds to wait for an answer after the first. An instance that hangs must not stop the others' figures for long."""
_CLEAR = "\x1b[H\x1b[2J"  # ECMA-48: CUP and ED: go to the first line, and erase the screen


def watch(ask: Callable[[float], Reply], write: Callable[[str], None]) -> None:
    """Write a screen for people each second; errors are lines of it. Raises `Refusal` if no daemon answers at first.

    `ask` is given how many seconds an answer may take.
    """
    reply = ask(TIMEOUT)
    while True:
        text = "".join(f"! {line}\n" for line in _lines(reply)) + reply.text
        if terminal.is_capable():
            fitting = text.splitlines(keepends=True)[: shutil.get_terminal_size().lines - 1]
            text = f"{_CLEAR}{''.join(fitting)}"
        write(text)
        reply = _next(ask)


def watch_json(ask: Callable[[float], Reply], write: Callable[[str], None], report: Callable[..., None]) -> None:
    """Write a line for programs each second, and report errors when they change. Raises `Refusal` as `watch` does."""
    reply, reported = ask(TIMEOUT), list[str]()
    while True:
        write(reply.text)
        lines = _lines(reply)
        if lines != reported:
            report(*lines)
        reported = lines
        reply = _next(ask)


def _next(ask: Callable[[float], Reply]) -> Reply:
    time.sleep(PERIOD)
    try:
        return ask(PATIENCE)
    except Refusal as refusal:
        return Reply("", refusal)


def _lines(reply: Reply) -> list[str]:
    return [printable(line) for line in reply.failure.lines] if reply.failure else []
