"""What the admin server answers, and to whom: on real sockets where they matter, else by its routes."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import uvloop

from echod.admin import routes, status
from echod.admin.http import Request, Response
from echod.admin.routes import is_ours
from echod.reload import Change, Reloaded
from tests.support.fakes import has_ipv6, stop_clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.in_process import Inside

READ_ONLY = ["/", "/metrics", "/status", "/livez", "/readyz"]

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


class Answer:
    """An answer, read to its end."""

    def __init__(self, response: Response, body: bytes) -> None:
        self.status = response.status
        self.body = body
        self.content_type = response.content_type
        self.headers = dict(response.headers)

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


def ask(daemon: Inside, path: str, method: str = "GET", **headers: str) -> Answer:
    """Ask on the Unix socket."""
    return asked(daemon.routes.local, path, method, headers)


def ask_remote(daemon: Inside, path: str, method: str = "GET", **headers: str) -> Answer:
    """Ask on `admin.http`."""
    return asked(daemon.routes.remote, path, method, headers)


def asked(route: routes.Answer, path: str, method: str, headers: dict[str, str]) -> Answer:
    async def go() -> Answer:
        response = await route(Request(method, path, headers))
        return Answer(response, await whole(response.body))

    return uvloop.run(go())


async def whole(body: bytes | AsyncIterator[bytes]) -> bytes:
    return body if isinstance(body, bytes) else b"".join([part async for part in body])


# Health


def test_it_is_alive_as_long_as_it_answers(daemon: Inside) -> None:
    """A drain is no reason to be killed."""
    for daemon.server.state in ("starting", "running", "draining"):
        answer = ask(daemon, "/livez")
        assert (answer.status, answer.json) == (200, {"status": "alive"})


def test_it_is_ready_while_it_accepts(daemon: Inside) -> None:
    """And says why it is not."""
    daemon.listen("127.0.0.1")
    answers = []
    for daemon.server.state in ("starting", "running", "draining"):
        answer = ask(daemon, "/readyz")
        answers.append((answer.status, answer.json["status"]))
    assert answers == [(503, "starting"), (200, "ready"), (503, "draining")]


def test_it_is_not_ready_if_no_listener_accepts(daemon: Inside) -> None:
    """Although it runs."""
    answer = ask(daemon, "/readyz")
    assert (answer.status, answer.json) == (503, {"status": "not listening"})


def test_a_lame_duck_is_not_ready(daemon: Inside) -> None:
    """PUT makes it one, DELETE takes it back; both may be repeated."""
    daemon.listen("127.0.0.1")
    for method, on, ready in (("PUT", True, (503, "lame duck")), ("DELETE", False, (200, "ready"))):
        for _ in range(2):
            answer = ask(daemon, "/lame-duck", method)
            assert (answer.status, answer.json) == (200, {"lame_duck": on})
            answer = ask(daemon, "/readyz")
            assert (answer.status, answer.json["status"]) == ready


def test_a_stop_is_not_taken_back(daemon: Inside) -> None:
    """With the reason: neither by a lame duck before the drain, nor in it."""
    before = daemon.server.settings
    timeouts = before.timeouts.model_copy(update={"lame_duck": 10.0})
    daemon.server.settings = before.model_copy(update={"timeouts": timeouts})
    for end in (daemon.server.prepare_stop, daemon.server.begin_drain):
        end()
        answer = ask(daemon, "/lame-duck", "DELETE")
        assert (answer.status, answer.json) == (409, {"error": "the daemon stops"})


# Status and metrics


def test_the_status_is_the_report(daemon: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """As JSON."""
    stop_clock(monkeypatch, now=60.5, booted=1.6e9)
    daemon.rig.take()
    answer = ask(daemon, "/status")
    assert (answer.status, answer.content_type) == (200, "application/json")
    expected = asyncio.run(status.status(daemon.running, daemon.meter))
    assert {**answer.json, "uptime": 0} == {**expected, "uptime": 0}


def test_metrics_have_the_form_that_is_wanted(daemon: Inside) -> None:
    """By the Accept header, if there is one."""
    answer = ask(daemon, "/metrics")
    assert answer.content_type.startswith("text/plain; version=0.0.4")
    assert b"echod_pool_size 3.0\n" in answer.body
    answer = ask(daemon, "/metrics", accept="application/openmetrics-text")
    assert answer.content_type.startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


# Connections


def test_connections_are_a_list_of_all(daemon: Inside) -> None:
    """In the order in which they came, as the report has each."""
    for _ in range(3):
        daemon.rig.take()
    answer = ask(daemon, "/connections")
    assert [row["connection"] for row in answer.json] == [1, 2, 3]
    assert set(answer.json[0]) == set(status.connection(daemon.pool.in_use[1]))


def test_without_connections_the_list_is_empty(daemon: Inside) -> None:
    """And still a list, with its line end."""
    assert ask(daemon, "/connections").body == b"[]\n"


@pytest.mark.parametrize("gone", [[1], [2], [3], [1, 2], [2, 3], [1, 3], [1, 2, 3]])
def test_a_list_in_parts_is_whole_whoever_ends_meanwhile(
    daemon: Inside, monkeypatch: pytest.MonkeyPatch, gone: list[int]
) -> None:
    """The loop goes on between the parts: who has gone by then is left out, and who comes is."""
    monkeypatch.setattr(routes, "BATCH", 1)
    transports = [daemon.rig.take()[1] for _ in range(3)]

    async def read() -> list[int]:
        body = (await daemon.routes.local(Request("GET", "/connections", {}))).body
        assert not isinstance(body, bytes)
        data = b""
        async for part in body:
            data += part
            if data == part:
                for number in gone:
                    transports[number - 1].receive_eof()
                daemon.loop.run()
                if gone:
                    daemon.rig.take()
        return [row["connection"] for row in orjson.loads(data)]

    assert uvloop.run(read()) == [number for number in (1, 2, 3) if number == 1 or number not in gone]


def test_a_long_list_leaves_the_loop_to_others(daemon: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each part, somebody else has a turn."""
    monkeypatch.setattr(routes, "BATCH", 1)
    for _ in range(3):
        daemon.rig.take()

    async def read() -> int:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(count())
        await whole(daemon.routes._rows())
        other.cancel()
        return turns

    assert uvloop.run(read()) >= 3


