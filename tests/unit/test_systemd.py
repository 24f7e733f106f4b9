"""Notifications to systemd, and what it hands over: with real sockets and descriptors, and without systemd."""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from echod import systemd
from echod.config import settings
from echod.errors import Refusal
from echod.log import Log
from echod.systemd import Inherited, Service, is_journal, journal_stream, prefixed
from tests.support.fakes import Clock, FakeLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from echod.config.settings import Format

    Made = Callable[[dict[str, str]], Service]

PID = str(os.getpid())
EXTENSION = "EXTEND_TIMEOUT_USEC=15000000"


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        self.address = address

    def told(self) -> list[str]:
        """Return the messages since the last call, each with its assignments."""
        messages = []
        while select.select([self.sock], [], [], 0)[0]:
            messages.append(self.sock.recv(4096).decode())
        return messages

    def fill(self) -> int:
        """Send until the queue is full, and return the number of messages."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as other:
            other.connect(self.sock.getsockname())
            count = 0
            try:
                while True:
                    other.send(b"x")
                    count += 1
            except BlockingIOError:
                return count


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify") if request.param == "path" else f"@echod-test-{tmp_path.name}-{PID}")
    with manager.sock:
        yield manager


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def made() -> Iterator[Made]:
    """Makes services, and closes what a process would hold to its end."""
    services: list[Service] = []

    def make(environ: dict[str, str]) -> Service:
        services.append(Service(environ))
        return services[-1]

    yield make
    for service in services:
        if service._socket:
            service._socket.close()


@pytest.fixture
def service(manager: Manager, made: Made, clock: Clock) -> Service:
    service = made({"NOTIFY_SOCKET": manager.address})
    clock.now += 1
    return service


def idle() -> str:
    return "0 of 7"


def busy() -> str:
    return "7 of 7"


# Notifications


def test_ready_comes_with_the_status(service: Service, manager: Manager) -> None:
    """They are in one message, so that a reader never sees one without the other."""
    service.ready(idle)
    assert manager.told() == ["READY=1\nSTATUS=0 of 7"]


def test_a_reload_begins_with_the_time_and_ends_with_ready(service: Service, manager: Manager) -> None:
    """MONOTONIC_USEC is by CLOCK_MONOTONIC (sd_notify(3)). A status that has not changed is not repeated."""
    service.ready(idle)
    service.reloading()
    service.ready(idle)
    _, begun, ended = manager.told()
    first, _, microseconds = begun.partition("\nMONOTONIC_USEC=")
    assert first == "RELOADING=1"
    assert 0 < int(microseconds) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert ended == "READY=1"


def test_a_stop_asks_for_more_time_for_as_long_as_it_takes(service: Service, manager: Manager, clock: Clock) -> None:
    """It asks once a second, whether or not the status changes."""
    service.ready(busy)
    service.stopping(busy)
    assert manager.told()[1] == f"STOPPING=1\n{EXTENSION}"
    for status, said in ((busy, EXTENSION), (idle, f"STATUS=0 of 7\n{EXTENSION}")):
        service.look(status)
        service.look(status)
        assert manager.told() == [said]
        clock.now += 1


def test_a_reload_while_it_stops_is_not_reported(service: Service, manager: Manager) -> None:
    """A lame duck still reloads. To the manager, a service that reloads would not stop."""
    service.stopping(idle)
    manager.told()
    service.reloading()
    service.ready(busy)
    assert manager.told() == []


def test_a_reload_that_a_stop_interrupts_is_not_ready_again(service: Service, manager: Manager) -> None:
    """The last message is that the service stops."""
    service.reloading()
    service.stopping(idle)
    service.ready(idle)
    assert manager.told()[-1].startswith("STOPPING=1")


def test_a_new_status_is_reported_at_most_once_a_second(service: Service, manager: Manager, clock: Clock) -> None:
    """It does not matter how often `look` is called."""
    service.ready(idle)
    manager.told()
    service.look(idle)
    assert manager.told() == []
    service.look(busy)
    assert manager.told() == []
    clock.now += 1
    service.look(busy)
    service.look(idle)
    assert manager.told() == ["STATUS=7 of 7"]


def test_a_full_socket_does_not_block_and_loses_no_change_of_state(
    service: Service, manager: Manager, clock: Clock
) -> None:
    """Changes of state are sent when there is room; old pings and statuses are not."""
    full = manager.fill()
    service.reloading()
    service.ready(idle)
    service.look(busy)
    service.ping(FakeLoop().asyncio)
    assert manager.told() == ["x"] * full
    service.look(busy)
    assert [message.split("=")[0] for message in manager.told()] == ["RELOADING", "READY", "STATUS"]
    manager.fill()
    clock.now += 1
    service.look(idle)
    manager.told()
    clock.now += 1
    service.look(idle)
    assert manager.told() == ["STATUS=0 of 7"]


@pytest.mark.parametrize(
    "address",
    ["/nonexistent/notify", "@echod-nobody", "/" + "x" * 200, "vsock:2:1", "@", "/dev/null", "notify"],
)
def test_a_bad_address_does_no_harm(address: str, made: Made, clock: Clock) -> None:
    """The daemon serves on, and holds a bounded number of messages."""
    service = made({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"})
    loop = FakeLoop()
    service.ping(loop.asyncio)
    for _ in range(100):
        service.reloading()
        service.ready(idle)
        service.look(idle)
        clock.now += 1
    service.stopping(idle)
    assert len(service._unsent) == systemd._MOST_UNSENT


def test_a_sandbox_without_unix_sockets_is_like_no_systemd(
    monkeypatch: pytest.MonkeyPatch, made: Made, manager: Manager
) -> None:
    """RestrictAddressFamilies= may leave out AF_UNIX."""

    def refuse(*_: object) -> None:
        raise OSError(97, "Address family not supported by protocol")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", refuse)
        service = made({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "3000000"})
    service.ready(idle)
    service.look(idle)
    service.ping(FakeLoop().asyncio)
    assert manager.told() == []


def test_without_systemd_nothing_happens() -> None:
    """No status is made, and no timer is set."""

    def never() -> str:
        raise AssertionError

    environ = {"HOME": "/root"}
    service, loop = Service(environ), FakeLoop()
    service.ping(loop.asyncio)
    service.ready(never)
    service.reloading()
    service.look(never)
    service.stopping(never)
    assert service.inherited == []
    assert loop._timers == []
    assert environ == {"HOME": "/root"}


def test_children_inherit_nothing_that_is_for_this_process(made: Made, manager: Manager) -> None:
    """The variables go out of the environment, and no descriptor is inherited."""
    environ = {
        "NOTIFY_SOCKET": manager.address,
        "WATCHDOG_USEC": "1000000",
        "WATCHDOG_PID": PID,
        "LISTEN_PID": PID,
        "LISTEN_FDS": "0",
        "LISTEN_FDNAMES": "",
        "HOME": "/root",
    }
    service = made(environ)
    assert environ == {"HOME": "/root"}
    assert service._socket is not None
    assert not service._socket.get_inheritable()


# The watchdog


@pytest.mark.parametrize("variables", [{}, {"WATCHDOG_PID": PID}])
def test_the_watchdog_is_pinged_three_times_as_often_as_it_wants(
    variables: dict[str, str], made: Made, manager: Manager
) -> None:
    """A timer of the loop does it, so that a loop that hangs is noticed."""
    service, loop = made({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "3000000"} | variables), FakeLoop()
    service.ping(loop.asyncio)
    assert manager.told() == ["WATCHDOG=1"]
    loop.advance(10)
    assert manager.told() == ["WATCHDOG=1"] * 10


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-1"},
        {"WATCHDOG_USEC": "٣"},
        {"WATCHDOG_USEC": "9" * 5000},
    ],
)
def test_without_a_watchdog_of_its_own_nothing_is_pinged(
    variables: dict[str, str], made: Made, manager: Manager
) -> None:
    """The watchdog is for another process, or there is none, or its time is not a number."""
    service, loop = made({"NOTIFY_SOCKET": manager.address} | variables), FakeLoop()
    service.ping(loop.asyncio)
    assert manager.told() == []
    assert loop._timers == []


# Inherited sockets


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Return the first of three descriptors in a row, which stands in for 3."""
    three = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    base = 200
    for number, fd in enumerate(three):
        os.dup2(fd, base + number)
        os.close(fd)
    monkeypatch.setattr(systemd, "_FIRST", base)
    yield base
    for number in range(3):
        os.close(base + number)


