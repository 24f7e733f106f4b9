"""All listeners of the daemon with their acceptors, which a reload may move.

`KINDS` lists the kinds of listeners; a further kind is a module like `tcp`, and a line there (`Kind`). A reload compares
the wanted endpoints with the current ones. A listener that is in both lists stays as it is. An endpoint whose address this
machine does not have is missing: it is tried again once a second.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING, NamedTuple

from echod.errors import Refusal
from echod.server import tcp, tls, unix_stream
from echod.server.endpoint import AddressMissing, Endpoint
from echod.server.kinds import Deferred

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from echod.config.settings import Settings
    from echod.server.acceptor import Parts
    from echod.server.endpoint import Listener
    from echod.server.kinds import Kind, Room


_SETTINGS = {tls.KIND: "tls.port", unix_stream.KIND: "listen.unix", "udp": "udp.port"}
"""What turns the kinds on that are off by default."""


def _is_udp(sock: socket.socket) -> bool:
    return sock.type == socket.SOCK_DGRAM and sock.proto == socket.IPPROTO_UDP


KINDS: dict[str, Kind] = {
    tcp.KIND: tcp,
    tls.KIND: tls,
    unix_stream.KIND: unix_stream,
    "udp": Deferred("echod.server.udp", wanted=lambda settings: settings.udp.port is not None, takes=_is_udp),
}

AGAIN = 0.95
"""Seconds until a missing address is tried again, which takes 20 µs. Timers are a little early at times."""

_PROTOCOLS = {socket.IPPROTO_UDP: "udp", socket.IPPROTO_UDPLITE: "udplite", socket.IPPROTO_SCTP: "sctp"}
"""The protocols of a socket unit besides TCP: ListenDatagram=, and SocketProtocol= (systemd.socket(5))."""


def prepare_kinds(settings: Settings) -> None:
    """Import what these settings need. Safe in any thread. Raises `Refusal` if it is not there any more."""
    try:
        for kind in KINDS.values():
            kind.endpoints(settings)
    except ImportError as error:
        raise Refusal(f"the program has changed since the start, restart it: {error}") from None


class Adopted(NamedTuple):
    """What became of the sockets that were handed over."""

    listeners: list[Listener]
    names: list[str]
    """Of the listeners, in the socket unit (FileDescriptorName=)."""
    problems: list[str]
    """A line for each socket that echod can't serve on. These are closed."""


def adopt(handed: Iterable[tuple[int, str]]) -> Adopted:
    """Take sockets that were handed over, as descriptors with names.

    Raises `Refusal` if no kind can serve on any of them.
    """
    listeners, names, problems = [], [], []
    for fd, name in handed:
        try:
            listeners.append(_adopt(fd))
            names.append(name)
        except ValueError as error:
            problems.append(f"{name} (descriptor {fd}): {error}")
    if problems and not listeners:
        raise Refusal(*(f"echod: {problem}" for problem in problems))
    return Adopted(listeners, names, problems)


def _adopt(fd: int) -> Listener:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        os.close(fd)
        raise ValueError(_not_served("it is no socket and"))
    sock = socket.socket(fileno=fd)
    with contextlib.ExitStack() as undo:
        undo.callback(sock.close)
        for kind in KINDS.values():
            if listener := kind.adopt(sock):
                undo.pop_all()
                return listener
        raise ValueError(_not_served(_named(sock)))


def _not_served(what: str) -> str:
    return f"{what} is not served: the socket unit needs ListenStream=, or ListenDatagram= with a port"