# Kill


def test_a_connection_is_killed_by_its_number(daemon: Inside) -> None:
    """It ends with that reason, and the answer says whom it was about."""
    for _ in range(2):
        daemon.rig.take()
    answer = ask(daemon, "/connections/2", "DELETE")
    assert (answer.status, answer.json) == (200, {"connection": 2, "client": {"address": "192.0.2.9", "port": 4711}})
    daemon.loop.run()
    assert list(daemon.pool.in_use) == [1]
    assert daemon.rig.reasons() == {"killed": 1}


@pytest.mark.parametrize("stalled", [False, True])
def test_who_does_not_read_is_killed_by_a_reset(
    daemon: Inside, monkeypatch: pytest.MonkeyPatch, *, stalled: bool
) -> None:
    """The kernel would hold its echo for a long time; anyone else gets a good end."""
    resets: list[object] = []
    monkeypatch.setattr("echod.server.kernel.reset_on_close", resets.append)
    _, transport = daemon.rig.take()
    transport.window = 0 if stalled else 5
    transport.receive(b"12345")
    assert ask(daemon, "/connections/1", "DELETE").status == 200
    assert bool(resets) == stalled
    daemon.loop.run()


@pytest.mark.parametrize("number", ["2", "0", "-1", "x", "", "1/", "1 ", "²", "9" * 19, "9" * 5000])
def test_who_is_not_there_can_not_be_killed(daemon: Inside, number: str) -> None:
    """Whatever stands in place of a number."""
    daemon.rig.take()
    answer = ask(daemon, f"/connections/{number}", "DELETE")
    assert answer.status == 404
    assert answer.json == {"error": f"there is no connection {number}"}
    assert list(daemon.pool.in_use) == [1]


# Configuration


def test_the_configuration_is_what_the_daemon_runs_on(daemon: Inside) -> None:
    """By section, as TOML has it, and where each value comes from."""
    answer = ask(daemon, "/config").json
    assert answer["settings"]["pool"] == {"size": 3, "when_full": "reject"}
    assert answer["origins"]["pool.size"] == "ECHOD_POOL__SIZE"
    assert answer["origins"]["pool.when_full"] == "default"


# Reload


def test_a_reload_says_what_has_changed(daemon: Inside) -> None:
    """With the values before and after, and warnings."""
    change = Change(["pool.size"], {"pool.size": 3}, {"pool.size": 5}, ["hm"])
    daemon.reloads.ends = Reloaded(0.0, 0.0, change)
    answer = ask(daemon, "/reload", "POST")
    assert answer.status == 200
    assert answer.json == {
        "changed": ["pool.size"],
        "old": {"pool.size": 3},
        "new": {"pool.size": 5},
        "warnings": ["hm"],
    }
    daemon.reloads.ends = Reloaded(0.0, 0.0, change, files={"tls.key": "/etc/key.pem"})
    assert ask(daemon, "/reload", "POST").json["files"] == {"tls.key": "/etc/key.pem"}