def inherited(**variables: str) -> list[Inherited]:
    return Service({"LISTEN_PID": PID, **variables}).inherited


def test_inherited_descriptors_have_names_and_go_to_no_child(first: int) -> None:
    """Without names, each is `unknown` (sd_listen_fds_with_names(3))."""
    assert inherited(LISTEN_FDS="2", LISTEN_FDNAMES="one:") == [(first, "one"), (first + 1, "")]
    assert not os.get_inheritable(first)
    assert not os.get_inheritable(first + 1)
    assert os.get_inheritable(first + 2)
    assert inherited(LISTEN_FDS="1") == [(first, "unknown")]


@pytest.mark.parametrize(
    ("variables", "whose"),
    [
        ({}, "no process"),
        ({"LISTEN_PID": "1"}, "process 1"),
        ({"LISTEN_PID": ""}, "no process"),
        ({"LISTEN_PID": "soon"}, "process soon"),
    ],
)
def test_descriptors_for_another_process_are_left_alone(variables: dict[str, str], whose: str) -> None:
    """The variables may be those of a parent, and the descriptors something else by now. A line says so."""
    environ = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "one"} | variables
    service = Service(environ)
    assert service.inherited == []
    assert service.mistaken == (
        f"LISTEN_FDS: the sockets are meant for {whose} (LISTEN_PID), not for {PID}: a wrapper has to start echod with exec"
    )
    assert environ == {}


