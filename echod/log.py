"""Logging: structlog's set-up, and the sink that never blocks the event loop.

Knows nothing of what is logged; the names of the events stand where they happen.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import orjson
import structlog

from echod import systemd

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from structlog.typing import EventDict, FilteringBoundLogger, Processor

    from echod.config import settings

_GATHER = 0.005
"""Seconds the writer waits for company before it writes: one system call for many lines."""
_BATCH = 256
"""Lines written at once; joining more would hold the interpreter's lock for long."""
_RETRY = 1.0
"""Seconds between attempts on a sink that fails."""
_LAST_ATTEMPTS = 5


class Sink:
    """Writes lines to a descriptor from a thread of its own, so that a slow, full or broken one delays nobody.

    A thread, and not O_NONBLOCK: that flag is shared with every process that has the same open file (fcntl(2)), and
    regular files ignore it. At most `limit` lines are held; beyond, the newest are dropped, counted, and reported
    through `dropped_line` after each batch that could be written. A failed write is tried again until `close`.
    `limit` may be changed at any time.
    """

    def __init__(self, fd: int, limit: int, dropped_line: Callable[[int], bytes]) -> None:
        self._fd = fd
        self.limit = limit
        self._dropped_line = dropped_line
        self._lines: deque[bytes] = deque()
        self._held = 0  # lines not yet written: those in the queue and those the writer has in hand
        self._dropped = 0  # lines, since the last report
        self.dropped = 0  # lines, ever
        self._closing = False
        self._idle = True
        self._written = 0  # bytes, ever
        # Taken as itself and not as the condition, which lets go of it in Python: that takes memory, and without any it would
        # stay locked. An RLock, as a finalizer may log while this thread has it.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Take a line, with its newline. Never blocks."""
        with self._lock:
            if self._held >= self.limit:
                self._dropped += 1
                self.dropped += 1
                return
            self._lines.append(line)
            self._held += 1
            if self._idle:
                self._changed.notify()
                self._idle = False

    def close(self, patience: float) -> None:
        """Write what is held, but give up on a sink that takes nothing for `patience` seconds, or little in five times that."""
        with self._lock:
            self._closing = True
            self._changed.notify()
        written = -1
        for _ in range(_LAST_ATTEMPTS):
            if written == self._written:
                break
            written = self._written
            self._thread.join(patience)

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        while True:
            with self._lock:
                self._idle = not self._lines and not self._dropped
                self._changed.wait_for(lambda: not self._idle or self._closing)
                if not self._lines and not self._dropped:
                    return
            if len(self._lines) < _BATCH and not self._closing:
                time.sleep(_GATHER)
            with self._lock:
                number = min(_BATCH, len(self._lines))
                try:
                    batch = b"".join(itertools.islice(self._lines, number))
                except MemoryError:  # the lines stay, and there may be room later
                    self._changed.wait(_RETRY)
                    continue
                for _ in range(number):
                    self._lines.popleft()
            self._write(batch)
            with self._lock:
                self._held -= number
                dropped, self._dropped = self._dropped, 0
            if dropped:
                self._write(self._dropped_line(dropped))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                written = os.write(self._fd, view)
            except BlockingIOError:  # somebody else made it non-blocking
                with contextlib.suppress(OSError):
                    select.select([], [self._fd], [], _RETRY)
            except OSError:
                with self._lock:
                    if self._closing:
                        return
                    self._changed.wait(_RETRY)
            else:
                self._written += written
                view = view[written:]


class Logger(Protocol):
    """What everyone logs with: an event's name, and its fields."""

    def info(self, event: str, /, **fields: Any) -> Any: ...  # noqa: ANN401, D102 - as structlog has it
    def warning(self, event: str, /, **fields: Any) -> Any: ...  # noqa: ANN401, D102
    def error(self, event: str, /, **fields: Any) -> Any: ...  # noqa: ANN401, D102
    def exception(self, event: str, /, **fields: Any) -> Any: ...  # noqa: ANN401, D102


