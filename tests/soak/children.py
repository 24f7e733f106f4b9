"""Processes beside this one, each with a pipe: news come in, an order to end goes out, and at last there is a result.

Knows nothing of what they do.
"""

from __future__ import annotations

import multiprocessing
import signal
from typing import TYPE_CHECKING, Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar

from tests.support.harness import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

CONTEXT = multiprocessing.get_context("spawn")
"""Not "fork": this process has threads, and descriptors that a child must not keep open."""
_T = TypeVar("_T")
_P = ParamSpec("_P")


class ChildError(Exception):
    """It has ended without a result; where, it has said on standard error."""


class _Result(NamedTuple):
    value: Any


class Child(Generic[_T]):
    """A function that runs in a process of its own."""

    def __init__(
        self, name: str, function: Callable[Concatenate[Connection, _P], _T], *arguments: _P.args, **named: _P.kwargs
    ) -> None:
        self.name = name
        self._pipe, theirs = CONTEXT.Pipe()
        self._news: list[Any] = []
        self._result: _Result | None = None
        with theirs:
            process = CONTEXT.Process(target=_run, args=(function, theirs, arguments, named), daemon=True)
            process.start()

    def news(self) -> list[Any]:
        """Return what it has sent since the last call. Raises `ChildError` if it has died."""
        while not self._result and self._pipe.poll():
            self._receive()
        news, self._news = self._news, []
        return news

    def end(self) -> None:
        """Tell it to end."""
        self._pipe.send(None)

    def result(self) -> _T:
        """Wait for what it returns. Raises `ChildError` if it has died, or says nothing for long."""
        while not self._result:
            if not self._pipe.poll(2 * DEADLINE):
                raise ChildError(f"{self.name} does not end")
            self._receive()
        value: _T = self._result.value
        return value

    def _receive(self) -> None:
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):
            raise ChildError(f"{self.name} has died") from None
        if isinstance(message, ChildError):
            raise ChildError(f"{self.name}: {message}")
        if isinstance(message, _Result):
            self._result = message
        else:
            self._news.append(message)


def _run(
    function: Callable[..., object], pipe: Connection, arguments: tuple[object, ...], named: dict[str, object]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which tells us
    try:
        pipe.send(_Result(function(pipe, *arguments, **named)))
    except Exception as error:
        pipe.send(ChildError(repr(error)))
        raise