def test_without_descriptors_none_is_inherited() -> None:
    """There is no number, or it is 0."""
    assert inherited() == []
    assert inherited(LISTEN_FDS="0", LISTEN_FDNAMES="") == []
    assert Service({"LISTEN_PID": PID}).mistaken == Service({}).mistaken == Service({"LISTEN_PID": "1"}).mistaken == ""


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"LISTEN_FDS": "many"}, "LISTEN_FDS: must be a number, got 'many'"),
        ({"LISTEN_FDS": "-1"}, "LISTEN_FDS: must be a number"),
        ({"LISTEN_FDS": "4"}, "LISTEN_FDS: says 4, but descriptor 203: Bad file descriptor"),
        ({"LISTEN_FDS": "9" * 18}, "but descriptor 203: Bad file descriptor"),
        (
            {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "one"},
            "LISTEN_FDNAMES: must have a name for each of 2 sockets, got 'one'",
        ),
    ],
)
@pytest.mark.usefixtures("first")
def test_bad_variables_are_refused(variables: dict[str, Any], problem: str) -> None:
    """The message is one line, and the exit code is that of a bad configuration."""
    with pytest.raises(Refusal) as caught:
        inherited(**variables)
    (line,) = caught.value.lines
    assert problem in line
    assert caught.value.exit_code == os.EX_CONFIG


# The journal


def test_the_journal_is_known_by_its_device_and_inode(tmp_path: Path) -> None:
    """It is not enough that the variable is set: the output may go elsewhere."""
    with (tmp_path / "stream").open("w") as stream, (tmp_path / "other").open("w") as other:
        status = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert is_journal(stream.fileno(), environ)
        assert not is_journal(other.fileno(), environ)
        assert not is_journal(stream.fileno(), {})


def test_a_stream_to_the_journal_begins_with_what_it_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In lines, as sd_journal_stream_fd(3) writes them. It only writes."""
    monkeypatch.chdir(tmp_path)  # the address of a Unix socket is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("stdout")
        listener.listen()
        fd = journal_stream("stdout")
        journal, _ = listener.accept()
        with journal:
            assert journal.recv(100) == b"echod\n\n3\n1\n0\n0\n0\n"
            os.write(fd, b"<5>line\n")
            assert journal.recv(100) == b"<5>line\n"
            with pytest.raises(BrokenPipeError):
                journal.send(b"x")
        os.close(fd)


def test_without_a_journal_there_is_no_stream(tmp_path: Path) -> None:
    """And no descriptor is left open."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FileNotFoundError):
        journal_stream(str(tmp_path / "stdout"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("level", "priority"), [("error", 3), ("warning", 4), ("info", 5), ("debug", 5), ("critical", 5), ("answer", 6)]
)
def test_a_line_begins_with_its_priority(level: str, priority: int) -> None:
    """In a text of several lines, each line does: the journal takes each as a message (sd-daemon(3))."""
    assert prefixed(level, "one\ntwo") == f"<{priority}>one\n<{priority}>two"


@pytest.mark.parametrize("form", ["json", "console"])
def test_in_the_journal_each_line_begins_with_its_priority(tmp_path: Path, form: Format) -> None:
    """This includes `log.dropped`, and each line of a traceback in the form for people."""
    with (tmp_path / "journal").open("w") as output:
        log = Log(output, settings.Log(level="debug", format=form), journal=True)
        log.info("one")
        log.warning("two")
        try:
            raise ValueError("three")
        except ValueError:
            log.exception("three")
        logging.getLogger("library").debug("four")
        log._sink.put(log._dropped_line(7))
        log.close()
    lines = (tmp_path / "journal").read_text().splitlines()
    traceback = len(lines) - 4
    assert [line[:3] for line in lines] == ["<5>", "<4>", *["<3>"] * traceback, "<5>", "<4>"]
    if form == "json":
        assert [json.loads(line[3:])["level"] for line in lines] == ["info", "warning", "error", "debug", "warning"]
