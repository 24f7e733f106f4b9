"""The end of the connections: they may finish, then each gets the rest of its echo and FIN, and at last they are cut.

A client that has sent everything gets all of its echo, also if its last bytes are under way at the deadline.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from echod.server import kernel

if TYPE_CHECKING:
    from echod.server.pool import Pool
    from echod.server.worker import Worker

TICK = 0.05  # seconds between two checks of a connection

BATCH = 100
"""What the timeouts and the drain may cost in one turn of the loop: 0.35 ms (measured)."""
CHECK = 1
"""The cost of a look at a connection."""
END = 20
"""The cost of ending one, with its line in the log."""

# In seconds. All of it together, with the time between checks and the end of the process (but for a slow sink of the log), is
# less than the 6 s beyond `timeouts.drain` that the documents promise.
QUIET = 0.25
"""A connection without a byte for this long, and for four round trips, gets FIN: what was under way has come by now."""
LAST_ECHO = 2.0
"""A client that goes on sending is still served for this long."""
LAST_READ = 4.5
"""A client that has sent its FIN, so that all it sent is here, may take this long to read its echo."""
LINGER = 1.0
"""After our FIN we read and drop for this long, for the client to close first."""


class Drain:
    """Ends all connections of a pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._cut: set[int] = set()  # connection numbers

    async def run(self, patience: float | None, at_once: asyncio.Future[None]) -> int:
        """Let connections finish for `patience` seconds (`None`: as long as they like), then end them.

        When `at_once` is done, all that are left are cut. Returns the number of connections that were cut.
        """
        finishing = asyncio.get_running_loop().create_task(self._finish(patience))
        at_once.add_done_callback(lambda _: finishing.cancel())
        try:
            await finishing
        except asyncio.CancelledError:
            await self.cut_all()
        return len(self._cut)

    async def _finish(self, patience: float | None) -> None:
        empty = asyncio.Event()

        def check() -> None:
            if not self._pool.in_use:
                empty.set()

        self._pool.when_free = check
        check()
        try:
            async with asyncio.timeout(patience):
                await empty.wait()
        except TimeoutError:
            await self.linger()

    async def linger(self) -> None:
        """Let each connection go on until it is quiet, then send FIN, then give it a moment to close."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        left = BATCH
        while self._pool.in_use:
            due = loop.time() + TICK
            await asyncio.sleep(TICK)
            if loop.time() - due > TICK:
                # The loop was held up, or the process stopped (SIGSTOP): first read what has come meanwhile.
                await asyncio.sleep(TICK)
            now = loop.time()
            for worker in list(self._pool.in_use.values()):
                if left <= 0:
                    await asyncio.sleep(0)
                    left = BATCH
                if worker.connection not in self._pool.in_use:
                    continue
                left -= CHECK
                if worker.finished is not None:
                    if now - worker.finished >= LINGER:
                        self._abort(worker)
                        left -= END
                elif _is_over(worker, now, now - began):
                    finish(worker, "drained", now)
                    left -= END

    async def cut_all(self) -> None:
        """End every connection now."""
        while self._pool.in_use:
            for count, worker in enumerate(list(self._pool.in_use.values()), 1):
                if count % (BATCH // END) == 0:
                    await asyncio.sleep(0)
                if worker.transport:  # else it has come back meanwhile, or gets none before the next round
                    self._abort(worker)
            await asyncio.sleep(0)

    def _abort(self, worker: Worker) -> None:
        self._cut.add(worker.connection)
        worker.abort("drained", reset=worker.paused)


def _is_over(worker: Worker, now: float, lingered: float) -> bool:
    quiet = min(worker.quiet_for(now)[0], lingered)
    info = kernel.info(worker.sock)
    if not worker.paused and quiet >= QUIET and (info is None or quiet >= 4 * info.rtt):
        return True
    if lingered < LAST_ECHO:
        return False
    return lingered >= LAST_READ or info is None or not info.peer_finished


def finish(worker: Worker, reason: str, now: float) -> None:
    """Send FIN after what is pending, then read and drop until the peer closes too.

    close(2) with unread input would send RST, and the peer would lose the echo that is still under way.
    """
    worker.finished = now
    if worker.transport and not worker.transport.is_closing():
        worker.reason = worker.reason or reason
        worker.transport.set_protocol(_Dropper(worker))
        worker.transport.resume_reading()
        worker.transport.write_eof()


class _Dropper(asyncio.Protocol):
    """The protocol of a connection that has sent FIN, in the place of its worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def data_received(self, data: bytes) -> None:
        self._worker.received += len(data)
        self._worker.dropped += len(data)

    def resume_writing(self) -> None:
        self._worker.paused = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._worker.connection_lost(exc)
