"""The commands about a running daemon, with canned answers, with answers that are not echod's, and with none."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from echod import unix
from echod.client import control, screen
from echod.client.control import AdminClient, User
from echod.errors import Refusal
from tests.support.canned_daemon import Canned, row, status
from tests.support.in_process import descriptors, without_privileges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from echod.networks import Network

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "admin.sock"


@pytest.fixture
def daemon(path: Path) -> Iterator[Canned]:
    with Canned(path) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Canned) -> AdminClient:
    return AdminClient([daemon.path])


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


# The commands


def from_(address: str, port: int = 40000) -> dict[str, Any]:
    return {"address": address, "port": port}


def tcp(rtt: float) -> dict[str, Any]:
    return {"rtt": rtt, "retrans": 0}


ROWS = [
    row(connection=3, client=from_("192.0.2.10"), age=1.0, idle=9.0, bytes_received=5, state="open", tcp=None),
    row(
        connection=1, client=from_("192.0.2.9", 2), age=30.0, idle=0.0, bytes_received=7, state="stalled", tcp=tcp(0.25)
    ),
    row(
        connection=2,
        client=from_("fe80::1%eth0"),
        age=20.0,
        idle=3.0,
        bytes_received=900,
        state="closing",
        tcp=tcp(0.5),
    ),
    row(connection=4, client=from_("192.0.2.9", 1), age=10.0, idle=1.0, bytes_received=0, state="open", tcp=tcp(0.125)),
]


def listed(
    daemon: Canned, client: AdminClient, order: str = "id", source: Network | User | None = None, rows: Any = ROWS
) -> list[int]:
    daemon.answer(200, rows)
    text = control.connections(client, as_json=True, order=order, source=source)
    return [row["connection"] for row in orjson.loads(text)]


def test_status_is_a_screen_or_json(daemon: Canned, client: AdminClient) -> None:
    """For people, or one line for programs."""
    answer = status()
    for _ in range(2):
        daemon.answer(200, answer)
    assert control.status(client, as_json=False) == screen.status(answer)
    text = control.status(client, as_json=True)
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert orjson.loads(text) == answer
    assert daemon.requests == ["GET /status"] * 2


def test_connections_are_a_table_or_json(daemon: Canned, client: AdminClient) -> None:
    """The same rows in the same order."""
    for _ in range(2):
        daemon.answer(200, ROWS)
    rows = sorted(ROWS, key=lambda row: row["connection"])
    assert control.connections(client, as_json=False, order="id", source=None) == screen.connections(rows)
    text = control.connections(client, as_json=True, order="id", source=None)
    assert text.count("\n") == 1
    assert orjson.loads(text) == rows
    assert daemon.requests == ["GET /connections"] * 2


@pytest.mark.parametrize(
    ("order", "numbers"),
    [
        ("id", [1, 2, 3, 4]),
        ("client", [4, 1, 3, 2]),
        ("age", [1, 2, 4, 3]),
        ("idle", [3, 2, 4, 1]),
        ("bytes", [2, 1, 3, 4]),
        ("state", [2, 3, 4, 1]),
        ("rtt", [2, 1, 4, 3]),
    ],
)
def test_connections_are_sorted(daemon: Canned, client: AdminClient, order: str, numbers: list[int]) -> None:
    """Quantities come largest first; addresses are compared as numbers, not as text."""
    assert listed(daemon, client, order) == numbers


def test_every_order_is_tested() -> None:
    """A new one needs a case above."""
    marks: Any = test_connections_are_sorted
    assert [case[0] for case in marks.pytestmark[0].args[1]] == list(control.ORDERS)


@pytest.mark.parametrize(
    ("source", "numbers"),
    [
        ("192.0.2.9/32", [1, 4]),
        ("192.0.2.0/24", [1, 3, 4]),
        ("fe80::/10", [2]),
        ("0.0.0.0/0", [1, 3, 4]),
        ("10.0.0.0/8", []),
    ],
)
def test_connections_of_one_network(daemon: Canned, client: AdminClient, source: str, numbers: list[int]) -> None:
    """Of IPv4 or IPv6."""
    assert listed(daemon, client, source=ipaddress.ip_network(source)) == numbers


def user(connection: int, uid: int | None, pid: int | None) -> dict[str, Any]:
    """Return a row of a client of a Unix socket."""
    return row(connection=connection, client={"uid": uid, "pid": pid}, listener="unix:/run/echo.sock", tcp=None)


MIXED = [*ROWS, user(5, 1000, 9), user(6, 0, 4711), user(7, 1000, 8), user(8, None, None)]


def test_clients_of_unix_sockets_are_sorted_by_user_and_process(daemon: Canned, client: AdminClient) -> None:
    """They come before those with an address."""
    assert listed(daemon, client, "client", rows=MIXED) == [8, 6, 7, 5, 4, 1, 3, 2]
    assert listed(daemon, client, "rtt", rows=MIXED)[:3] == [2, 1, 4]


def test_connections_of_one_user(daemon: Canned, client: AdminClient) -> None:
    """A client of a Unix socket is in no network."""
    assert listed(daemon, client, source=User(1000), rows=MIXED) == [5, 7]
    assert listed(daemon, client, source=User(1), rows=MIXED) == []
    assert listed(daemon, client, source=ipaddress.ip_network("0.0.0.0/0"), rows=MIXED) == [1, 3, 4]


def test_a_kill_by_user_ends_its_connections(daemon: Canned, client: AdminClient) -> None:
    """If there are any."""
    daemon.answer(200, MIXED)
    daemon.answer(200, {"connection": 6, "client": {"uid": 0, "pid": 4711}})
    assert list(control.kill_source(client, User(0))) == ["killed 6, uid:0,pid:4711\n"]
    daemon.answer(200, MIXED)
    with pytest.raises(Refusal, match=r"^echod: there is no connection from uid:1$"):
        list(control.kill_source(client, User(1)))


def killed(number: int) -> dict[str, Any]:
    return {"connection": number, "client": from_("2001:db8::1", number)}


def test_kill_names_each_connection_and_its_client(daemon: Canned, client: AdminClient) -> None:
    """In one line."""
    for number in (7, 9):
        daemon.answer(200, killed(number))
    assert list(control.kill(client, [7, 9])) == ["killed 7, [2001:db8::1]:7\n", "killed 9, [2001:db8::1]:9\n"]
    assert daemon.requests == ["DELETE /connections/7", "DELETE /connections/9"]


def test_a_connection_that_is_not_there_keeps_no_other_alive(daemon: Canned, client: AdminClient) -> None:
    """It is reported at the end."""
    daemon.answer(404, {"error": "there is no connection 7"})
    daemon.answer(200, killed(8))
    daemon.answer(404, {"error": "there is no connection 9"})
    lines = control.kill(client, [7, 8, 9])
    assert next(lines) == "killed 8, [2001:db8::1]:8\n"
    with pytest.raises(Refusal) as caught:
        next(lines)
    assert caught.value.lines == ("echod: there is no connection 7", "echod: there is no connection 9")
    assert caught.value.exit_code == os.EX_DATAERR


def test_a_kill_by_network_ends_its_connections(daemon: Canned, client: AdminClient) -> None:
    """One that has ended meanwhile is no error."""
    daemon.answer(200, ROWS)
    numbers = [each["connection"] for each in ROWS if each["client"]["address"].startswith("192.0.2.")]
    assert len(numbers) > 1
    daemon.answer(404, {"error": "there is no connection"})
    for number in numbers[1:]:
        daemon.answer(200, killed(number))
    lines = list(control.kill_source(client, ipaddress.ip_network("192.0.2.0/24")))
    assert lines == [f"killed {number}, [2001:db8::1]:{number}\n" for number in numbers[1:]]
    assert daemon.requests == ["GET /connections", *(f"DELETE /connections/{number}" for number in numbers)]


def test_a_kill_by_a_network_without_connections_is_an_error(daemon: Canned, client: AdminClient) -> None:
    """With the exit code of a connection that is not there."""
    daemon.answer(200, [])
    with pytest.raises(Refusal) as caught:
        list(control.kill_source(client, ipaddress.ip_network("192.0.2.0/24")))
    assert caught.value.lines == ("echod: there is no connection from 192.0.2.0/24",)
    assert caught.value.exit_code == os.EX_DATAERR


def test_the_settings_of_the_daemon_are_toml(daemon: Canned, client: AdminClient) -> None:
    """With the origin of each if wanted; also those that this version does not know."""
    answer = {
        "settings": {"pool": {"size": 5, "color": "red"}, "udp": {"port": "off"}},
        "origins": {"pool.size": "ECHOD_POOL__SIZE", "pool.color": "e.toml:3", "udp.port": "default"},
    }
    daemon.answer(200, answer)
    assert control.config(client, sources=False) == '[pool]\nsize = 5\ncolor = "red"\n\n[udp]\nport = "off"\n'
    daemon.answer(200, answer)
    assert control.config(client, sources=True) == (
        '[pool]\nsize = 5  # ECHOD_POOL__SIZE\ncolor = "red"  # e.toml:3\n\n[udp]\nport = "off"  # default\n'
    )
    assert daemon.requests == ["GET /config"] * 2


def test_a_reload_lists_the_changes(daemon: Canned, client: AdminClient) -> None:
    """A line for each setting, with both values as TOML has them."""
    daemon.answer(
        200,
        {
            "changed": ["pool.size", "listen.host"],
            "old": {"pool.size": 1, "listen.host": ["*"]},
            "new": {"pool.size": 2, "listen.host": ["::1"]},
            "warnings": ["a mistake"],
        },
    )
    assert control.reload(client) == ('pool.size: 1 -> 2\nlisten.host: ["*"] -> ["::1"]\n', ["a mistake"])
    daemon.answer(200, {"changed": [], "old": {}, "new": {}, "warnings": []})
    assert control.reload(client) == ("reloaded, nothing has changed\n", [])
    assert daemon.requests == ["POST /reload"] * 2


def test_ready_is_a_line_or_the_reason(daemon: Canned, client: AdminClient) -> None:
    """With the exit code of a service that is not available."""
    daemon.answer(200, {"status": "ready"})
    assert control.ready(client) == "ready\n"
    daemon.answer(503, {"status": "lame duck"})
    with pytest.raises(Refusal) as caught:
        control.ready(client)
    assert (caught.value.lines, caught.value.exit_code) == (("echod: not ready: lame duck",), os.EX_UNAVAILABLE)
    assert daemon.requests == ["GET /readyz"] * 2


def test_a_lame_duck_is_made_and_taken_back(daemon: Canned, client: AdminClient) -> None:
    """With a line that says what it is now."""
    daemon.answer(200, {"lame_duck": True})
    assert control.lame_duck(client, on=True) == "lame duck: accepting, but not ready\n"
    daemon.answer(200, {"lame_duck": False})
    assert control.lame_duck(client, on=False) == "no lame duck\n"
    assert daemon.requests == ["PUT /lame-duck", "DELETE /lame-duck"]


@pytest.mark.parametrize("code", [200, 422])
@pytest.mark.parametrize(
    "content", [None, 7, "x", [7], {"a": 1}, {"errors": 7}, status(uptime="long"), status(pool={})]
)
@pytest.mark.parametrize(
    "command",
    [
        lambda client: control.status(client, as_json=False),
        lambda client: control.connections(client, as_json=False, order="id", source=None),
        lambda client: control.config(client, sources=True),
        lambda client: list(control.kill(client, [7])),
        lambda client: list(control.kill_source(client, ipaddress.ip_network("::/0"))),
        control.reload,
        lambda client: control.lame_duck(client, on=True),
    ],
    ids=["status", "connections", "config", "kill", "kill --source", "reload", "lame-duck"],
)
def test_an_answer_of_another_form_is_refused(
    daemon: Canned, client: AdminClient, command: Callable[[AdminClient], object], code: int, content: Any
) -> None:
    """With one line, whatever JSON it is."""
    daemon.answer(code, content)
    with pytest.raises(Refusal) as caught:
        command(client)
    line = f"echod: unix:{daemon.path}: unexpected answer; is it another version of echod?"
    assert (caught.value.lines, caught.value.exit_code) == ((line,), os.EX_UNAVAILABLE)


def test_a_reload_may_take_longer_than_other_requests() -> None:
    """The daemon gives up on a hanging file after a minute."""

    class Patient:
        def request(self, *_: str, timeout: float) -> tuple[int, Any]:
            assert timeout > 60
            return 200, {"changed": [], "old": {}, "new": {}, "warnings": []}

    client: Any = Patient()
    assert control.reload(client)


@pytest.mark.parametrize(
    ("code", "content", "lines", "exit_code"),
    [
        (422, {"errors": ["f:1: wrong", "f:2: too"], "exit_code": 78}, ("f:1: wrong", "f:2: too"), os.EX_CONFIG),
        (422, {"errors": ["f: can't be read"], "exit_code": 66}, ("f: can't be read",), os.EX_NOINPUT),
        (409, {"error": "the daemon stops"}, ("echod: the daemon stops",), os.EX_UNAVAILABLE),
        (503, {"error": "the daemon stops"}, ("echod: the daemon stops",), os.EX_UNAVAILABLE),
        (500, {"error": "bug"}, ('echod: the daemon answers 500: {"error":"bug"}',), os.EX_SOFTWARE),
        (418, ["tea"], ('echod: the daemon answers 418: ["tea"]',), os.EX_SOFTWARE),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        lambda client: control.status(client, as_json=False),
        lambda client: control.connections(client, as_json=True, order="id", source=None),
        lambda client: control.config(client, sources=True),
        lambda client: list(control.kill(client, [7])),
        lambda client: list(control.kill_source(client, ipaddress.ip_network("::/0"))),
        control.reload,
        lambda client: control.lame_duck(client, on=True),
    ],
    ids=["status", "connections", "config", "kill", "kill --source", "reload", "lame-duck"],
)
def test_an_error_of_the_daemon_is_reported(  # noqa: PLR0917 - a table
    daemon: Canned,
    client: AdminClient,
    command: Callable[[AdminClient], str],
    code: int,
    content: Any,
    lines: tuple[str, ...],
    exit_code: int,
) -> None:
    """With its text, and the exit code for it."""
    daemon.answer(code, content)
    with pytest.raises(Refusal) as caught:
        command(client)
    assert (caught.value.lines, caught.value.exit_code) == (lines, exit_code)
