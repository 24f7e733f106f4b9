"""The commands about a running daemon, with canned answers, with answers that are not echod's, and with none."""

from __future__ import annotations

import ipaddress
import os
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from echod import screen
from echod.client import control
from echod.client.admin_client import AdminClient
from echod.client.control import ConnectionId, Reply, User
from echod.client.instances import MAIN, Instances
from echod.client.totals import total
from echod.errors import Refusal
from tests.support.canned_daemon import Canned, row, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

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
def client(daemon: Canned) -> Instances:
    """The only daemon."""
    return Instances({MAIN: AdminClient([daemon.path])}, several=False)


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
    daemon: Canned, client: Instances, order: str = "id", source: Network | User | None = None, rows: Any = ROWS
) -> list[int]:
    daemon.answer(200, rows)
    text = control.connections(client, as_json=True, order=order, source=source).text
    return [row["connection"] for row in orjson.loads(text)]


def test_status_is_a_screen_or_json(daemon: Canned, client: Instances) -> None:
    """For people, or one line for programs."""
    answer = status()
    for _ in range(2):
        daemon.answer(200, answer)
    assert control.status(client, as_json=False).text == screen.status(answer)
    text = control.status(client, as_json=True).text
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert orjson.loads(text) == answer
    assert daemon.requests == ["GET /status"] * 2


def test_connections_are_a_table_or_json(daemon: Canned, client: Instances) -> None:
    """The same rows in the same order."""
    for _ in range(2):
        daemon.answer(200, ROWS)
    rows = sorted(ROWS, key=lambda row: row["connection"])
    assert control.connections(client, as_json=False, order="id", source=None).text == screen.connections(rows)
    text = control.connections(client, as_json=True, order="id", source=None).text
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
def test_connections_are_sorted(daemon: Canned, client: Instances, order: str, numbers: list[int]) -> None:
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
def test_connections_of_one_network(daemon: Canned, client: Instances, source: str, numbers: list[int]) -> None:
    """Of IPv4 or IPv6."""
    assert listed(daemon, client, source=ipaddress.ip_network(source)) == numbers


def user(connection: int, uid: int | None, pid: int | None) -> dict[str, Any]:
    """Return a row of a client of a Unix socket."""
    return row(connection=connection, client={"uid": uid, "pid": pid}, listener="unix:/run/echo.sock", tcp=None)


MIXED = [*ROWS, user(5, 1000, 9), user(6, 0, 4711), user(7, 1000, 8), user(8, None, None)]


def test_clients_of_unix_sockets_are_sorted_by_user_and_process(daemon: Canned, client: Instances) -> None:
    """They come before those with an address."""
    assert listed(daemon, client, "client", rows=MIXED) == [8, 6, 7, 5, 4, 1, 3, 2]
    assert listed(daemon, client, "rtt", rows=MIXED)[:3] == [2, 1, 4]


def test_connections_of_one_user(daemon: Canned, client: Instances) -> None:
    """A client of a Unix socket is in no network."""
    assert listed(daemon, client, source=User(1000), rows=MIXED) == [5, 7]
    assert listed(daemon, client, source=User(1), rows=MIXED) == []
    assert listed(daemon, client, source=ipaddress.ip_network("0.0.0.0/0"), rows=MIXED) == [1, 3, 4]


def test_a_kill_by_user_ends_its_connections(daemon: Canned, client: Instances) -> None:
    """If there are any."""
    daemon.answer(200, MIXED)
    daemon.answer(200, {"connection": 6, "client": {"uid": 0, "pid": 4711}})
    assert list(control.kill_source(client, User(0))) == ["killed 6, uid:0,pid:4711\n"]
    daemon.answer(200, MIXED)
    with pytest.raises(Refusal, match=r"^echod: there is no connection from uid:1$"):
        list(control.kill_source(client, User(1)))


def ids(*numbers: int) -> list[ConnectionId]:
    return [ConnectionId("", number) for number in numbers]


def killed(number: int) -> dict[str, Any]:
    return {"connection": number, "client": from_("2001:db8::1", number)}


