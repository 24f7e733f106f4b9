"""The end of a drain: connections still open at the deadline are ended such that their clients lose nothing.

Knows nothing of listeners and signals. A client that has sent everything gets all of its echo, even if its last bytes
are under way when the deadline strikes; who does not come to an end is cut.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from echod.server import kernel

if TYPE_CHECKING:
    from echod.server.pool import Pool
    from echod.server.worker import Worker

TICK = 0.05  # seconds between two looks

# In seconds. All of it together, with the looks between and the end of the process (but for a slow sink of the log), is less
# than the 6 s beyond `timeouts.drain` that the README promises.
QUIET = 0.25
"""Without a byte for so long, or for four round trips, a connection gets FIN: what was under way has come by now."""
LAST_ECHO = 2.0
"""So long a client that goes on sending is still served."""
LAST_READ = 4.5
"""So long a client that has sent its FIN, and so has everything on its way to us, may take to read its echo."""
LINGER = 1.0
"""After our FIN, so long we read and drop, for the client to close first."""


class Drain:
    """Ends what is in use in a pool, slowly or at once."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._cut: set[int] = set()  # connection numbers

    @property
    def aborted(self) -> int:
        """The number of connections that had to be cut."""
        return len(self._cut)

    async def linger(self) -> None:
        """Let each connection go on until it is quiet, then send FIN, then give it a moment to close."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        finished: dict[int, float] = {}  # when each got its FIN
        for worker in self._pool.in_use.values():
            worker.seen = began
        while self._pool.in_use:
            due = loop.time() + TICK
            await asyncio.sleep(TICK)
            if loop.time() - due > TICK:  # held up, or stopped (SIGSTOP): what has come meanwhile is to be read first
                await asyncio.sleep(TICK)
            now = loop.time()
            for number, worker in list(self._pool.in_use.items()):
                if number in finished:
                    if now - finished[number] >= LINGER:
                        self._abort(worker)
                elif _is_over(worker, now, now - began):
                    finish(worker)
                    finished[number] = now

    async def cut_all(self) -> None:
        """End every connection now."""
        while self._pool.in_use:
            for worker in list(self._pool.in_use.values()):
                self._abort(worker)
            await asyncio.sleep(0)

    def _abort(self, worker: Worker) -> None:
        self._cut.add(worker.connection)
        worker.abort("drained", reset=worker.paused)


def _is_over(worker: Worker, now: float, lingered: float) -> bool:
    try:
        return _has_come_to_rest(worker, now) or _has_had_its_time(worker, lingered)
    except (OSError, ValueError):  # the kernel does not tell, or it is closed: one must not spoil the end of the others
        return True


def _has_come_to_rest(worker: Worker, now: float) -> bool:
    quiet = worker.quiet_for(now)
    return not worker.paused and quiet >= QUIET and quiet >= 4e-6 * kernel.info(worker.sock).rtt_us


def _has_had_its_time(worker: Worker, lingered: float) -> bool:
    if lingered < LAST_ECHO:
        return False
    return lingered >= LAST_READ or not kernel.info(worker.sock).peer_finished


def finish(worker: Worker) -> None:
    """Send FIN after what is pending, then read and drop until the peer closes too.

    close(2) with unread input would send RST, and the peer would lose the echo that is still under way.
    """
    if worker.transport and not worker.transport.is_closing():
        worker.reason = worker.reason or "drained"
        worker.transport.set_protocol(_Dropper(worker))
        worker.transport.resume_reading()
        worker.transport.write_eof()


class _Dropper(asyncio.Protocol):
    """Stands in for a worker that has sent FIN."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def data_received(self, data: bytes) -> None:
        self._worker.received += len(data)
        self._worker.dropped += len(data)

    def resume_writing(self) -> None:
        self._worker.paused = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._worker.connection_lost(exc)
