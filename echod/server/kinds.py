"""What a kind of listener has to provide: a `Kind` binds sockets, a `Room` serves the clients of one of them."""

from __future__ import annotations

import importlib
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from echod.config.settings import Settings
    from echod.server.acceptor import Parts, State
    from echod.server.endpoint import Endpoint, Listener


class Kind(Protocol):
    """The functions that the module of a kind provides."""

    def endpoints(self, settings: Settings) -> list[Endpoint]:
        """Return what the settings want of this kind."""

    def bind(
        self,
        endpoints: Sequence[Endpoint],
        *,
        backlog: int,
        reuse_port: bool,
        receive_buffer: int | None,
        free_bind: bool,
        beside: Sequence[Listener],
    ) -> list[Listener]:
        """Listen on all of these endpoints; raise `Refusal` if that fails for one, and then listen on none.

        It is `AddressMissing` if the address of an endpoint may come later.
        """

    def adopt(self, sock: socket.socket) -> Listener | None:
        """Take a socket that was handed over; `None` if it is of another kind. Raises `ValueError` if it is unfit."""

    def tune(self, listener: Listener, settings: Settings) -> None:
        """Apply to a listener what may change while it listens."""

    def acceptor(self, parts: Parts, listener: Listener, *, waits: bool) -> Room:
        """Return what serves the clients of this listener."""


class Room(Protocol):
    """What serves the clients of one listener: an `Acceptor`, or an `Answerer` of UDP."""

    listener: Listener
    waits: bool
    paused_seconds: float

    @property
    def state(self) -> State:
        """What would happen to a client that comes now."""

    def resume(self) -> None:
        """Serve from now on; does nothing if it already does."""

    def retire(self, done: Callable[[Any], None]) -> None:
        """Serve the clients that wait, then stop listening and call `done`."""

    def revive(self) -> None:
        """Undo `retire`."""

    def close(self) -> None:
        """Stop listening now."""


class Deferred:
    """A kind whose module is imported once it is `wanted` by the settings, or `takes` a socket that was handed over."""

    def __init__(
        self, module: str, *, wanted: Callable[[Settings], bool], takes: Callable[[socket.socket], bool]
    ) -> None:
        self._module = module
        self._wanted = wanted
        self._takes = takes

    @cached_property
    def _kind(self) -> Kind:
        return cast("Kind", importlib.import_module(self._module))

    def endpoints(self, settings: Settings) -> list[Endpoint]:
        """As `Kind` has it."""
        return self._kind.endpoints(settings) if self._wanted(settings) else []

    def bind(self, endpoints: Sequence[Endpoint], **options: Any) -> list[Listener]:  # noqa: ANN401 - as `Kind` has them
        """As `Kind` has it."""
        return self._kind.bind(endpoints, **options) if endpoints else []

    def adopt(self, sock: socket.socket) -> Listener | None:
        """As `Kind` has it."""
        return self._kind.adopt(sock) if self._takes(sock) else None

    def tune(self, listener: Listener, settings: Settings) -> None:
        """As `Kind` has it."""
        self._kind.tune(listener, settings)

    def acceptor(self, parts: Parts, listener: Listener, *, waits: bool) -> Room:
        """As `Kind` has it."""
        return self._kind.acceptor(parts, listener, waits=waits)
