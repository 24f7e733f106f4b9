"""The log: lines of JSON through a sink that never blocks."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from echod import log as module
from echod.config import settings
from echod.log import Held, Log, Sink
from echod.output import Output
from tests.support.harness import DEADLINE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from echod.config.settings import Format, Level

PIPE_SIZE = 65536


class Pipe:
    """A pipe whose writing end is a text stream, like standard output."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        self.output = os.fdopen(writer, "w")

    def read_all(self) -> bytes:
        """Close the writing end and read to the end."""
        self.output.close()
        data = b""
        while chunk := os.read(self.reader, PIPE_SIZE):
            data += chunk
        return data

    def close_reader(self) -> None:
        """Let a write fail with EPIPE."""
        os.close(self.reader)
        self.reader = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.output.close()
    if pipe.reader >= 0:
        pipe.close_reader()


@pytest.fixture
def log(pipe: Pipe) -> Iterator[Log]:
    """A log as the daemon has it, which writes JSON lines to the pipe."""
    made = Log(pipe.output, settings.Log(level="debug", format="json", queue=1000))
    yield made
    made.close()


def written(log: Log, pipe: Pipe) -> list[dict[str, Any]]:
    """Close the log and return all of its lines."""
    log.close()
    return [json.loads(line) for line in pipe.read_all().splitlines()]


def say(log: Log) -> None:
    """Log an event of each level with the log (which has no debug) and with the standard library."""
    for name, event in zip(("debug", "info", "warning", "error"), "abcd", strict=True):
        if name != "debug":
            getattr(log, name)(event)
        getattr(logging.getLogger("library"), name)(event)


def said(log: Log, pipe: Pipe) -> list[str]:
    """Log these events and return what is written."""
    say(log)
    return [line.get("message", line["event"]) for line in written(log, pipe)]


def dropped(lines: int) -> bytes:
    return b"dropped %d\n" % lines


# The sink


def test_lines_are_written_in_order(pipe: Pipe) -> None:
    """This holds for more lines than one write takes."""
    sink = Sink(Output(pipe.output.fileno()), 10_000, dropped)
    lines = [b"%d\n" % number for number in range(3 * module._BATCH)]
    for line in lines:
        sink.put(line)
    sink.close(DEADLINE)
    assert pipe.read_all() == b"".join(lines)


def test_a_full_pipe_delays_nobody_and_drops_are_reported(pipe: Pipe) -> None:
    """The newest lines are dropped, and the number of all lines adds up."""
    limit, size, total = 100, 1000, 1000
    sink = Sink(Output(pipe.output.fileno()), limit, dropped)
    for number in range(total):
        sink.put(b"%0*d\n" % (size - 1, number))
    data = bytearray()
    while b"dropped" not in data:
        data += os.read(pipe.reader, PIPE_SIZE)
    sink.put(b"after\n")
    sink.close(DEADLINE)
    data += pipe.read_all()
    *lines, report, after = data.splitlines()
    assert after == b"after"
    assert [int(line) for line in lines] == list(range(len(lines)))
    assert limit <= len(lines) <= limit + PIPE_SIZE // size + module._BATCH
    assert report == b"dropped %d" % (total - len(lines))


def test_a_sink_that_fails_is_tried_again(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk may have room later. No line is lost, and closing makes a last attempt."""
    monkeypatch.setattr(module, "_RETRY", 0.01)
    failures = [errno.ENOSPC, errno.EIO, errno.EPIPE]
    real_write = os.write

    def write(fd: int, data: memoryview) -> int:
        if failures:
            raise OSError(failures.pop(0), "no")
        return real_write(fd, data)

    monkeypatch.setattr(os, "write", write)
    sink = Sink(Output(pipe.output.fileno()), 10, dropped)
    sink.put(b"one\n")
    sink.put(b"two\n")
    until(lambda: not failures)
    sink.close(DEADLINE)
    assert pipe.read_all() == b"one\ntwo\n"


def test_a_write_that_takes_a_part_is_continued(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is incomplete or written twice."""
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, data[:3]))
    sink = Sink(Output(pipe.output.fileno()), 10, dropped)
    sink.put(b"a line of some length\n")
    sink.close(DEADLINE)
    assert pipe.read_all() == b"a line of some length\n"
    assert sink._written == len(b"a line of some length\n")


