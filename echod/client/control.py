"""The commands about the running daemons: each asks for something, and returns text for standard output.

With several instances, each line says which one it is about. What some of them refuse, or fail to answer, doesn't keep the
others from being asked, and is reported at the end.
"""

from __future__ import annotations

import functools
import ipaddress
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from echod import screen
from echod.client.admin_client import as_expected, content, unavailable
from echod.client.instances import combined
from echod.client.totals import total
from echod.config import render
from echod.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from echod.client.admin_client import AdminClient
    from echod.client.instances import Instances
    from echod.networks import Network

    Row = Mapping[str, Any]
    Answer = Mapping[str, Any]
    Failures = dict[str, Refusal]


class User(NamedTuple):
    """A user whose processes are clients of a Unix socket."""

    uid: int

    def __str__(self) -> str:
        """Return it as answers have the source of a client."""
        return f"uid:{self.uid}"


_NOT_FOUND = 404
_UNAVAILABLE = 503
RELOAD_TIMEOUT = 75.0
"""Seconds to wait for the answer to a reload; the daemon gives up on a file after 60."""
READY_TIMEOUT = 2.0
"""Seconds to wait for the answer of `ready`. Health checks give up on the whole command after some 3."""
_READY = "ready"
_HARMLESS = frozenset({_READY, "lame duck", "starting", "draining", "not listening"})
"""What an instance may be without any client being turned away: it serves those that come, or does not listen."""


class Reply(NamedTuple):
    """What a command has to say."""

    text: str
    failure: Refusal | None = None
    """Of some of several instances, while the others have answered."""
    warnings: Sequence[str] = ()


class ConnectionId(NamedTuple):
    """The number of a connection, and the instance that has it; "" if there is only one."""

    instance: str
    number: int

    def __str__(self) -> str:
        """Return it as `connections` shows it, and as `kill` takes it."""
        return f"{self.instance}/{self.number}" if self.instance else str(self.number)


def _failure(failures: Failures) -> Refusal | None:
    return combined(failures.values()) if failures else None


def status(instances: Instances, *, as_json: bool) -> Reply:
    """Return one screen about the daemon or all instances, or what they answer, in JSON."""
    if not instances.several:
        return Reply(_one_status(instances.only, as_json=as_json))
    answers, failures = statuses(instances)
    if not as_json:
        return Reply(screen.instances(answers, total(list(answers.values())), len(failures)), _failure(failures))
    errors = {name: list(refusal.lines) for name, refusal in failures.items()}
    whole = {"total": total(list(answers.values())), "instances": answers, "errors": errors}
    return Reply(_json_line(whole), _failure(failures))


def _one_status(daemon: AdminClient, *, as_json: bool) -> str:
    with as_expected(daemon):
        answer = content(daemon.request("GET", "/status"))
        return _json_line(answer) if as_json else screen.status(answer)


def statuses(instances: Instances) -> tuple[dict[str, Answer], Failures]:
    """Return the status of each instance, and the refusals of those that gave none that can be shown."""
    return instances.ask(_checked_status)


def _checked_status(daemon: AdminClient) -> Answer:
    with as_expected(daemon):
        answer: Answer = content(daemon.request("GET", "/status"))
        screen.status(answer)
        total([answer])
        return answer


def config(daemon: AdminClient, *, sources: bool) -> str:
    """Return the settings that the daemon has, as TOML, with the origin of each if wanted."""
    with as_expected(daemon):
        answer = content(daemon.request("GET", "/config"))
        return render.toml(answer["settings"], answer["origins"] if sources else None)


def connections(instances: Instances, *, as_json: bool, order: str, source: Network | User | None) -> Reply:
    """Return a row for each open connection in this order, only for clients of this network or user if one is given."""
    rows, failures = rows_of(instances, source=source)
    with as_expected(instances):
        rows = in_order(rows, order)
        text = _json_line(rows) if as_json else screen.connections(rows, several=instances.several)
        return Reply(text, _failure(failures))


