"""Asking the daemon: what is there answers, or something else, or nothing."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from echod import unix
from echod.client.http import Client
from echod.errors import Refusal
from tests.support.canned import Canned
from tests.support.inside import as_nobody, descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "admin.sock"


@pytest.fixture
def daemon(path: Path) -> Iterator[Canned]:
    with Canned(path) as daemon:
        yield daemon


def refused(*paths: Path, trouble: Refusal | None = None, patience: float = 10.0) -> tuple[str, int]:
    """Return the line and the exit code with which nothing could be asked."""
    with pytest.raises(Refusal) as caught:
        Client(paths, trouble).ask("GET", "/status", patience=patience)
    (line,) = caught.value.lines
    return line, caught.value.exit_code


def leave_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def test_an_answer_is_its_status_and_its_content(daemon: Canned) -> None:
    """Whatever the status; and the daemon gets what was asked."""
    daemon.answer(200, {"a": [1]})
    daemon.answer(404, {"error": "no"})
    client = Client([daemon.path])
    assert client.ask("GET", "/status") == (200, {"a": [1]})
    assert client.ask("DELETE", "/connections/7") == (404, {"error": "no"})
    assert daemon.requests == ["GET /status", "DELETE /connections/7"]


def test_an_answer_in_parts_is_read_whole(daemon: Canned) -> None:
    """A long list comes so."""
    daemon.answer_raw(OK + b"transfer-encoding: chunked\r\n\r\n1\r\n[\r\n2\r\n1]\r\n0\r\n\r\n")
    assert Client([daemon.path]).ask("GET", "/connections") == (200, [1])


def test_the_first_that_answers_is_asked(daemon: Canned, tmp_path: Path) -> None:
    """Paths where nobody is are passed over: not there, not listened on, below a file."""
    stale = tmp_path / "stale.sock"
    leave_stale(stale)
    (tmp_path / "file").touch()
    daemon.answer(200, 1)
    client = Client([tmp_path / "none.sock", stale, tmp_path / "file" / "x.sock", daemon.path, tmp_path])
    assert client.ask("GET", "/status") == (200, 1)


def test_if_none_answers_all_are_named(path: Path, tmp_path: Path) -> None:
    """Where it was looked for is what an operator needs to know."""
    leave_stale(path)
    none = tmp_path / "none.sock"
    line = f"echod: no daemon answers at unix:{path} or unix:{none}"
    assert refused(path, none) == (line, os.EX_UNAVAILABLE)


def test_without_a_path_there_is_nobody_to_ask() -> None:
    """The setting is why."""
    assert refused() == ('echod: admin.socket is "off": there is nobody to ask', os.EX_UNAVAILABLE)


def test_trouble_is_told_only_if_none_answers(daemon: Canned, tmp_path: Path) -> None:
    """That the file can't be read explains why the daemon isn't found, and is of no interest otherwise."""
    trouble = Refusal("echod.toml: can't be read", exit_code=os.EX_NOINPUT)
    daemon.answer(200, 1)
    assert Client([daemon.path], trouble).ask("GET", "/status") == (200, 1)
    assert refused(tmp_path / "none.sock", trouble=trouble) == ("echod.toml: can't be read", os.EX_NOINPUT)


def test_without_permission_it_says_how_to_get_it(path: Path, tmp_path: Path) -> None:
    """If no other path has one that answers."""
    path.parent.chmod(0)
    try:
        with as_nobody():
            line, code = refused(path, Path("/none.sock"))
    finally:
        tmp_path.chmod(0o700)
    assert line == f"echod: unix:{path}: no permission: be root, or the daemon's user, or of its group"
    assert code == os.EX_NOPERM


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\r\n",
        b"220 mail.example ESMTP\r\n",
        OK,
        OK + b"content-length: 5\r\n\r\n[1",
        OK + b"content-length: 5\r\n\r\nhello",
        OK + b"transfer-encoding: chunked\r\n\r\nx\r\n",
        OK + b"content-length: 1\r\n\r\n\xff",
        OK + b"content-length: %d\r\n\r\n" % 10**30,
        OK + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % 10**18,
    ],
    ids=[
        "nothing",
        "a line",
        "mail",
        "no body",
        "half a body",
        "no JSON",
        "no chunk",
        "no text",
        "too long",
        "huge chunk",
    ],
)
def test_what_is_no_echod_is_told_so(daemon: Canned, answer: bytes) -> None:
    """In one line, whatever it says."""
    if answer:
        daemon.answer_raw(answer)
    line = f"echod: unix:{daemon.path}: what is there gives no answer, or is no echod"
    assert refused(daemon.path) == (line, os.EX_UNAVAILABLE)


def test_patience_has_an_end(path: Path) -> None:
    """A daemon that hangs is not waited for."""
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(path))
        hung.listen()
        line = f"echod: unix:{path}: no answer within 0 s"
        assert refused(path, patience=0.05) == (line, os.EX_UNAVAILABLE)


def test_a_daemon_that_takes_nobody_is_not_waited_for_either(path: Path) -> None:
    """Not for longer than for an answer: connecting alone takes that time if the backlog is full."""
    with socket.socket(socket.AF_UNIX) as hung, contextlib.ExitStack() as clients:
        hung.bind(str(path))
        hung.listen(0)
        clients.enter_context(unix.connect(path))
        line = f"echod: unix:{path}: no answer within 0 s"
        assert refused(path, patience=0.05) == (line, os.EX_UNAVAILABLE)


@pytest.mark.parametrize(("name", "why"), [("x" * 200, "AF_UNIX path too long"), ("datagrams", "Protocol wrong type")])
def test_another_error_is_told_as_it_is(path: Path, name: str, why: str) -> None:
    """The path can't be what is meant."""
    other = path.with_name(name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if len(name) < 100:
            sock.bind(str(other))
        line, code = refused(other)
    assert line.startswith(f"echod: unix:{other}: {why}")
    assert code == os.EX_UNAVAILABLE


def test_asking_leaves_no_descriptor(daemon: Canned) -> None:
    """However it ends."""
    before = descriptors()
    daemon.answer(200, 1)
    Client([daemon.path]).ask("GET", "/status")
    refused(daemon.path)
    refused(daemon.path.with_name("none"))
    while descriptors() > before:  # those of the thread that answers
        os.sched_yield()