def test_kill_names_each_connection_and_its_client(daemon: Canned, client: Instances) -> None:
    """In one line."""
    for number in (7, 9):
        daemon.answer(200, killed(number))
    assert list(control.kill(client, ids(7, 9))) == ["killed 7, [2001:db8::1]:7\n", "killed 9, [2001:db8::1]:9\n"]
    assert daemon.requests == ["DELETE /connections/7", "DELETE /connections/9"]


def test_a_connection_that_is_not_there_keeps_no_other_alive(daemon: Canned, client: Instances) -> None:
    """It is reported at the end."""
    daemon.answer(404, {"error": "there is no connection 7"})
    daemon.answer(200, killed(8))
    daemon.answer(404, {"error": "there is no connection 9"})
    lines = control.kill(client, ids(7, 8, 9))
    assert next(lines) == "killed 8, [2001:db8::1]:8\n"
    with pytest.raises(Refusal) as caught:
        next(lines)
    assert caught.value.lines == ("echod: there is no connection 7", "echod: there is no connection 9")
    assert caught.value.exit_code == os.EX_DATAERR


def test_a_kill_by_network_ends_its_connections(daemon: Canned, client: Instances) -> None:
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


def test_a_kill_by_a_network_without_connections_is_an_error(daemon: Canned, client: Instances) -> None:
    """With the exit code of a connection that is not there."""
    daemon.answer(200, [])
    with pytest.raises(Refusal) as caught:
        list(control.kill_source(client, ipaddress.ip_network("192.0.2.0/24")))
    assert caught.value.lines == ("echod: there is no connection from 192.0.2.0/24",)
    assert caught.value.exit_code == os.EX_DATAERR


def test_the_settings_of_the_daemon_are_toml(daemon: Canned, client: Instances) -> None:
    """With the origin of each if wanted; also those that this version does not know."""
    answer = {
        "settings": {"pool": {"size": 5, "color": "red"}, "udp": {"port": "off"}},
        "origins": {"pool.size": "ECHOD_POOL__SIZE", "pool.color": "e.toml:3", "udp.port": "default"},
    }
    daemon.answer(200, answer)
    assert control.config(client.only, sources=False) == '[pool]\nsize = 5\ncolor = "red"\n\n[udp]\nport = "off"\n'
    daemon.answer(200, answer)
    assert control.config(client.only, sources=True) == (
        '[pool]\nsize = 5  # ECHOD_POOL__SIZE\ncolor = "red"  # e.toml:3\n\n[udp]\nport = "off"  # default\n'
    )
    assert daemon.requests == ["GET /config"] * 2


def test_a_reload_lists_the_changes(daemon: Canned, client: Instances) -> None:
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
    lines = 'pool.size: 1 -> 2\nlisten.host: ["*"] -> ["::1"]\n'
    assert control.reload(client) == (lines, None, ["a mistake"])
    daemon.answer(200, {"changed": [], "old": {}, "new": {}, "warnings": []})
    assert control.reload(client) == ("reloaded, nothing has changed\n", None, [])
    files = {"tls.certificate": "/etc/x.pem"}
    daemon.answer(200, {"changed": [], "old": {}, "new": {}, "files": files, "warnings": []})
    assert control.reload(client) == ("tls.certificate: /etc/x.pem has changed, and was read\n", None, [])
    assert daemon.requests == ["POST /reload"] * 3


def test_ready_is_a_line_or_the_reason(daemon: Canned, client: Instances) -> None:
    """With the exit code of a service that is not available."""
    daemon.answer(200, {"status": "ready"})
    assert control.ready(client) == ("ready\n", None, ())
    daemon.answer(503, {"status": "lame duck"})
    with pytest.raises(Refusal) as caught:
        control.ready(client)
    assert (caught.value.lines, caught.value.exit_code) == (("echod: not ready: lame duck",), os.EX_UNAVAILABLE)
    assert daemon.requests == ["GET /readyz"] * 2