def _named(sock: socket.socket) -> str:
    """Return what a socket is and where it is bound, as far as a socket unit can make it."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        host, port = sock.getsockname()[:2]
        return str(Endpoint(_PROTOCOLS.get(sock.proto, "ip"), host, port))
    if sock.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(sock.getsockname()).replace(chr(0), '@')}"
    return f"a socket of {socket.AddressFamily(sock.family).name}"


def _bind(settings: Settings, kind: str, endpoints: Sequence[Endpoint], beside: Sequence[Listener]) -> list[Listener]:
    """Bind endpoints of one kind, without those whose address is missing. Raises `Refusal`; then none is bound."""
    while True:
        try:
            return KINDS[kind].bind(
                endpoints,
                backlog=settings.listen.backlog,
                reuse_port=settings.listen.reuse_port,
                receive_buffer=settings.listen.receive_buffer,
                free_bind=settings.listen.free_bind,
                beside=beside,
            )
        except AddressMissing as missing:
            endpoints = [endpoint for endpoint in endpoints if endpoint.host != missing.host]


class Listeners:
    """Gives one pool the connections of several listeners.

    If there are `inherited` listeners, they replace all that the settings want, now and after each reload.
    """

    def __init__(self, parts: Parts, *, inherited: Sequence[Listener] = ()) -> None:
        self._parts = parts
        self.inherited = inherited
        self._acceptors: list[Room] = []  # also those that are retired and not yet closed
        self._any_port: dict[str, int] = {}  # of each kind whose port was left to the kernel: the port it chose
        self._paused_seconds = 0.0  # of acceptors that are closed
        self._missing: dict[Endpoint, str] = {}  # what is wanted and not bound, and why
        self._next_try = 0.0

    @property
    def acceptors(self) -> Iterable[Room]:
        """All acceptors, including retired ones that are not closed yet."""
        return self._acceptors

    @property
    def paused_seconds(self) -> float:
        """For how long acceptors have paused after errors, added up."""
        return self._paused_seconds + sum(acceptor.paused_seconds for acceptor in self._acceptors)

    @property
    def urls(self) -> list[str]:
        """The URLs of the listeners that new clients reach."""
        return sorted(acceptor.listener.url for acceptor in self._reachable())

    def _reachable(self) -> Iterable[Room]:
        return (acceptor for acceptor in self._acceptors if acceptor.state not in ("retired", "missing"))

    @property
    def missing(self) -> dict[str, str]:
        """The URLs of the endpoints that are wanted but not bound, and why."""
        return {str(endpoint): reason for endpoint, reason in self._missing.items()}

    def unserved(self, settings: Settings) -> list[str]:
        """Return a warning for each kind that the settings want, and of which no socket was handed over."""
        if not self.inherited:
            return []
        there = {listener.endpoint.kind for listener in self.inherited}
        return [
            f"{name}: has no effect: none of the sockets from systemd (LISTEN_FDS) is served as {kind}"
            for kind, name in _SETTINGS.items()
            if kind not in there and KINDS[kind].endpoints(settings)
        ]

    def bind(self, settings: Settings) -> list[Listener]:
        """Bind what is wanted and not there yet, for `serve`, without addresses that this machine does not have.

        Raises `Refusal`; then nothing has changed.
        """
        if self.inherited:
            return [] if self._acceptors else list(self.inherited)
        wanted = self._wanted(settings)
        there = [acceptor.listener for acceptor in self._acceptors if acceptor.listener.is_reachable]
        new = [endpoint for endpoint in wanted if endpoint not in [each.endpoint for each in there]]
        beside = [each for each in there if each.endpoint not in wanted]
        bound: list[Listener] = []
        try:
            for name in KINDS:
                bound += _bind(settings, name, [endpoint for endpoint in new if endpoint.kind == name], beside)
        except Refusal:
            for listener in bound:
                listener.close()
            raise
        return bound

    def retry(self, settings: Settings) -> None:
        """Bind what is missing, and anew what nobody can reach any more, if that is possible by now. To be called regularly."""
        now = self._parts.loop.time()
        if now < self._next_try:
            return
        for acceptor in self._acceptors:
            if acceptor.state == "missing":
                self._missing.setdefault(acceptor.listener.endpoint, "")
        for acceptor in self._reachable():
            self._missing.pop(acceptor.listener.endpoint, None)  # it may have been missing
        if not self._missing:
            return
        self._next_try = now + AGAIN
        while self._has_found_one(settings):
            pass

    def _has_found_one(self, settings: Settings) -> bool:
        """Serve on the first of what is missing that can be bound, and say whether there was one."""
        for endpoint in self._missing:
            reason = AddressMissing.WHY
            try:
                if bound := _bind(settings, endpoint.kind, [endpoint], ()):
                    self.serve(settings, bound)
                    return True
            except Refusal as refusal:  # the address has come, but its port is taken, for example: that may end, too
                reason = refusal.lines[0].rpartition(f"{endpoint}: ")[2]
            self._miss(endpoint, reason)
        return False

    def serve(self, settings: Settings, bound: list[Listener]) -> None:
        """Accept on the new listeners and on those still wanted, and retire the others."""
        waits = settings.pool.when_full == "wait"
        self._note_ports(settings, bound)
        wanted = self._wanted(settings)
        self._parts.pool.when_free = self._resume if waits else None
        for acceptor in self._acceptors:
            acceptor.waits = waits
            KINDS[acceptor.listener.endpoint.kind].tune(acceptor.listener, settings)
        for listener in bound:
            KINDS[listener.endpoint.kind].tune(listener, settings)  # those that were handed over are not bound by us
            self._acceptors.append(KINDS[listener.endpoint.kind].acceptor(self._parts, listener, waits=waits))
            self._parts.log.info("listener.started", listener=listener.url, backlog=listener.backlog)
        made = {listener.endpoint for listener in bound}  # anew, if there is one already
        for acceptor in list(self._acceptors):
            listener = acceptor.listener
            if (
                listener.inherited
                or listener in bound
                or (listener.endpoint in wanted and listener.endpoint not in made)
            ):
                acceptor.revive()
                acceptor.resume()
            else:
                acceptor.retire(self._forget)
        there = [acceptor.listener.endpoint for acceptor in self._reachable()]
        lacking = [] if self.inherited else [endpoint for endpoint in wanted if endpoint not in there]
        self._missing = {endpoint: self._missing.get(endpoint, "") for endpoint in lacking}
        for endpoint, reason in self._missing.items():
            self._miss(endpoint, reason or AddressMissing.WHY)

    def _miss(self, endpoint: Endpoint, reason: str) -> None:
        """Note that an endpoint is not bound, and log it if the reason is new."""
        if self._missing[endpoint] != reason:
            self._missing[endpoint] = reason
            self._parts.log.warning("listener.missing", listener=str(endpoint), reason=reason)

    def close(self) -> None:
        """Stop listening, everywhere. Connections that admission holds go on being judged."""
        self._parts.pool.when_free = None
        self._missing.clear()
        while self._acceptors:
            acceptor = self._acceptors[0]
            acceptor.close()
            self._forget(acceptor)

    def _wanted(self, settings: Settings) -> list[Endpoint]:
        """Return the endpoints that these settings want, with the port that the kernel has chosen before."""
        return [
            endpoint if endpoint.port else endpoint._replace(port=self._any_port.get(endpoint.kind, 0))
            for kind in KINDS.values()
            for endpoint in kind.endpoints(settings)
        ]

    def _note_ports(self, settings: Settings, bound: list[Listener]) -> None:
        for name, kind in KINDS.items():
            if all(endpoint.port for endpoint in kind.endpoints(settings)):
                self._any_port.pop(name, None)
                continue
            for each in bound:
                if each.endpoint.kind == name:
                    self._any_port[name] = each.endpoint.port

    def _resume(self) -> None:
        for acceptor in self._acceptors:
            acceptor.resume()

    def _forget(self, acceptor: Room) -> None:
        self._acceptors.remove(acceptor)
        self._paused_seconds += acceptor.paused_seconds
        self._parts.log.info("listener.stopped", listener=acceptor.listener.url, backlog=acceptor.listener.backlog)
