"""One run: the real daemon, the load on it, and what is left afterwards.

Knows nothing of what is said of it.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from typing import TYPE_CHECKING

from echod.client.admin_client import AdminClient
from echod.errors import Refusal
from tests.soak.books import Check, compare, read_log
from tests.soak.children import CONTEXT, Child, ChildError
from tests.soak.clients import DENIED, TIMEOUT
from tests.soak.crowd import bystander, crowd
from tests.soak.report import Run, Sample, growth
from tests.support.bystander import PATIENCE, rests
from tests.support.harness import LOCAL, Echod, reserved_port, until
from tests.support.scraping import Watcher, total

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.soak.clients import Books

    Over = Callable[[float, int], bool]
    """Says whether it is, by the seconds and the connections so far."""

SOCKET = "admin.sock"
CROWDS = 2
SIZES = (200, 300, 250)
"""Of the pool, in turn. One that shrinks lets go of workers, and would hide that some are lost."""
RESIZED = 30
"""Seconds between two changes of the size."""
CHUNK, OVERHEAD = 256_000, 4096
"""Bytes that a connection may hold at most."""
FIRST = b"libuv opens something with the first connection, and keeps it"
CONFIG = """\
[listen]
host = "{host}"
port = {port}
backlog = 4096
[pool]
size = {size}
when_full = "{when_full}"
[timeouts]
idle = "{timeout}s"
write = "{timeout}s"
[access]
per_source = 20
deny = ["{denied}0/24", "10.{number}.0.0/16"]
[admin]
socket = "{socket}"
http = "{host}:{http}"
"""
BAD = (("size =", "sizes ="), ("backlog = 4096", "backlog = 5"), ("[access]", "[access"), (f'"{TIMEOUT}s"', '"never"'))
"""What makes a good file a bad one: a wrong name, what needs a restart, no TOML, a wrong value."""


class Soak:
    """A daemon that runs, and those who come to it."""

    def __init__(self, daemon: Echod, config: Callable[[int], str], ports: tuple[int, int], run: Run) -> None:
        self.daemon = daemon
        self.run = run
        self.reloads = [0, 0]  # good, bad
        self.watcher = Watcher(ports[1], pause=0.1)
        self._port = ports[0]
        self._config = config
        self._admin = AdminClient([daemon.file.parent / SOCKET])
        self._crowds: list[Child[Books]] = []
        self._bystander: Child[Books] | None = None
        self._served: dict[str, int] = {}
        self._broken: list[str] = []
        self._good = 0  # the number of the file in force

    def __call__(self, over: Over) -> None:
        """Run the load until it is over, and enter what is left of it."""
        descriptors, memory = self._before()
        self._load(over)
        self._let_them_end()
        self._after(descriptors, memory)

    def _before(self) -> tuple[int, int]:
        """Use everything once, and return the descriptors and the memory that the daemon then has."""
        self.daemon.echo(FIRST)
        self.run.clients.book("first", "eof", len(FIRST), len(FIRST))
        self.watcher.scrape()
        self.watcher.client.close()
        until(lambda: not self._in_use(), what="the first connection closed")
        until(lambda: rests(self.daemon), what="those of the questions closed")
        return self.daemon.descriptors(), self.daemon.memory()

    def _load(self, over: Over) -> None:
        # The bystander comes first: a burst of the crowds fills the pool, and would have it refused.
        self._bystander = Child("bystander", bystander, self._port)
        until(self._bystander.news, what="the bystander's first echo")
        self._crowds = [Child(f"crowd {seed}", crowd, self._port, seed) for seed in range(CROWDS)]
        self.watcher.start()
        began = time.monotonic()
        for second in itertools.count():
            sample = self._look(began)
            if second % 10 == 0:
                said = f"{sample.at:5.0f} s, {sample.served:,} connections, {sample.memory / 1e6:.1f} MB"
                print(said, file=sys.stderr, flush=True)
            if self._broken or over(sample.at, sample.served):
                break
            self._admin.request("GET", "/connections")
            if second % 2:
                self._reload(second, bad=second % 4 == 3)
            time.sleep(max(0.0, began + second + 1 - time.monotonic()))

    def _look(self, began: float) -> Sample:
        for child in self._crowds:
            for word in child.news():
                self._served[child.name] = word.served
                if word.failures:
                    self._broken.append(f"{child.name} has {word.failures} failures")
        if self._bystander:
            self.run.echoes += [each._replace(at=each.at - began) for each in self._bystander.news()]
        memory, descriptors, in_use = self.daemon.memory(), self.daemon.descriptors(), self._in_use()
        sample = Sample(time.monotonic() - began, memory, descriptors, in_use, sum(self._served.values()))
        self.run.samples.append(sample)
        return sample

    def _reload(self, number: int, *, bad: bool) -> None:
        """Have the daemon read a file that has changed, for the better or the worse."""
        text = self._config(number)
        self._good = self._good if bad else number
        self.daemon.file.write_text(text.replace(*BAD[number // 4 % len(BAD)]) if bad else text)
        code, answer = self._admin.request("POST", "/reload")
        self.reloads[bad] += 1
        if code != (422 if bad else 200):
            self._broken.append(f"reload {number} was answered by {code}, {answer}")

    def _in_use(self) -> int:
        return self._pool()["in_use"]

    def _pool(self) -> dict[str, int]:
        pool: dict[str, int] = self._admin.request("GET", "/status")[1]["pool"]
        return pool

    def _let_them_end(self) -> None:
        """Have no more clients come, and wait for those who are there."""
        children = [*self._crowds, *([self._bystander] if self._bystander else [])]
        for child in children:
            child.end()
        for child in children:
            self.run.clients.add(child.result())
        self.watcher.over.set()
        self.watcher.join()

    def _after(self, descriptors: int, memory: int) -> None:
        run, daemon = self.run, self.daemon
        self._reload(self._good // RESIZED * RESIZED, bad=False)  # of the same size
        broken = self._broken + self.watcher.wrong[:3]
        good, bad = self.reloads
        done = f"{good} good and {bad} bad reloads, {self.watcher.scrapes} scrapes, no counter went backwards"
        self._enter("beside", not broken, "; ".join(broken) or done)
        run.checks.append(growth(run.last_half))
        most, bound = max(each.memory for each in run.samples), memory + max(SIZES) * (CHUNK + OVERHEAD)
        found = f"at most {most / 1e6:.1f} MB, {memory / 1e6:.1f} before; the bound is {bound / 1e6:.1f}"
        self._enter("memory's bound", most <= bound, found)
        longest = max((each.longest for each in run.echoes), default=0.0)
        self._enter("latency", longest < PATIENCE, f"the longest echo took {longest * 1e3:.1f} ms")
        self._settles("all have left", lambda: not self._in_use(), lambda: f"{self._in_use()} workers in use")
        size = self._pool()["size"]
        served, refused = self._seats(size)
        found = f"{served} of {size} serve at one time, {refused} of one more is refused"
        self._enter("workers", (served, refused) == (size, 1), found)
        self._settles(
            "descriptors",
            lambda: daemon.descriptors() == descriptors,
            lambda: f"{descriptors} before, {daemon.descriptors()} after",
        )
        self._settles("rest", lambda: rests(daemon), lambda: "the processor's, when there is nothing to do")

    def _seats(self, size: int) -> tuple[int, int]:
        """Have as many clients as there are workers, and one more; return how many of these are served and refused."""
        books = self.run.clients
        with contextlib.ExitStack() as stack:
            for number in range(size + 1):
                source = f"127.1.{number // 200}.{1 + number % 200}"
                sock = stack.enter_context(self.daemon.connect(source=source))
                if number == size:
                    books.book("one more", "failed" if sock.recv(1) else "refused")
                else:
                    sock.sendall(b"x")
                    books.book("last", "eof" if sock.recv(1) == b"x" else "failed", 1, 1)
        return books.ended["last", "eof"], books.ended["one more", "refused"]

    def _enter(self, name: str, kept: object, found: str) -> None:
        self.run.checks.append(Check(name, bool(kept), found))

    def _settles(self, name: str, condition: Callable[[], bool], found: Callable[[], str]) -> None:
        """Enter whether this comes to hold, and what was found then."""
        with contextlib.suppress(AssertionError):
            until(condition, interval=0.1)
        self._enter(name, condition(), found())


def soak(run: Run, directory: Path, over: Over) -> None:
    """Do it all, in this directory, until it is over; enter what was found."""
    log_end, daemon_end = CONTEXT.Pipe(duplex=False)
    log = Child("log", read_log, log_end)
    with reserved_port() as port, reserved_port() as http:

        def config(number: int) -> str:
            return CONFIG.format(
                host=LOCAL,
                port=port,
                size=SIZES[number // RESIZED % len(SIZES)],
                when_full="wait" if number % 20 == 1 else "reject",
                timeout=TIMEOUT,
                denied=DENIED,
                number=number % 256,
                socket=directory / SOCKET,
                http=http,
            )

        try:
            with daemon_end:
                daemon = Echod(config(0), directory=directory, stdout=daemon_end.fileno(), port=port)
            with daemon:
                one = Soak(daemon, config, (port, http), run)
                one(over)
                until(lambda: not total(one.watcher.scrape(), "echod_connections_in_use"), what="the last ones' end")
                metrics = one.watcher.scrape()
                one.watcher.client.close()
        except (AssertionError, ChildError, OSError, Refusal) as error:
            run.checks.append(Check("daemon", kept=False, found=repr(error)))
        else:
            run.checks += compare(run.clients, log.result(), metrics, (one.reloads[0], one.reloads[1]))