def test_a_lame_duck_is_made_and_taken_back(daemon: Canned, client: Instances) -> None:
    """With a line that says what it is now."""
    daemon.answer(200, {"lame_duck": True})
    assert control.lame_duck(client, on=True).text == "lame duck: accepting, but not ready\n"
    daemon.answer(200, {"lame_duck": False})
    assert control.lame_duck(client, on=False).text == "no lame duck\n"
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
        lambda client: control.config(client.only, sources=True),
        lambda client: list(control.kill(client, ids(7))),
        lambda client: list(control.kill_source(client, ipaddress.ip_network("::/0"))),
        control.reload,
        lambda client: control.lame_duck(client, on=True),
    ],
    ids=["status", "connections", "config", "kill", "kill --source", "reload", "lame-duck"],
)
def test_an_answer_of_another_form_is_refused(
    daemon: Canned, client: Instances, command: Callable[[Instances], object], code: int, content: Any
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
    assert control.reload(Instances({MAIN: client}, several=False))


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
        lambda client: control.config(client.only, sources=True),
        lambda client: list(control.kill(client, ids(7))),
        lambda client: list(control.kill_source(client, ipaddress.ip_network("::/0"))),
        control.reload,
        lambda client: control.lame_duck(client, on=True),
    ],
    ids=["status", "connections", "config", "kill", "kill --source", "reload", "lame-duck"],
)
def test_an_error_of_the_daemon_is_reported(  # noqa: PLR0917 - a table
    daemon: Canned,
    client: Instances,
    command: Callable[[Instances], str],
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


# Several instances


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Canned, Canned]]:
    with Canned(tmp_path / "one.sock") as one, Canned(tmp_path / "two.sock") as two:
        yield one, two


@pytest.fixture
def both(two: tuple[Canned, Canned]) -> Instances:
    """The instances 1 and 2."""
    names = zip(("1", "2"), two, strict=True)
    return Instances({name: AdminClient([daemon.path]) for name, daemon in names}, several=True)


def silent(canned: Canned, name: str) -> str:
    """Return the line about an instance that has no answer."""
    return f"echod: instance {name}: unix:{canned.path}: no valid answer; is it the admin socket of echod?"


def failed(reply: Reply) -> tuple[tuple[str, ...], int]:
    assert reply.failure
    return reply.failure.lines, reply.failure.exit_code


def test_the_status_of_several_has_totals(two: tuple[Canned, Canned], both: Instances) -> None:
    """On one screen, or as one object with what each answers."""
    answers = {"1": status(pid=1), "2": status(pid=2)}
    for _ in range(2):
        for daemon, answer in zip(two, answers.values(), strict=True):
            daemon.answer(200, answer)
    together = total(list(answers.values()))
    assert control.status(both, as_json=False) == (screen.instances(answers, together, 0), None, ())
    reply = control.status(both, as_json=True)
    assert orjson.loads(reply.text) == {"total": together, "instances": answers, "errors": {}}


def test_an_instance_without_an_answer_does_not_hide_the_others(two: tuple[Canned, Canned], both: Instances) -> None:
    """It is named, and the command fails; in JSON, it is in `errors` too."""
    answers = {"1": status(pid=1)}
    for content in (None, status(pool={})):
        two[0].answer(200, answers["1"])
        if content:
            two[1].answer(200, content)
    line = silent(two[1], "2")
    reply = control.status(both, as_json=False)
    assert reply.text == screen.instances(answers, total(list(answers.values())), 1)
    assert failed(reply) == (("echod: instance 2: " + unexpected(two[1]),), os.EX_UNAVAILABLE)
    reply = control.status(both, as_json=True)
    assert orjson.loads(reply.text)["errors"] == {"2": [line]}
    assert failed(reply) == ((line,), os.EX_UNAVAILABLE)


def unexpected(canned: Canned) -> str:
    return f"unix:{canned.path}: unexpected answer; is it another version of echod?"


