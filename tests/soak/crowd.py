"""Processes that have the soak's clients: crowds of all kinds, and one that measures how long an echo takes.

Knows nothing of the daemon but its port. Each takes the pipe to its parent, says from time to time how it goes, is done
as soon as it hears something, and returns its books.
"""

from __future__ import annotations

import os
import random
import select
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.summary import quantile
from tests.soak.clients import EVENTS, KINDS, TICK, Books, Client, Kind
from tests.support.harness import DEADLINE, LOCAL, read_all, read_exactly, send_all

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

FAILURES = 10
"""So many, and a crowd has seen enough."""
PAUSE = 0.005
"""Seconds between two echoes that are measured."""
_SAY = 0.5  # seconds between two words to the parent


class Group:
    """The clients of one kind in a crowd."""

    def __init__(self, kind: Kind, now: float) -> None:
        self.kind = kind
        self.open = 0
        self._saved = float(kind.at_once)  # how many may come that have not
        self._seen = now

    def coming(self, now: float) -> int:
        """Return how many are to come now."""
        room = self.kind.at_once - self.open
        if self.kind.per_second is None:
            return room
        self._saved = min(self.kind.at_once, self._saved + (now - self._seen) * self.kind.per_second)
        self._seen = now
        if self.kind.waves and (self.open or self._saved < self.kind.at_once):
            return 0
        number = min(room, int(self._saved))
        self._saved -= number
        return number


class Crowd:
    """Clients of all kinds, so many at one time."""

    def __init__(self, port: int, seed: int, kinds: tuple[Kind, ...] = KINDS) -> None:
        self.books = Books()
        self._port = port
        self._some = random.Random(seed)
        self._poll = select.epoll()
        self._clients: dict[int, tuple[Client, Group]] = {}  # by descriptor
        self._ticked = time.monotonic()
        self._groups = [Group(kind, self._ticked) for kind in kinds]

    def turn(self, *, more: bool) -> bool:
        """Do what there is to do, with `more` clients or without; say whether there are still some."""
        now = time.monotonic()
        if more:
            for group in self._groups:
                for _ in range(group.coming(now)):
                    self._come(group, now)
        events_of = self._poll.poll(TICK)
        now = time.monotonic()
        for fd, events in events_of:
            client, group = self._clients[fd]
            client.act(events, now)
            self._look(fd, client, group)
        if now > self._ticked + TICK:
            self._ticked = now
            for fd, (client, group) in list(self._clients.items()):
                client.tick(now)
                self._look(fd, client, group)
        return bool(self._clients)

    def _come(self, group: Group, now: float) -> None:
        client = Client(group.kind, self._some, self._port, now)
        group.open += 1
        self._clients[client.sock.fileno()] = client, group
        self._poll.register(client.sock, EVENTS)

    def _look(self, fd: int, client: Client, group: Group) -> None:
        if client.outcome:
            del self._clients[fd]
            group.open -= 1
            self.books.book(group.kind.name, client.outcome, client.sent, client.got)
            if client.failure:
                self.books.failures.append(client.failure)


class Word(NamedTuple):
    """What a crowd says meanwhile."""

    served: int
    failures: int


def crowd(pipe: Connection, port: int, seed: int) -> Books:
    """Have clients come until told to stop, and the rest end."""
    clients = Crowd(port, seed)
    books = clients.books
    said = time.monotonic()
    while not pipe.poll() and len(books.failures) < FAILURES:
        clients.turn(more=True)
        if time.monotonic() > said + _SAY:
            said = time.monotonic()
            pipe.send(Word(books.served, len(books.failures)))
    pipe.send(Word(books.served, len(books.failures)))
    while clients.turn(more=False):
        pass
    return books


class Echoes(NamedTuple):
    """How long the echoes of one second took, in seconds."""

    at: float
    """By `time.monotonic()`."""
    p50: float
    p99: float
    longest: float


def bystander(pipe: Connection, port: int) -> Books:
    """Say something and hear it, on one connection all the time, and say how long that took."""
    with socket.create_connection((LOCAL, port), DEADLINE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        taken: list[float] = []
        bytes_sent = 0
        said = 0.0  # so that the first echo is reported at once: the parent waits for it
        while not pipe.poll(PAUSE):
            message = os.urandom(64)
            began = time.monotonic()
            sock.sendall(message)
            if (heard := read_exactly(sock, len(message))) != message:
                raise ValueError("a wrong echo" if len(heard) == len(message) else "cut off")
            bytes_sent += len(message)
            now = time.monotonic()
            taken.append(now - began)
            if now > said + 1:
                taken.sort()
                pipe.send(Echoes(now, quantile(taken, 0.5), quantile(taken, 0.99), taken[-1]))
                taken.clear()
                said = now
        send_all(sock, b"")
        read_all(sock)
    books = Books()
    books.book("bystander", "eof", bytes_sent, bytes_sent)
    return books
