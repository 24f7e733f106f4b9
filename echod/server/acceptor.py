"""The accept loop: from a listening socket to a worker.

Knows nothing of settings, of how sockets get bound, and of who may come in. It accepts by hand, because asyncio's
servers take whatever the kernel has: here a batch is bounded, and with "wait" nothing is accepted while no worker is
free.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Any, Literal

from echod.server import kernel
from echod.server.addresses import unmapped

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from echod.log import Logger
    from echod.server.access import Access
    from echod.server.pool import Pool
    from echod.server.rejections import Rejections
    from echod.server.tcp import Listener
    from echod.server.worker import Worker

BATCH = 64
"""Connections accepted before the loop goes on with those that are open."""

PAUSE = 0.1
"""Seconds without accepting after an error of the system."""

State = Literal["accepting", "waiting", "paused", "retired"]
"""Of an acceptor: "waiting" for a worker, "paused" after an error, "retired" but for those in its backlog."""

_GONE = frozenset(
    {
        # The connection failed before it was accepted (accept(2), "Error handling"): the next one may be good.
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    }
)


class Acceptor:
    """Gives the connections of one listener to the pool.

    With `waits`, it accepts only while a worker is free, and has to be told with `resume` when one is again.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: Logger,
        listener: Listener,
        pool: Pool,
        *,
        access: Access,
        rejections: Rejections,
        waits: bool,
    ) -> None:
        self._loop = loop
        self._log = log
        self.listener = listener
        self._family = listener.sock.family  # an enum, looked up at each access
        self._pool = pool
        self._access = access
        self._rejections = rejections
        self.waits = waits
        self._reading = False
        self._retired: Callable[[Acceptor], None] | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._failures = 0  # of accept, in a row
        self._paused: tuple[float, str] | None = None  # since when, and the error's name
        self.paused_seconds = 0.0  # in all

    def resume(self) -> None:
        """Accept from now on; does nothing if it already does, or during a pause after an error."""
        if not self._reading and self._pause is None:
            self._loop.add_reader(self.listener.sock, self._accept_batch)
            self._reading = True

    def retire(self, done: Callable[[Acceptor], None]) -> None:
        """Accept who waits in the backlog, then stop listening and call `done`: nobody there gets a reset."""
        self._retired = done
        self.listener.sock.listen(0)  # nobody joins the queue, so that it comes to its end
        if not self._ends():
            self.resume()

    def revive(self) -> None:
        """Go on after all."""
        if self._retired:
            self._retired = None
            self.listener.sock.listen(self.listener.backlog)

    @property
    def state(self) -> State:
        """What becomes of a client that comes now."""
        if self._retired:
            return "retired"
        if self._pause:
            return "paused"
        if self.waits and not self._pool.free:
            return "waiting"
        return "accepting"

    @property
    def is_retired(self) -> bool:
        """Whether it goes on only for those who wait."""
        return self._retired is not None

    def _ends(self) -> bool:
        """Stop listening if retired and nobody waits; say whether it did."""
        if not self._retired or kernel.queued(self.listener.sock):
            return False
        self._end()
        self._retired(self)
        return True

    def close(self) -> None:
        """Take what the kernel has completed, as far as there are workers, and stop listening.

        Whoever is left in the backlog after that gets a reset from the kernel. On a socket that is not ours alone, the
        next process serves them, and nobody is taken now who might have to be cut.
        """
        self._cancel_pause()
        for _ in range(0 if self.listener.inherited else kernel.queued(self.listener.sock)):
            if not self._pool.free or not self._accept():
                break
        self._end()

    def _end(self) -> None:
        self._suspend()
        self._cancel_pause()
        self.listener.sock.close()

    def _suspend(self) -> None:
        if self._reading:
            self._loop.remove_reader(self.listener.sock)
            self._reading = False

    def _accept_batch(self) -> None:
        try:
            for _ in range(BATCH):
                if self.waits and not self._pool.free:
                    self._suspend()
                    break
                if not self._accept():
                    break
        finally:  # also if the last one failed: nothing else would wake a retired listener
            self._ends()

    def _accept(self) -> bool:
        """Accept one connection; say whether there may be more."""
        try:
            # Without the wrapper of `accept()`, which looks up enums; the descriptor becomes a socket below.
            fd, address = self.listener.sock._accept()  # type: ignore[attr-defined] # noqa: SLF001
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._failures += 1
            if error.errno in _GONE and self._failures < BATCH:
                return True
            self._pause_after(error)
            return False
        self._failures = 0
        if self._paused:
            self._recovered(*self._paused)
        sock = None
        try:
            sock = socket.socket(self._family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fd)
            client = unmapped(address[0]), address[1]
            reason = self._access.refusal(client[0], full=not self._pool.free)
            if reason:
                self._reject(sock, client, reason)
            else:
                self._admit(sock, client)
        except BaseException:  # such as no memory, anywhere: the client must not wait for nothing
            if sock:
                _close(sock)
            else:
                os.close(fd)
            raise
        return True

    def _admit(self, sock: socket.socket, client: tuple[str, int]) -> None:
        worker = self._pool.take(sock, client, self.listener)
        # A task per connection would cost more than the rest of this function. The coroutine needs none: it waits
        # once, for connection_made, which uvloop has put into the loop's queue before it waits.
        try:
            opening = self._loop.connect_accepted_socket(lambda: worker, sock)
            opening.send(None)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost the worker and the descriptor
            try:
                self._pool.release(worker, error)
            finally:
                _close(sock)
            return
        self._loop.call_soon(self._opened, opening, worker)

    def _opened(self, opening: Coroutine[Any, Any, Any], worker: Worker) -> None:
        """Let the coroutine run to its end, which it has reached by now."""
        try:
            opening.send(None)
        except StopIteration:
            pass
        except Exception as error:  # noqa: BLE001 - likewise; the coroutine has closed the transport
            self._pool.release(worker, error)

    def _reject(self, sock: socket.socket, client: tuple[str, int], reason: str) -> None:
        with sock, contextlib.suppress(OSError):  # the client may have gone already
            # With FIN first, a client that has sent already reads EOF and not the reset that close(2) sends then.
            sock.shutdown(socket.SHUT_WR)
        self._rejections.log(client, self.listener.url, reason)

    def _pause_after(self, error: OSError) -> None:
        """Stop accepting for a moment: the listener stays readable, and the loop would spin."""
        self._suspend()
        self._failures = 0
        self._pause = self._loop.call_later(PAUSE, self._end_pause)
        if self._paused is None:
            reason = errno.errorcode.get(error.errno or 0, str(error))
            self._paused = self._loop.time(), reason
            self._log.warning("accept.paused", listener=self.listener.url, reason=reason, seconds=PAUSE)

    def _end_pause(self) -> None:
        self._pause = None
        self.paused_seconds += PAUSE
        self.resume()

    def _cancel_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()

    def _recovered(self, since: float, reason: str) -> None:
        self._paused = None
        seconds = round(self._loop.time() - since, 6)
        self._log.info("accept.resumed", listener=self.listener.url, reason=reason, seconds=seconds)


def _close(sock: socket.socket) -> None:
    try:  # noqa: SIM105 - contextlib.suppress takes memory, and there may be none
        sock.close()
    except OSError:  # uvloop has closed the descriptor, if it failed late
        pass