@pytest.mark.parametrize(
    ("order", "numbers"), [("id", ["1/1", "1/5", "2/1", "2/2"]), ("age", ["2/2", "1/5", "2/1", "1/1"])]
)
def test_the_connections_of_several_are_sorted_together(
    two: tuple[Canned, Canned], both: Instances, order: str, numbers: list[str]
) -> None:
    """Each row has its instance, in JSON too."""
    rows = [[row(connection=5, age=3), row(connection=1, age=1)], [row(connection=1, age=2), row(connection=2, age=4)]]
    for _ in range(2):
        for daemon, some in zip(two, rows, strict=True):
            daemon.answer(200, some)
    text = control.connections(both, as_json=True, order=order, source=None).text
    assert [f"{each['instance']}/{each['connection']}" for each in orjson.loads(text)] == numbers
    lines = control.connections(both, as_json=False, order=order, source=None).text.splitlines()[1:]
    assert [line.split()[1] for line in lines] == numbers


def test_rows_that_can_not_be_shown_are_refused(two: tuple[Canned, Canned], both: Instances) -> None:
    """Both sockets are named."""
    two[0].answer(200, [{"connection": 1}])
    two[1].answer(200, [])
    with pytest.raises(Refusal) as caught:
        control.connections(both, as_json=False, order="id", source=None)
    where = " or ".join(f"unix:{daemon.path}" for daemon in two)
    assert caught.value.lines == (f"echod: {where}: unexpected answer; is it another version of echod?",)


def test_kill_takes_the_instance_with_the_number(two: tuple[Canned, Canned], both: Instances) -> None:
    """What is not there is reported at the end, with its instance."""
    two[0].answer(200, killed(7))
    two[1].answer(404, {"error": "there is no connection 9"})
    two[1].answer(200, killed(8))
    wanted = [ConnectionId("2", 9), ConnectionId("1", 7), ConnectionId("2", 8), ConnectionId("3", 1)]
    lines = control.kill(both, wanted)
    assert [next(lines), next(lines)] == ["killed 2/8, [2001:db8::1]:8\n", "killed 1/7, [2001:db8::1]:7\n"]
    with pytest.raises(Refusal) as caught:
        next(lines)
    assert caught.value.lines == ("echod: instance 2: there is no connection 9", "echod: there is no instance 3")
    assert caught.value.exit_code == os.EX_DATAERR


def test_kill_ends_nothing_if_a_number_lacks_its_instance(two: tuple[Canned, Canned], both: Instances) -> None:
    """Both have such a connection."""
    with pytest.raises(Refusal) as caught:
        list(control.kill(both, [ConnectionId("1", 7), ConnectionId("", 8)]))
    line = "echod: kill: 8: name the instance too, as `echod connections` does: INSTANCE/ID"
    assert (caught.value.lines, caught.value.exit_code) == ((line,), os.EX_USAGE)
    assert two[0].requests == []


def test_a_number_is_enough_while_one_instance_runs(two: tuple[Canned, Canned]) -> None:
    """There is no other one that it could be of."""
    two[0].answer(200, killed(7))
    alone = Instances({"1": AdminClient([two[0].path])}, several=True)
    assert list(control.kill(alone, ids(7))) == ["killed 1/7, [2001:db8::1]:7\n"]


def test_an_instance_that_hangs_keeps_no_connection_of_others_alive(
    two: tuple[Canned, Canned], both: Instances
) -> None:
    """It is asked once, and reported."""
    two[1].answer(200, killed(8))
    lines = control.kill(both, [ConnectionId("1", 7), ConnectionId("1", 6), ConnectionId("2", 8)])
    assert next(lines) == "killed 2/8, [2001:db8::1]:8\n"
    with pytest.raises(Refusal) as caught:
        next(lines)
    assert (caught.value.lines, caught.value.exit_code) == ((silent(two[0], "1"),), os.EX_UNAVAILABLE)
    assert two[0].requests == ["DELETE /connections/7"]


def test_a_kill_by_network_reaches_all_instances(two: tuple[Canned, Canned], both: Instances) -> None:
    """None in one of them is no error, and one that has ended meanwhile neither."""
    network = ipaddress.ip_network("192.0.2.1/32")
    two[0].answer(200, [])
    two[1].answer(200, [row(connection=3), row(connection=4)])
    two[1].answer(200, killed(3))
    two[1].answer(404, {"error": "there is no connection 4"})
    assert list(control.kill_source(both, network)) == ["killed 2/3, [2001:db8::1]:3\n"]
    for daemon in two:
        daemon.answer(200, [])
    with pytest.raises(Refusal, match=r"no connection from 192\.0\.2\.1/32$") as caught:
        list(control.kill_source(both, network))
    assert caught.value.exit_code == os.EX_DATAERR


