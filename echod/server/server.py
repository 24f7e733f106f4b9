"""The server: all that serves clients, made once, and the one place where settings reach it.

A start is the first `apply`, a reload the next one. Each binds first and may be refused there; after that it can't fail.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

from echod import limits
from echod.config import certificates
from echod.errors import Refusal
from echod.histogram import Histogram
from echod.networks import Ranges
from echod.server.acceptor import Parts
from echod.server.access import Access, Rules
from echod.server.admission import MOST, TURNS, Admission
from echod.server.drain import Drain
from echod.server.listeners import Listeners, prepare_kinds
from echod.server.pool import Pool
from echod.server.proxies import Proxies
from echod.server.rejections import Rejections
from echod.server.timeouts import Timeouts
from echod.server.tls import Handshakes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from echod.config.settings import Settings
    from echod.log import Log
    from echod.server.datagrams import Datagrams
    from echod.server.endpoint import Listener
    from echod.server.worker import Worker

State = Literal["starting", "running", "draining"]
Readiness = Literal["ready", "starting", "draining", "lame duck", "not listening", "pool full", "paused"]

LAGS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds by which the loop may be late; its clock tells milliseconds."""

HEADER_GRACE = 0.25
"""Seconds that a drain waits for the PROXY headers of accepted connections: what was under way has come by then."""

FREED = 1000
"""Workers whose memory is freed before the loop goes on: 0.1 ms."""


class Prepared(NamedTuple):
    """What `apply` takes ready-made, because making it takes time."""

    rules: Rules
    proxies: Ranges
    workers: list[Worker]
    tls: certificates.Loaded | None


class LameDuck(NamedTuple):
    """Since when a running server is not ready any more, and until when; `None`: until that is taken back.

    Both are moments of `time.monotonic`.
    """

    since: float
    until: float | None = None