class Log:
    """The daemon's log, a `Logger` whose form and level can be changed while others hold it.

    If the output is the journal, each line begins with its priority.
    """

    info: Callable[..., Any]
    warning: Callable[..., Any]
    error: Callable[..., Any]
    exception: Callable[..., Any]

    def __init__(self, output: TextIO, settings: settings.Log, *, journal: bool = False) -> None:
        self._terminal = os.isatty(output.fileno())
        self._journal = journal
        self._sink = Sink(output.fileno(), settings.queue, self._dropped_line)
        self.configure(settings)
        self._capture()

    def configure(self, settings: settings.Log) -> None:
        """Log in this form, from this level on, and hold that many lines."""
        console = settings.format == "console" or (settings.format == "auto" and self._terminal)
        self._chain: list[Processor]
        if console:
            colors = self._terminal and not os.environ.get("NO_COLOR")
            self._chain = [_stamp, _flat, structlog.dev.ConsoleRenderer(colors=colors, sort_keys=False), _line]
        else:
            self._chain = [_json]  # all in one: two of these lines a connection are most of what a short one costs
        if self._journal:
            self._chain.append(_prioritized)
        self._sink.limit = settings.queue
        bound = structlog.wrap_logger(
            _Output(self._sink.put),
            processors=self._chain,
            wrapper_class=structlog.make_filtering_bound_logger(settings.level),
            context_class=dict,
        ).bind()
        self.info = bound.info
        self.warning = bound.warning
        self.error = bound.error
        self.exception = bound.exception
        logging.getLogger().setLevel(settings.level.upper())
        logging.getLogger().handlers[:] = [_Handler(bound)]

    @property
    def dropped(self) -> int:
        """The number of lines that were dropped so far."""
        return self._sink.dropped

    def close(self, patience: float = 1.0) -> None:
        """Write what is held, and let Python's own log, warnings and exceptions go to standard error again."""
        logging.captureWarnings(capture=False)
        logging.getLogger().handlers.clear()
        sys.excepthook = sys.__excepthook__
        threading.excepthook = threading.__excepthook__
        sys.unraisablehook = sys.__unraisablehook__
        self._sink.close(patience)

    def _capture(self) -> None:
        """Bring in what comes neither through structlog nor through `logging`: warnings, exceptions that nobody caught."""
        logging.captureWarnings(capture=True)
        sys.excepthook = self._uncaught
        threading.excepthook = lambda args: self._uncaught(
            args.exc_type, args.exc_value, args.exc_traceback, f"in thread {args.thread and args.thread.name}"
        )
        sys.unraisablehook = lambda args: self._uncaught(
            args.exc_type, args.exc_value, args.exc_traceback, args.err_msg or f"in {args.object!r}"
        )

    def _uncaught(
        self,
        kind: type[BaseException],
        exc: BaseException | None,
        traceback: TracebackType | None,
        where: str = "in the main thread",
    ) -> None:
        message = f"uncaught {kind.__name__} {where}"
        self.error("internal.error", message=message, exc_info=(kind, exc, traceback))

    def _dropped_line(self, lines: int) -> bytes:
        event: Any = {"event": "log.dropped", "lines": lines}
        for process in self._chain:
            event = process(None, "warning", event)
        return bytes(event)


class _Output:
    """What structlog calls a logger: a method for each level; all lead to one place."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = put


class _Handler(logging.Handler):
    """Brings the standard library's log records into the same log."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - the format and its arguments are the caller's
            message = f"{record.msg} % {record.args!r}"
        level = min(logging.ERROR, max(logging.DEBUG, record.levelno // 10 * 10))  # to one of the four we have
        event = f"internal.{logging.getLevelName(level).lower()}"
        self._log.log(level, event, message=message, logger=record.name, exc_info=record.exc_info)


def _now() -> str:
    """Return the time by RFC 3339, in UTC, with microseconds also when they are 0."""
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    return f"{_second(seconds)}.{microseconds:06}Z"


@functools.lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _stamp(_: object, level: str, event: EventDict) -> EventDict:
    """Put first what every line begins with."""
    return {"timestamp": _now(), "level": level, "event": event.pop("event"), **event}


def _flat(_: object, __: str, event: EventDict) -> EventDict:
    """Write what is nested as people read it: client.address=192.0.2.1."""
    flat: EventDict = {}
    for name, value in event.items():
        flat.update(
            {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
        )
    return flat


def _json(logger: object, level: str, event: EventDict) -> bytes:
    if "exc_info" in event:
        event = structlog.processors.format_exc_info(logger, level, event)
    line = _stamp(logger, level, event)
    try:
        return orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # text from outside that is no Unicode, such as a file's name: the standard library escapes it
        return json.dumps(line, default=str).encode() + b"\n"


def _line(_: object, __: str, rendered: Any) -> bytes:  # noqa: ANN401 - the renderer's str; structlog types it as a dict
    return bytes(rendered.encode(errors="backslashreplace")) + b"\n"


def _prioritized(_: object, level: str, line: Any) -> bytes:  # noqa: ANN401 - bytes, likewise
    return f"{systemd.prefixed(level, line[:-1].decode())}\n".encode()
