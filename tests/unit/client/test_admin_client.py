"""Requests to one daemon, with canned answers, with answers that are not HTTP, and with none."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from echod import unix
from echod.client.admin_client import AdminClient
from echod.errors import Refusal
from tests.support.canned_daemon import Canned
from tests.support.in_process import descriptors, without_privileges

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


# Requests


def refused(*paths: Path, trouble: Refusal | None = None, timeout: float = 10.0) -> tuple[str, int]:
    """Return the line and the exit code with which a request is refused."""
    with pytest.raises(Refusal) as caught:
        AdminClient(paths, trouble).request("GET", "/status", timeout=timeout)
    (line,) = caught.value.lines
    return line, caught.value.exit_code


def leave_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def test_an_answer_is_a_status_code_and_its_content(daemon: Canned) -> None:
    """Whatever the code; and the daemon gets the request."""
    daemon.answer(200, {"a": [1]})
    daemon.answer(404, {"error": "no"})
    client = AdminClient([daemon.path])
    assert client.request("GET", "/status") == (200, {"a": [1]})
    assert client.request("DELETE", "/connections/7") == (404, {"error": "no"})
    assert daemon.requests == ["GET /status", "DELETE /connections/7"]


def test_a_chunked_answer_is_read_whole(daemon: Canned) -> None:
    """Long lists are sent in chunks."""
    daemon.answer_raw(OK + b"transfer-encoding: chunked\r\n\r\n1\r\n[\r\n2\r\n1]\r\n0\r\n\r\n")
    assert AdminClient([daemon.path]).request("GET", "/connections") == (200, [1])


def test_an_informational_response_is_skipped(daemon: Canned) -> None:
    """The answer follows it (RFC 9110, 15.2)."""
    daemon.answer_raw(b"HTTP/1.1 102 Processing\r\n\r\n" + OK + b"content-length: 1\r\n\r\n7")
    assert AdminClient([daemon.path]).request("GET", "/status") == (200, 7)


def test_the_first_path_with_a_daemon_is_used(daemon: Canned, tmp_path: Path) -> None:
    """Paths without one are skipped: missing, stale, below a file."""
    stale = tmp_path / "stale.sock"
    leave_stale(stale)
    (tmp_path / "file").touch()
    daemon.answer(200, 1)
    client = AdminClient([tmp_path / "none.sock", stale, tmp_path / "file" / "x.sock", daemon.path, tmp_path])
    assert client.request("GET", "/status") == (200, 1)


def test_if_no_daemon_answers_all_paths_are_named(path: Path, tmp_path: Path) -> None:
    """Those that were tried."""
    leave_stale(path)
    none = tmp_path / "none.sock"
    line = f"echod: no daemon answers at unix:{path} or unix:{none}"
    assert refused(path, none) == (line, os.EX_UNAVAILABLE)


def test_without_a_path_the_setting_is_named() -> None:
    """It is "off"."""
    assert refused() == ('echod: admin.socket is "off": no daemon can be reached', os.EX_UNAVAILABLE)


def test_trouble_is_raised_only_if_no_daemon_answers(daemon: Canned, tmp_path: Path) -> None:
    """An unreadable file explains why no daemon is found, and does not matter otherwise."""
    trouble = Refusal("echod.toml: can't be read", exit_code=os.EX_NOINPUT)
    daemon.answer(200, 1)
    assert AdminClient([daemon.path], trouble).request("GET", "/status") == (200, 1)
    assert refused(tmp_path / "none.sock", trouble=trouble) == ("echod.toml: can't be read", os.EX_NOINPUT)


def test_a_lack_of_permission_is_reported_with_the_remedy(path: Path, tmp_path: Path) -> None:
    """If no daemon answers at another path."""
    path.parent.chmod(0)
    try:
        with without_privileges():
            line, code = refused(path, Path("/none.sock"))
    finally:
        tmp_path.chmod(0o700)
    assert line == f"echod: unix:{path}: no permission: be root, the daemon's user, or a member of its group"
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
def test_an_answer_that_is_not_http_with_json_is_refused(daemon: Canned, answer: bytes) -> None:
    """With one line."""
    if answer:
        daemon.answer_raw(answer)
    line = f"echod: unix:{daemon.path}: no valid answer; is it the admin socket of echod?"
    assert refused(daemon.path) == (line, os.EX_UNAVAILABLE)


def test_a_daemon_that_does_not_answer_is_given_up(path: Path) -> None:
    """After the time that the caller allows."""
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(path))
        hung.listen()
        line = f"echod: unix:{path}: no answer within 0 s"
        assert refused(path, timeout=0.05) == (line, os.EX_UNAVAILABLE)


def test_a_daemon_that_does_not_accept_is_given_up(path: Path) -> None:
    """A full backlog blocks the connection attempt."""
    with socket.socket(socket.AF_UNIX) as hung, contextlib.ExitStack() as clients:
        hung.bind(str(path))
        hung.listen(0)
        clients.enter_context(unix.connect(path, 1.0))
        line = f"echod: unix:{path}: no answer within 0 s"
        assert refused(path, timeout=0.05) == (line, os.EX_UNAVAILABLE)


@pytest.mark.parametrize(("name", "why"), [("x" * 200, "AF_UNIX path too long"), ("datagrams", "Protocol wrong type")])
def test_another_error_has_the_text_of_the_system(path: Path, name: str, why: str) -> None:
    """The path may be the wrong one."""
    other = path.with_name(name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if len(name) < 100:
            sock.bind(str(other))
        line, code = refused(other)
    assert line.startswith(f"echod: unix:{other}: {why}")
    assert code == os.EX_UNAVAILABLE


def test_a_request_leaves_no_descriptor(daemon: Canned) -> None:
    """However it ends."""
    before = descriptors()
    daemon.answer(200, 1)
    AdminClient([daemon.path]).request("GET", "/status")
    refused(daemon.path)
    refused(daemon.path.with_name("none"))
    while descriptors() > before:  # those of the thread that answers
        os.sched_yield()