class Server:
    """Listeners, pool, access and timeouts of one process.

    `inherited` are listeners that replace those of the settings. `checked` is called after each check of the timeouts, once a
    second or more often.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: Log,
        *,
        inherited: Sequence[Listener] = (),
        checked: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._log = log
        self._checked = checked
        self.state: State = "starting"
        self.lame_duck: LameDuck | None = None
        self.began = time.monotonic()
        self.lag = Histogram(*LAGS)
        self.settings: Settings
        self.pool = Pool(log)
        self.rejections = Rejections(loop, log)
        self._access = Access(loop, self.pool.sources)
        self._timeouts = Timeouts(loop, log, self.pool, self._on_check)
        self._admission = Admission(loop, self.pool, self._access, self.rejections, self._timeouts.watch)
        self.proxies = Proxies(loop, log, self.pool, self._access, self._admission)
        self.udp: Datagrams | None = None
        self.handshakes = Handshakes(loop, log, self.pool, self.rejections)
        self._admission.late = self.handshakes.turns
        parts = Parts(loop, log, self.pool, self._admission, self._datagrams, self.handshakes, line={})
        self.listeners = Listeners(parts, inherited=inherited)

    def prepare(self, settings: Settings) -> Prepared:
        """Build the rules and workers, and read the certificate, which is slow. Safe in any thread. Raises `Refusal`."""
        prepare_kinds(settings)
        workers = self.pool.make(settings.pool.size - self.pool.size)
        return Prepared(Rules.of(settings.access), Ranges(settings.access.proxies), workers, _certificate(settings))

    def apply(self, settings: Settings, prepared: Prepared | None = None) -> None:
        """Serve by these settings from now on, or raise `Refusal`; then nothing but the limit of descriptors has changed."""
        rules, proxies, workers, certificate = prepared or self.prepare(settings)
        proxied = bool(settings.access.proxies)
        limits.raise_soft_limit(limits.needed(settings.pool.size, proxied=proxied))
        bound = self.listeners.bind(settings)
        # The commit: nothing from here on can be refused.
        self.settings = settings
        self.pool.lifecycle = settings.log.connections
        self._free_some(self.pool.resize(settings.pool.size, workers))
        self._access.replace(rules)
        timeouts = settings.timeouts
        self.proxies.set(proxies, timeouts.handshake)
        self._admission.entrance = self.proxies.admit if proxied else self._admission.admit
        self._timeouts.set(idle=timeouts.idle, write=timeouts.write, lifetime=timeouts.lifetime)
        self.handshakes.set(settings, certificate)
        self.listeners.serve(settings, bound)
        if self.udp:
            self.udp.set(settings.udp)
        self._log.configure(settings.log)
        if self.state == "starting":  # not after a stop signal: a reload may end between it and the drain
            self.state = "running"

    def _datagrams(self) -> Datagrams:
        """Return what all sockets of UDP share, made for the first of them: without UDP, nothing of it is imported."""
        if self.udp is None:
            from echod.server.datagrams import Datagrams  # noqa: PLC0415

            self.udp = Datagrams(self._loop, self._log, self._access)
        return self.udp

    def _free_some(self, workers: list[Worker]) -> None:
        """Free the memory of these workers, with turns of the loop for others in between."""
        del workers[-FREED:]
        if workers:
            self._loop.call_soon(self._free_some, workers)

    def _on_check(self, late: float) -> None:
        self.lag.observe(late)
        self.listeners.retry(self.settings)
        self._checked()

    def set_lame_duck(self, *, on: bool) -> None:
        """Be not ready but go on accepting, or take that back. Raises `Refusal` if the server starts or stops."""
        duck = self.lame_duck
        if self.state != "running" or (duck and duck.until is not None and not on):
            raise Refusal("the daemon starts" if self.state == "starting" else "the daemon stops")
        if on and not duck:
            self._be_lame_duck(LameDuck(time.monotonic()), None, "`echod lame-duck --off` takes it back")
        elif duck and not on:
            self.lame_duck = None
            self._log.info("daemon.lame_duck_ended", seconds=round(time.monotonic() - duck.since, 6))

    def prepare_stop(self) -> None:
        """Be not ready from now on: for `timeouts.lame_duck` as a lame duck, and then for the drain.

        That time begins when the server became a lame duck: a balancer that has had it once needs no second one.
        """
        now = time.monotonic()
        since = self.lame_duck.since if self.lame_duck else now
        left = since + (self.settings.timeouts.lame_duck or 0.0) - now if self.state == "running" else 0.0
        if left > 0:
            self._be_lame_duck(LameDuck(since, now + left), left, "another TERM or INT (Ctrl-C) begins the drain")
        else:
            self.begin_drain()

    def begin_drain(self) -> None:
        """Be about to `drain`, and no lame duck any more."""
        self.state, self.lame_duck = "draining", None

    def _be_lame_duck(self, duck: LameDuck, left: float | None, message: str) -> None:
        self.lame_duck = duck
        timeout = None if left is None else round(left, 6)
        self._log.info("daemon.lame_duck", in_use=len(self.pool.in_use), timeout=timeout, message=message)

    @property
    def probes(self) -> int:
        """Connections that were checks: ended by the client without a byte, or of a load balancer itself."""
        return self.pool.unused + self.proxies.probes + self.handshakes.probes

    @property
    def readiness(self) -> Readiness:
        """Whether a client that connects now is served, and should come: "ready", or why not."""
        if self.state != "running":
            return self.state
        if self.lame_duck:
            return "lame duck"
        states = {each.state for each in self.listeners.acceptors} - {"retired", "missing"}
        if not states:
            return "not listening"
        if not self.pool.free:
            return "pool full"
        # Of UDP, only a server without any other listener is ready.
        return "ready" if "accepting" in states or states == {"answering"} else "paused"

    @property
    def is_accepting(self) -> bool:
        """Whether a client that connects now is accepted by some listener."""
        return self.state == "running" and any(each.state == "accepting" for each in self.listeners.acceptors)

    async def drain(self, patience: float | None, at_once: asyncio.Future[None]) -> int:
        """Stop listening, and end all connections as `Drain.run` does; return the number of those that were cut."""
        self.listeners.close()
        began = self._loop.time()
        await self.proxies.finish(HEADER_GRACE if patience is None else min(HEADER_GRACE, patience), at_once)
        # Connections on hold are judged as at any time. None joins them now, and each that gets a worker renews their turns.
        for _ in range(TURNS * MOST + self._admission.late(None)):
            if not self._admission.held:
                break
            await asyncio.sleep(0)
        self._admission.settle()
        self.rejections.flush()
        left = None if patience is None else max(0.0, patience - (self._loop.time() - began))
        return await Drain(self.pool).run(left, at_once)

    def close(self) -> None:
        """Stop the timer, and close what a drain that was interrupted has left."""
        self._timeouts.close()
        self.proxies.close()


def _certificate(settings: Settings) -> certificates.Loaded | None:
    return None if settings.tls.port is None else certificates.load(settings.tls)