def test_a_kill_by_network_fails_if_an_instance_does_not_answer(two: tuple[Canned, Canned], both: Instances) -> None:
    """It may have such connections."""
    two[0].answer(200, [])
    with pytest.raises(Refusal) as caught:
        list(control.kill_source(both, ipaddress.ip_network("192.0.2.1/32")))
    assert (caught.value.lines, caught.value.exit_code) == ((silent(two[1], "2"),), os.EX_UNAVAILABLE)


def change(*names: str, warnings: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"changed": names, "old": dict.fromkeys(names, 1), "new": dict.fromkeys(names, 2), "warnings": warnings}


def test_a_reload_reloads_all_instances(two: tuple[Canned, Canned], both: Instances) -> None:
    """Each line says which one."""
    two[0].answer(200, change("pool.size", warnings=("a",)))
    two[1].answer(200, change())
    text = "instance 1: pool.size: 1 -> 2\ninstance 2: reloaded, nothing has changed\n"
    assert control.reload(both) == (text, None, ["instance 1: a"])


def test_a_reload_fails_if_one_instance_refuses(two: tuple[Canned, Canned], both: Instances) -> None:
    """The others are reloaded all the same."""
    two[0].answer(422, {"errors": ["f:1: a", "f:2: b"], "exit_code": 78})
    two[1].answer(200, change("pool.size"))
    reply = control.reload(both)
    assert reply.text == "instance 2: pool.size: 1 -> 2\n"
    assert failed(reply) == (("instance 1: f:1: a", "instance 1: f:2: b"), os.EX_CONFIG)


@pytest.mark.parametrize("other", ["ready", "lame duck", "starting", "draining", "not listening"])
def test_several_are_ready_if_one_is_and_none_turns_clients_away(
    two: tuple[Canned, Canned], both: Instances, other: str
) -> None:
    """A lame duck serves, and the kernel gives no client to one that does not listen."""
    two[0].answer(200, {"status": "ready"})
    two[1].answer(200 if other == "ready" else 503, {"status": other})
    state = other if other == "ready" else f"not ready: {other}"
    assert control.ready(both) == (f"instance 1: ready\ninstance 2: {state}\n", None, ())


@pytest.mark.parametrize("other", ["pool full", "paused", None])
def test_several_are_not_ready_if_one_turns_clients_away(
    two: tuple[Canned, Canned], both: Instances, other: str | None
) -> None:
    """The kernel gives it clients. So it does if it hangs."""
    two[0].answer(200, {"status": "ready"})
    if other:
        two[1].answer(503, {"status": other})
    with pytest.raises(Refusal) as caught:
        control.ready(both)
    line = f"echod: instance 2: not ready: {other}" if other else silent(two[1], "2")
    assert (caught.value.lines, caught.value.exit_code) == ((line,), os.EX_UNAVAILABLE)


def test_several_lame_ducks_are_not_ready(two: tuple[Canned, Canned], both: Instances) -> None:
    """Whoever asks is to send clients to another machine."""
    for daemon in two:
        daemon.answer(503, {"status": "lame duck"})
    with pytest.raises(Refusal) as caught:
        control.ready(both)
    assert caught.value.lines == tuple(f"echod: instance {number}: not ready: lame duck" for number in "12")


def test_all_instances_become_lame_ducks(two: tuple[Canned, Canned], both: Instances) -> None:
    """One that stops refuses, and is named."""
    two[0].answer(200, {"lame_duck": False})
    two[1].answer(409, {"error": "the daemon stops"})
    reply = control.lame_duck(both, on=False)
    assert reply.text == "instance 1: no lame duck\n"
    assert failed(reply) == (("echod: instance 2: the daemon stops",), os.EX_UNAVAILABLE)