def test_a_refused_reload_says_what_is_wrong(daemon: Inside) -> None:
    """With all of its lines."""
    daemon.reloads.ends = Reloaded(0.0, 0.0, errors=["this", "and that"], exit_code=78)
    answer = ask(daemon, "/reload", "POST")
    assert (answer.status, answer.json) == (422, {"errors": ["this", "and that"], "exit_code": 78})


def test_a_daemon_that_stops_reloads_nothing(daemon: Inside) -> None:
    """And says so."""
    answer = ask(daemon, "/reload", "POST")
    assert (answer.status, answer.json) == (503, {"error": "the daemon stops"})


# Methods and paths


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        *((path, "GET, HEAD") for path in READ_ONLY),
        ("/config", "GET, HEAD"),
        ("/connections", "GET, HEAD"),
        ("/connections/1", "DELETE"),
        ("/reload", "POST"),
    ],
)
def test_another_method_is_refused(daemon: Inside, path: str, allowed: str) -> None:
    """With those that there are (RFC 9110, 15.5.6); and nothing happens."""
    daemon.rig.take()
    for method in {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "get"} - set(allowed.split(", ")):
        answer = ask(daemon, path, method)
        assert (answer.status, answer.headers["allow"]) == (405, allowed)
        assert answer.json == {"error": f"{path} takes {allowed}"}
    daemon.loop.run()
    assert list(daemon.pool.in_use) == [1]


@pytest.mark.parametrize("path", [*READ_ONLY, "/config", "/connections"])
def test_head_goes_where_get_does(daemon: Inside, path: str) -> None:
    """With the same status; its server leaves the body out."""
    daemon.listen("127.0.0.1")
    assert ask(daemon, path, "HEAD").status == 200


@pytest.mark.parametrize(
    "path", ["", "//", "*", "/metrics/", "/Status", "/connection", "/reload/", "/lame-duck/", "/connections-2"]
)
def test_another_path_is_not_there(daemon: Inside, path: str) -> None:
    """With those that are."""
    answer = ask(daemon, path)
    assert answer.status == 404
    assert answer.json["error"].startswith("there is /, /metrics, /status, /livez, /readyz;")


# Who may


@pytest.mark.parametrize("path", READ_ONLY)
def test_a_port_answers_what_changes_nothing(daemon: Inside, path: str) -> None:
    """As the Unix socket does."""
    daemon.listen("127.0.0.1")
    assert ask_remote(daemon, path, host="127.0.0.1:9107").status == 200
    assert ask_remote(daemon, path).status == 200  # HTTP/1.0, of which no browser makes use


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/config", "GET"),
        ("/connections", "GET"),
        ("/connections/1", "DELETE"),
        ("/reload", "POST"),
        ("/lame-duck", "PUT"),
        ("/lame-duck", "DELETE"),
    ],
)
def test_a_port_answers_nothing_else(daemon: Inside, path: str, method: str) -> None:
    """Neither who is connected, nor anything that changes something."""
    daemon.rig.take()
    daemon.reloads.ends = Reloaded(0.0, 0.0, Change([], {}, {}, []))
    assert ask_remote(daemon, path, method, host="localhost").status == 404
    daemon.loop.run()
    assert list(daemon.pool.in_use) == [1]
    assert daemon.server.lame_duck is None


@pytest.mark.parametrize("path", [*READ_ONLY, "/connections", "/nothing"])
def test_a_port_answers_nothing_by_the_name_of_somebody_else(daemon: Inside, path: str) -> None:
    """A page in a browser could have its own name point here (DNS rebinding); the socket is out of its reach."""
    answer = ask_remote(daemon, path, host="evil.example:9107")
    assert answer.status == 421
    assert list(answer.json) == ["error"]
    assert ask(daemon, "/livez", host="evil.example").status == 200


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:9107",
        "LocalHost",
        "localhost.",
        "localhost:",
        "127.0.0.1",
        "127.0.0.1:9107",
        "10.1.2.3:80",
        "[::1]",
        "[::1]:9107",
        "[fe80::1%eth0]:9107",
        socket.gethostname(),
        f"{socket.gethostname().upper()}:9107",
    ],
)
def test_an_address_or_a_name_of_our_own_is_ours(host: str) -> None:
    """No DNS server but ours has a say in it."""
    assert is_ours(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        ":9107",
        "evil.example",
        "evil.example:9107",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil-localhost",
        "user@localhost",
        "localhost:x",
        "localhost:9107:1",
        "localhost/",
        "::1",
        "[::1",
        "[evil.example]",
        "2130706433",
        "0x7f.1",
        "127.1",
    ],
)
def test_another_name_is_not_ours(host: str) -> None:
    """Nor what only looks like ours."""
    assert not is_ours(host)