def test_a_non_blocking_descriptor_is_waited_for(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag is shared with other processes, so the sink leaves it as it is. Room in the pipe ends the wait."""
    monkeypatch.setattr(module, "_RETRY", 1000.0)
    os.set_blocking(pipe.output.fileno(), False)
    lines = [b"x" * 999 + b"\n"] * (3 * PIPE_SIZE // 1000)
    sink = Sink(Output(pipe.output.fileno()), len(lines), dropped)
    for line in lines:
        sink.put(line)
    data = bytearray()
    while len(data) < sum(map(len, lines)):
        data += os.read(pipe.reader, PIPE_SIZE)
    sink.close(DEADLINE)
    assert data == b"".join(lines)


def test_close_gives_up_on_a_sink_that_takes_nothing(pipe: Pipe) -> None:
    """The daemon must stop although nobody reads its log."""
    sink = Sink(Output(pipe.output.fileno()), 1000, dropped)
    for _ in range(1000):
        sink.put(bytes(1000))
    sink.close(0.1)
    assert sink._thread.is_alive()
    pipe.close_reader()  # and with an error it ends
    sink._thread.join(DEADLINE)
    assert not sink._thread.is_alive()


def test_close_gives_up_on_a_sink_that_fails() -> None:
    """The lines are lost."""
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123 - a descriptor is all it takes
        sink = Sink(Output(full.fileno()), 10, dropped)
        sink.put(b"lost\n")
        sink.close(DEADLINE)
        assert not sink._thread.is_alive()


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY", 0.01)


class Choosy(Output):
    """An output that takes some bytes, and fails then, as its steps say. While `go` is not set, a write waits."""

    def __init__(self, pipe: Pipe, *steps: int | OSError | None) -> None:
        super().__init__(pipe.output.fileno())
        self.steps = list(steps)
        self.taken = b""
        self.mended: list[OSError] = []
        self.waits, self.go = threading.Event(), threading.Event()
        self.go.set()

    def write(self, data: bytes, start: int) -> int:
        self.waits.set()
        assert self.go.wait(DEADLINE)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, OSError):
            raise step
        part = data[start : None if step is None else start + step]
        self.taken += part
        return len(part)

    def mend(self, error: OSError) -> bool:
        self.mended.append(error)
        return error.errno == errno.EPIPE


def put_together(sink: Sink, output: Choosy, *lines: bytes) -> None:
    """Let the writer find these lines all at once, after an empty one that the next step of the output takes."""
    output.go.clear()
    sink.put(b"\n")
    assert output.waits.wait(DEADLINE)
    for line in lines:
        sink.put(line)
    output.go.set()


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
NOT_NOW = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
BROKEN = BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize(
    ("steps", "lost"),
    [
        ((None,), 0),
        ((NO_SPACE,), 3),
        ((1, NO_SPACE), 3),
        ((4, NO_SPACE), 2),
        ((9, NO_SPACE), 1),
        ((12, NO_SPACE), 0),
        ((NO_SPACE, None), 0),
        ((NOT_NOW, None), 0),
    ],
)
@pytest.mark.usefixtures("no_pause")
def test_close_counts_the_lines_that_are_lost(pipe: Pipe, steps: tuple[int | OSError | None, ...], lost: int) -> None:
    """A line of which a part is written is lost too."""
    output = Choosy(pipe, None, *steps)
    sink = Sink(output, 10, dropped)
    sink._closing.set()  # so that the sink gives up
    put_together(sink, output, b"one\n", b"two\n", b"six\n")
    assert sink.close(DEADLINE) == lost
    assert not sink._thread.is_alive()


@pytest.mark.usefixtures("no_pause")
def test_dropped_lines_that_no_line_tells_of_are_lost_too(pipe: Pipe) -> None:
    """Whether the sink fails or hangs."""
    sink = Sink(Choosy(pipe, NO_SPACE), 2, dropped)
    for _ in range(10):
        sink.put(b"line\n")
    assert sink.close(DEADLINE) == 10
    hangs = Sink(Output(pipe.output.fileno()), 3, dropped)
    hangs.put(bytes(2 * PIPE_SIZE - 1) + b"\n")
    for _ in range(10):
        hangs.put(b"line\n")
    assert hangs.close(0.1) == 11


@pytest.mark.parametrize("error", [BROKEN, NO_SPACE])
@pytest.mark.usefixtures("no_pause")
def test_a_line_that_was_begun_is_written_again_only_to_a_new_stream(pipe: Pipe, error: OSError) -> None:
    """Where nobody has its beginning. A disk that has room again gets the rest of it."""
    output = Choosy(pipe, None, 6, error, None)
    sink = Sink(output, 10, dropped)
    put_together(sink, output, b"one\n", b"two\n")
    assert sink.close(DEADLINE) == 0
    assert output.mended == [error]
    assert output.taken == (b"\none\ntwtwo\n" if error is BROKEN else b"\none\ntwo\n")


class Stopped:
    """A clock that goes only when told to, for the sink alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now


@pytest.mark.usefixtures("no_pause")
def test_what_is_held_is_told_with_its_time_and_its_cause(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment at which the sink did not keep up; nothing before and after."""
    clock = Stopped(monkeypatch)
    output = Choosy(pipe, NO_SPACE)
    sink = Sink(output, 1000, dropped)
    assert sink.state == Held(0, None, None)
    for _ in range(3 * module._BATCH):
        sink.put(b"line\n")
    until(lambda: sink.state.error)
    clock.now += 7
    assert sink.state == Held(3 * module._BATCH, 7.0, "ENOSPC")
    output.steps = [None]
    until(lambda: sink.state == Held(0, None, None))
    clock.now += 7
    with sink._lock:
        sink.put(b"on its way\n")
        assert (sink.state.since or 0) == 0
    assert sink.close(DEADLINE) == 0


def test_lines_that_keep_moving_are_not_late(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long there have been lines all the time."""
    clock = Stopped(monkeypatch)
    output = Gate(pipe.output.fileno())
    sink = Sink(output, 100, dropped)
    sink.put(b"line\n")
    for _ in range(10):
        assert output.entered.acquire(timeout=DEADLINE)
        sink.put(b"line\n")  # beside the one that is being written
        clock.now += 1
        assert sink.state == Held(2, 1.0, None)
        output.leave.release()
    output.leave.release()
    assert sink.close(DEADLINE) == 0


class Gate(Output):
    """An output that tells when it is written to, and takes all when it is let."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.entered, self.leave = threading.Semaphore(0), threading.Semaphore(0)

    def write(self, data: bytes, start: int) -> int:
        self.entered.release()
        assert self.leave.acquire(timeout=DEADLINE)
        return len(data) - start


@pytest.mark.parametrize("trouble", ["ENOENT", None])
def test_a_file_that_cannot_be_opened_again_is_told(pipe: Pipe, trouble: str | None) -> None:
    """Though all lines are written."""
    output = Choosy(pipe, None)
    sink = Sink(output, 10, dropped)
    output.error = trouble
    assert sink.state == Held(0, None, trouble)
    sink.close(DEADLINE)


@pytest.mark.parametrize(("takes", "attempts"), [(0, 1), (1, module._LAST_ATTEMPTS)])
def test_close_waits_longer_for_a_sink_that_takes_something(pipe: Pipe, takes: int, attempts: int) -> None:
    """A reader that takes a little each time delays the stop, but only by a bounded time."""
    joins: list[float] = []
    sink = Sink(Output(pipe.output.fileno()), 10, dropped)

    class Slow:
        def join(self, patience: float) -> None:
            joins.append(patience)
            sink._written += takes

    real, sink._thread = sink._thread, cast("threading.Thread", Slow())
    sink.close(0.5)
    assert sum(joins) == pytest.approx(0.5 * attempts)
    real.join()


def test_a_machine_that_stands_still_costs_no_lines(pipe: Pipe) -> None:
    """All the time that close has may be over before the writer runs again."""
    output = Choosy(pipe, None)
    output.go.clear()
    sink = Sink(output, 10, dropped)
    sink.put(b"last\n")
    real = sink._thread

    class Still:
        stands = True

        def join(self, _: float) -> None:
            if not self.stands:
                output.go.set()
                real.join(DEADLINE)
            self.stands = False

    sink._thread = cast("threading.Thread", Still())
    assert sink.close(0.1) == 0
    assert output.taken == b"last\n"


# The lines


def test_a_line_begins_with_time_level_and_event(log: Log, pipe: Pipe) -> None:
    """It is a JSON object. The time is in UTC by RFC 3339, with microseconds."""
    log.info("connection.opened", connection=1, client={"address": "192.0.2.1", "port": 7})
    log.close()
    raw = pipe.read_all()
    assert raw.endswith(b"\n")
    assert raw.count(b"\n") == 1
    line = json.loads(raw)
    assert list(line) == ["timestamp", "level", "event", "connection", "client"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.pop("timestamp"))
    assert line == {
        "level": "info",
        "event": "connection.opened",
        "connection": 1,
        "client": {"address": "192.0.2.1", "port": 7},
    }


@pytest.mark.parametrize("form", ["json", "console"])
def test_each_line_of_one_of_several_processes_names_it(pipe: Pipe, form: Format) -> None:
    """After the event, in lines of every origin and after a change of the settings."""
    log = Log(pipe.output, settings.Log(level="debug", format=form), instance="blue")
    log.info("one", more=1)
    log.configure(settings.Log(level="info", format=form))
    log.info("two")
    logging.getLogger("library").warning("three")
    log._sink.put(log._dropped_line(7))
    log.close()
    lines = pipe.read_all().decode().splitlines()
    assert len(lines) == 4
    if form == "json":
        assert {json.loads(line)["instance"] for line in lines} == {"blue"}
        assert list(json.loads(lines[0])) == ["timestamp", "level", "event", "instance", "more"]
    else:
        assert [line for line in lines if " instance=blue " not in f"{line} "] == []


@pytest.mark.parametrize(("level", "events"), [("debug", "abcd"), ("info", "bcd"), ("warning", "cd"), ("error", "d")])
def test_only_what_is_severe_enough_is_logged(pipe: Pipe, level: Level, events: str) -> None:
    """`log.level` applies to structlog and to the standard library."""
    log = Log(pipe.output, settings.Log(level=level, format="json", queue=100))
    assert said(log, pipe) == [event for event in "abcd" if event in events for _ in ("12" if event != "a" else "1")]


def test_the_level_can_be_changed(log: Log, pipe: Pipe) -> None:
    """The change applies to those who hold the log already, to the standard library, and to warnings."""
    for level in ("error", "debug", "warning"):
        log.configure(settings.Log(level=level, format="json"))
        say(log)
        _warning()
    lines = [line.get("message", line["event"]) for line in written(log, pipe)]
    shown = ["old" if "DeprecationWarning: old" in line else line for line in lines]
    assert shown == ["d", "d", "a", "b", "b", "c", "c", "d", "d", "old", "c", "c", "d", "d", "old"]


def test_an_uncaught_exception_is_logged_in_the_present_form(log: Log, pipe: Pipe) -> None:
    """Python's hooks were set when the log had another form."""
    log.configure(settings.Log(level="error", format="console"))
    _main_thread()
    log.close()
    raw = pipe.read_all()
    assert raw.count(b"internal.error") == 1
    assert b"\nValueError: why\n" in raw
    assert not raw.startswith(b"{")


def test_a_change_of_form_holds_for_what_comes_then(log: Log, pipe: Pipe) -> None:
    """The daemon's lines, the standard library's and the count of dropped lines change together."""
    for form in ("json", "console", "json"):
        log.configure(settings.Log(level="info", format=form))
        for name in ("info", "warning", "error", "exception"):
            getattr(log, name)("ours", exc_info=False)
        logging.getLogger("library").info("theirs")
        log._sink.put(log._dropped_line(3))
    log.close()
    lines = pipe.read_all().splitlines()
    assert [line.startswith(b"{") for line in lines] == [True] * 6 + [False] * 6 + [True] * 6
    words = [*[b"ours"] * 4, b"theirs", b"log.dropped"] * 3
    assert all(word in line for line, word in zip(lines, words, strict=True))


def test_each_change_leaves_one_handler(log: Log, pipe: Pipe) -> None:
    """With more, the standard library's lines would come twice."""
    for _ in range(3):
        log.configure(settings.Log(format="json"))
    logging.getLogger("library").warning("once")
    assert [line["message"] for line in written(log, pipe)] == ["once"]


def test_a_traceback_is_written_after_a_change(log: Log, pipe: Pipe) -> None:
    """The log still has the attributes of every logger."""
    log.configure(settings.Log(level="error", format="json"))
    for name in ("info", "warning"):
        getattr(log, name)("not severe enough")
    log.error("one", number=1)
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("two")
    one, two = written(log, pipe)
    assert (one["event"], one["number"], "exception" in one) == ("one", 1, False)
    assert (two["event"], "ValueError: why" in two["exception"]) == ("two", True)


def test_lines_that_are_held_take_little_more_memory_than_they_are_long(pipe: Pipe) -> None:
    """The memory that orjson makes for a line has room for 4 kB or more."""
    log = Log(pipe.output, settings.Log(format="json", queue=10_000))
    before = _anonymous()
    for number in range(10_000):
        log.info("held", number=number)
    assert _anonymous() - before < 10_000 * 1024
    pipe.close_reader()
    assert log.close() > 9000


def _anonymous() -> int:
    """Return the bytes of memory that this process has for itself."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


@pytest.mark.parametrize(("before", "after", "held"), [(5, 2, 5), (2, 5, 5), (5, 5, 5)])
def test_the_queue_can_be_changed(pipe: Pipe, before: int, after: int, held: int) -> None:
    """Lines that are held already stay. Later ones are held or dropped by the new limit."""
    os.set_blocking(pipe.output.fileno(), False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe.output.fileno(), bytes(PIPE_SIZE))
    os.set_blocking(pipe.output.fileno(), True)
    log = Log(pipe.output, settings.Log(format="json", queue=before))
    for number in range(before):
        log.info("held", number=number)
    log.configure(settings.Log(format="json", queue=after))
    for number in range(before, 10):
        log.info("held", number=number)
    data = bytearray()
    while b"log.dropped" not in data:
        data += os.read(pipe.reader, PIPE_SIZE)
    log.close()
    data += pipe.read_all()
    lines = [json.loads(line) for line in data.lstrip(b"\0").splitlines()]
    assert [line["number"] for line in lines if line["event"] == "held"] == list(range(held))
    assert [line["lines"] for line in lines if line["event"] == "log.dropped"] == [10 - held]


def test_exceptions_carry_their_traceback_in_a_field(log: Log, pipe: Pipe) -> None:
    """An event is always one line."""
    try:
        raise ValueError("on\npurpose")
    except ValueError:
        log.exception("internal.error", message="it failed")
    (line,) = written(log, pipe)
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback (most recent call last)")
    assert "test_log.py" in line["exception"]


def _asyncio() -> None:
    logging.getLogger("asyncio").error("a callback failed", exc_info=ValueError("why"))


def _bad_format() -> None:
    careless = logging.Logger("careless")  # noqa: LOG001 - not below the root, where pytest's own handler would raise
    careless.addHandler(
        next(handler for handler in logging.getLogger().handlers if isinstance(handler, module._Handler))
    )
    careless.warning("%d lines", "many")


def _custom_level() -> None:
    logging.getLogger("odd").log(logging.CRITICAL + 5, "very bad")


def _warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)


def _main_thread() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        sys.excepthook(*sys.exc_info())


def _other_thread() -> None:
    thread = threading.Thread(target=lambda: 1 // 0, name="worker")
    thread.start()
    thread.join()


def _unraisable() -> None:
    class Broken:
        def __del__(self) -> None:
            raise ValueError("why")

    Broken()


@pytest.mark.parametrize(
    ("happen", "event", "fields"),
    [
        (_asyncio, "internal.error", {"message": "a callback failed", "logger": "asyncio"}),
        (_bad_format, "internal.warning", {"message": "%d lines % ('many',)", "logger": "careless"}),
        (_custom_level, "internal.error", {"message": "very bad", "logger": "odd"}),
        (_warning, "internal.warning", {"logger": "py.warnings"}),
        (_main_thread, "internal.error", {"message": "uncaught ValueError in the main thread"}),
        (_other_thread, "internal.error", {"message": "uncaught ZeroDivisionError in thread worker"}),
        (_unraisable, "internal.error", {"logger": None}),
    ],
)
def test_messages_of_python_itself_are_logged(
    log: Log, pipe: Pipe, happen: Callable[[], None], event: str, fields: dict[str, str]
) -> None:
    """These are asyncio's log, warnings and uncaught exceptions."""
    happen()
    (line,) = written(log, pipe)
    assert line["event"] == event
    assert {name: line.get(name) for name in fields} == fields
    assert ("exception" in line) == (happen not in (_custom_level, _warning, _bad_format))


def test_an_exception_in_a_finalizer_is_logged_with_its_place(log: Log, pipe: Pipe) -> None:
    """The traceback alone does not say whose finalizer it was."""
    _unraisable()
    (line,) = written(log, pipe)
    assert line["message"].startswith("uncaught ValueError in ")
    assert "Broken.__del__" in line["message"]


def test_a_finalizer_may_log_while_a_line_is_taken(log: Log, pipe: Pipe) -> None:
    """The garbage collector may run it at any time, also while this very thread holds the sink's lock."""
    with log._sink._lock:
        log.info("from a finalizer")
    assert [line["event"] for line in written(log, pipe)] == ["from a finalizer"]


def test_close_gives_python_its_own_ways_back(log: Log) -> None:
    """The hooks and handlers are as they were before."""
    log.close()
    assert sys.excepthook is sys.__excepthook__
    assert sys.unraisablehook is sys.__unraisablehook__
    assert threading.excepthook is threading.__excepthook__
    assert logging.getLogger().handlers == []


def test_drops_are_a_line_like_any_other(log: Log) -> None:
    """`log.dropped` is a warning with the number of lines."""
    line = json.loads(log._dropped_line(17))
    assert line.pop("timestamp")
    assert line == {"level": "warning", "event": "log.dropped", "lines": 17}


@pytest.mark.parametrize(("value", "shown"), [(OSError("x"), "x"), ("caf\udce9", "caf\udce9"), (1 << 80, 1 << 80)])
def test_no_content_can_make_a_line_fail(log: Log, pipe: Pipe, value: object, shown: object) -> None:
    """Objects are written as text. Text that is not valid Unicode is escaped."""
    log.info("odd", value=value)
    assert written(log, pipe)[0]["value"] == shown


@pytest.mark.parametrize(("form", "json_lines"), [("auto", True), ("json", True), ("console", False)])
def test_into_a_pipe_auto_is_json(pipe: Pipe, form: Format, *, json_lines: bool) -> None:
    """The form for people has no colours there."""
    log = Log(pipe.output, settings.Log(level="info", format=form, queue=10))
    log.info("daemon.started", pid=1)
    log.close()
    raw = pipe.read_all()
    assert raw.startswith(b"{") == json_lines
    assert b"\x1b" not in raw
    assert b"daemon.started" in raw


def test_people_read_what_is_nested_flat(pipe: Pipe) -> None:
    """The fields keep their order."""
    log = Log(pipe.output, settings.Log(level="info", format="console", queue=10))
    log.info("connection.opened", connection=1, client={"address": "192.0.2.1", "port": 7}, in_use=1)
    log.close()
    assert pipe.read_all().decode().split()[-4:] == [
        "connection=1",
        "client.address=192.0.2.1",
        "client.port=7",
        "in_use=1",
    ]


@pytest.mark.parametrize(
    ("no_colour", "term", "coloured"),
    [("", "xterm", True), ("1", "xterm", False), ("", "dumb", False), ("", "", False)],
)
def test_colours_can_be_turned_off(
    monkeypatch: pytest.MonkeyPatch, no_colour: str, term: str, *, coloured: bool
) -> None:
    """NO_COLOR is the variable that other programs obey too. A dumb terminal would show the escape sequences as text."""
    monkeypatch.setenv("NO_COLOR", no_colour)
    monkeypatch.setenv("TERM", term)
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal:
        log = Log(terminal, settings.Log(level="info", format="auto", queue=10))
        log.info("daemon.started")
        log.close()
        data = os.read(master, 65536)
    os.close(master)
    assert (b"\x1b[" in data) == coloured


def test_on_a_terminal_auto_is_for_people() -> None:
    """A traceback comes below its line."""
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal:
        log = Log(terminal, settings.Log(level="info", format="auto", queue=10))
        try:
            raise ValueError("on purpose")
        except ValueError:
            log.exception("internal.error")
        log.close()
        data = os.read(master, 65536)
    os.close(master)
    assert not data.startswith(b"{")
    assert b"internal.error" in data
    assert b"ValueError: on purpose" in data


def test_drops_are_reported_while_the_overload_lasts(pipe: Pipe) -> None:
    """A slow reader learns what is missing before the load ends."""
    sink = Sink(Output(pipe.output.fileno()), 10, dropped)
    data = bytearray()
    for _ in range(1000):
        for _ in range(100):
            sink.put(b"x" * 999 + b"\n")
        data += os.read(pipe.reader, 4096)
        if b"dropped" in data:
            break
    assert b"dropped" in data
    pipe.close_reader()
    sink.close(0.1)


def test_the_log_tells_what_is_held(log: Log) -> None:
    """And why, in words if there is no errno."""
    until(lambda: log.held == Held(0, None, None))
    assert log.held.why == "standard output takes nothing"
    assert Held(1, 2.0, "EPIPE").why == "EPIPE"


def test_dropped_lines_are_counted_since_the_start(pipe: Pipe) -> None:
    """The count is the sum of all reports."""
    log = Log(pipe.output, settings.Log(level="info", format="json", queue=10))
    assert log.dropped == 0
    sums = []
    data = bytearray()
    for number in (1, 2):
        for _ in range(500):
            log.info("event", text="x" * 1000)
        sums.append(log.dropped)
        while data.count(b'"log.dropped"') < number:
            data += os.read(pipe.reader, PIPE_SIZE)
    log.close()
    data += pipe.read_all()
    assert 0 < sums[0] < sums[1] == log.dropped
    lines = [json.loads(line) for line in data.splitlines()]
    assert sum(line["lines"] for line in lines if line["event"] == "log.dropped") == log.dropped
