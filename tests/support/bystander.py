"""Who stands beside a fault, and what has to be as before when it is over."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

from tests.support.harness import DEADLINE, read_exactly, until
from tests.support.running_time import running_time

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tests.support.harness import Echod

PATIENCE = DEADLINE / 8
"""Seconds of running time that one echo may take beside a fault, on a machine that has other things to do.

None is expected near it.
"""
PAUSE = 0.01
QUIET = 0.1
"""The part of a processor below which nothing spins."""


class Bystander(threading.Thread):
    """A client like any other: it says something and hears it, all the time."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.sock = sock
        self.rounds = 0
        self.longest = 0.0  # seconds for an echo
        self._over = threading.Event()
        self._failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._over.wait(PAUSE):
                self._echo()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            self._failure = error

    def _echo(self) -> None:
        said = os.urandom(1 + self.rounds * 97 % 3000)
        began = running_time()
        self.sock.sendall(said)
        assert read_exactly(self.sock, len(said)) == said
        self.longest = max(self.longest, running_time() - began)
        self.rounds += 1

    def finish(self) -> None:
        """Stop, and raise what went wrong."""
        self._over.set()
        self.join()
        if self._failure:
            raise self._failure


def in_use(daemon: Echod) -> int:
    """Return the connections that are open, by the log."""
    return len(daemon.events("connection.opened")) - len(daemon.events("connection.closed"))


def rests(daemon: Echod) -> bool:
    """Look for half a second whether it leaves the processor alone."""
    before, began = daemon.processor_time(), time.monotonic()
    time.sleep(0.5)  # what is measured is how little it does meanwhile
    return daemon.processor_time() - before < QUIET * (time.monotonic() - began)


@contextlib.contextmanager
def unharmed(daemon: Echod, *, patience: float = PATIENCE, memory: int = 32 << 20) -> Iterator[Bystander]:
    """Let a bystander echo meanwhile, and assert afterwards that nothing is left of what happened.

    The bystander waited for no echo longer than `patience` seconds; all workers and descriptors are back, the processor
    rests, and resident memory has not grown by more than `memory` bytes. The log has to be read, with lifecycle lines.
    """
    with daemon.connect() as sock:
        bystander = Bystander(sock)
        bystander.start()
        try:
            until(lambda: bystander.rounds or not bystander.is_alive(), what="a first echo")
            client = dict(zip(("address", "port"), sock.getsockname(), strict=True))
            # Its own line may come later than its echo, and it counts.
            until(lambda: any(line["client"] == client for line in daemon.events("connection.opened")), what="its line")
            before = in_use(daemon), daemon.descriptors(), daemon.memory()
            yield bystander
            rounds = bystander.rounds
            until(lambda: bystander.rounds > rounds or not bystander.is_alive(), what="echo afterwards")
        finally:
            bystander.finish()
        until(lambda: in_use(daemon) <= before[0], what="workers back")
        until(lambda: daemon.descriptors() <= before[1], what=f"{before[1]} descriptors")
        until(lambda: rests(daemon), what="rest")
        assert daemon.memory() - before[2] < memory
        assert bystander.longest < patience