def rows_of(instances: Instances, *, source: Network | User | None) -> tuple[list[Row], Failures]:
    """Return a row for each open connection, by instance and number, and the refusals of instances that gave none.

    With several instances, each row has its `instance`.
    """
    found, failures = instances.ask(functools.partial(_rows, source=source))
    rows: list[Row] = []
    with as_expected(instances):
        for name, some in found.items():
            some.sort(key=lambda row: row["connection"])
            rows += [{"instance": name, **row} for row in some] if instances.several else some
    return rows, failures


def in_order(rows: Sequence[Row], order: str) -> list[Row]:
    """Return the rows of `rows_of` in one of `ORDERS`. Rows that are equal in it stay as they are."""
    return sorted(rows, key=ORDERS[order])


def kill(instances: Instances, connections: Sequence[ConnectionId]) -> Iterator[str]:
    """End these connections; yield a line for each. Raises `Refusal` at the end with a line for each that was not there.

    Raises it at once if it isn't said which of several instances has a connection.
    """
    if len(instances.daemons) > 1:
        for each in connections:
            if not each.instance:
                line = f"echod: kill: {each}: name the instance too, as `echod connections` does: INSTANCE/ID"
                raise Refusal(line, exit_code=os.EX_USAGE)
    wanted: dict[str, list[int]] = {}
    (first, *_) = instances.daemons
    for each in connections:
        wanted.setdefault(each.instance or first, []).append(each.number)
    missing = yield from _end(instances, wanted)
    if missing:
        raise combined(missing)


def kill_source(instances: Instances, source: Network | User) -> Iterator[str]:
    """End the connections of this network or user; yield a line for each. Raises `Refusal` if there is none."""
    with as_expected(instances):
        found, failures = instances.ask(functools.partial(_rows, source=source))
        wanted = {name: [row["connection"] for row in rows] for name, rows in found.items()}
    if not any(wanted.values()) and not failures:
        raise Refusal(f"echod: there is no connection from {source}", exit_code=os.EX_DATAERR)
    refusals = yield from _end(instances, wanted)
    # One that has ended meanwhile is what the user wants.
    refusals = [*failures.values(), *(each for each in refusals if each.exit_code != os.EX_DATAERR)]
    if refusals:
        raise combined(refusals)


def _end(instances: Instances, wanted: Mapping[str, Sequence[int]]) -> Generator[str, None, list[Refusal]]:
    """End connections; yield a line for each that was there, and return a refusal for each other, or each instance that failed."""
    refusals = []
    for name, numbers in wanted.items():
        daemon = instances.daemons.get(name)
        if daemon is None:
            refusals.append(Refusal(f"echod: there is no instance {name}", exit_code=os.EX_DATAERR))
            continue
        try:
            for number in numbers:
                with as_expected(daemon):
                    code, body = daemon.request("DELETE", f"/connections/{number}")
                    if code == _NOT_FOUND:
                        missing = Refusal(f"echod: {body['error']}", exit_code=os.EX_DATAERR)
                        refusals.append(instances.about(name, missing))
                        continue
                    killed = content((code, body))
                    shown = ConnectionId(name if instances.several else "", killed["connection"])
                    yield f"killed {shown}, {screen.client(killed['client'])}\n"
        except Refusal as refusal:
            refusals.append(instances.about(name, refusal))
    return refusals


def reload(instances: Instances) -> Reply:
    """Reload the configuration; return a line for each setting or file that changed, and warnings. Raises `Refusal` if refused."""
    answers, failures = instances.ask(_reload)
    if not instances.several:
        ((lines, warnings),) = answers.values()
        return Reply("".join(f"{line}\n" for line in lines), None, warnings)
    text = _by_instance({name: lines for name, (lines, _) in answers.items()})
    warnings = [f"instance {name}: {line}" for name, (_, some) in answers.items() for line in some]
    return Reply(text, _failure(failures), warnings)


def _reload(daemon: AdminClient) -> tuple[list[str], list[str]]:
    with as_expected(daemon):
        answer = content(daemon.request("POST", "/reload", timeout=RELOAD_TIMEOUT))
        old, new = answer["old"], answer["new"]
        lines = [f"{name}: {_json(old[name])} -> {_json(new[name])}" for name in answer["changed"]]
        lines += [f"{name}: {file} has changed, and was read" for name, file in answer.get("files", {}).items()]
        return lines or ["reloaded, nothing has changed"], list(map(str, answer["warnings"]))


def _by_instance(lines: Mapping[str, Iterable[str]]) -> str:
    return "".join(f"instance {name}: {line}\n" for name, some in lines.items() for line in some)


def ready(instances: Instances) -> Reply:
    """Return a line if a client that connects now is served; raise `Refusal` with the reason otherwise.

    With several instances, the kernel gives clients to each that listens. So one has to be ready, and none may turn clients
    away, because its pool is full, it is paused, or it hangs.
    """
    states, failures = instances.ask(_readiness)
    shown = {name: state if state == _READY else f"not ready: {state}" for name, state in states.items()}
    if _READY in states.values() and not failures and _HARMLESS.issuperset(states.values()):
        return Reply(_by_instance({name: [line] for name, line in shown.items()}) if instances.several else "ready\n")
    refusals = [instances.about(name, unavailable(line)) for name, line in shown.items() if line != _READY]
    raise combined([*refusals, *failures.values()])


def _readiness(daemon: AdminClient) -> str:
    with as_expected(daemon):
        code, body = daemon.request("GET", "/readyz")
        if code != _UNAVAILABLE:
            body = content((code, body))
        return str(body["status"])


def lame_duck(instances: Instances, *, on: bool) -> Reply:
    """Let the daemon be not ready but go on accepting, or take that back; return a line. Raises `Refusal` if it stops."""
    answers, failures = instances.ask(functools.partial(_lame_duck, on=on))
    line = "lame duck: accepting, but not ready" if on else "no lame duck"
    text = _by_instance({name: [line] for name in answers}) if instances.several else f"{line}\n"
    return Reply(text, _failure(failures))


def _lame_duck(daemon: AdminClient, *, on: bool) -> None:
    with as_expected(daemon):
        answer = content(daemon.request("PUT" if on else "DELETE", "/lame-duck"))
        if answer["lame_duck"] is not on:
            raise ValueError


def _rows(daemon: AdminClient, source: Network | User | None) -> list[Row]:
    with as_expected(daemon):
        rows: list[Row] = content(daemon.request("GET", "/connections"))
        return rows if source is None else [row for row in rows if _is_from(row["client"], source)]


def _is_from(client: Mapping[str, Any], source: Network | User) -> bool:
    if isinstance(source, User):
        return client.get("uid") == source.uid
    return "uid" not in client and _address(client) in source


def _address(client: Mapping[str, Any]) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(client["address"].partition("%")[0])


def _by_client(row: Row) -> tuple[int, int, int]:
    client = row["client"]
    if "uid" in client:
        return 0, -1 if client["uid"] is None else client["uid"], client["pid"] or 0
    address = _address(client)
    return address.version, int(address), client["port"]


def _most_first(name: str) -> Callable[[Row], float]:
    return lambda row: -row[name]


ORDERS: dict[str, Callable[[Row], Any]] = {
    "id": lambda _: 0,  # as they are
    "client": _by_client,
    "age": _most_first("age"),
    "idle": _most_first("idle"),
    "bytes": _most_first("bytes_received"),
    "state": lambda row: (row["state"], row["connection"]),
    "rtt": lambda row: -row["tcp"]["rtt"] if row["tcp"] else 0,
}
"""The keys by which connections can be sorted: columns of the table. Quantities come largest first."""


def _json(value: Any) -> str:  # noqa: ANN401 - as the daemon answers
    return orjson.dumps(value).decode()


def _json_line(value: Any) -> str:  # noqa: ANN401 - as the daemon answers
    return _json(value) + "\n"
