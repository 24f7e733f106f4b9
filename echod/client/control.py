"""The commands about a running daemon: status, connections, kill, reload.

Knows nothing of sockets and of the command line's grammar. Each returns the text for standard output.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from typing import TYPE_CHECKING, Any

import orjson

from echod.client import screen
from echod.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from echod.client.http import Client
    from echod.networks import Network

    Row = Mapping[str, Any]


def _client(row: Row) -> Any:  # noqa: ANN401 - what sorts
    address = ipaddress.ip_address(row["client"]["address"].partition("%")[0])
    return address.version, int(address), row["client"]["port"]


def _most(name: str) -> Callable[[Row], Any]:
    return lambda row: -(row[name] or 0)


RELOAD_PATIENCE = 75.0
"""Seconds for the answer to a reload, which gives up on a file after a minute."""
ORDERS: dict[str, Callable[[Row], Any]] = {
    "id": lambda row: row["id"],
    "client": _client,
    "age": _most("age"),
    "idle": _most("idle"),
    "bytes": _most("bytes"),
    "state": lambda row: (row["state"], row["id"]),
    "rtt": _most("rtt"),
}
"""What connections can be sorted by. Where more is more interesting, the most come first."""


def status(client: Client, *, as_json: bool) -> str:
    """Return one screen about the daemon."""
    with _understood(client):
        answer = _expect(client.ask("GET", "/status"))
        return _json(answer) if as_json else screen.status(answer)


def connections(client: Client, *, as_json: bool, order: str, source: Network | None) -> str:
    """Return a row for each open connection, of this network only if there is one."""
    with _understood(client):
        rows = [row for row in _expect(client.ask("GET", "/connections")) if source is None or _is_from(row, source)]
        rows.sort(key=ORDERS[order])
        return _json(rows) if as_json else screen.connections(rows)


def _is_from(row: Row, source: Network) -> bool:
    return ipaddress.ip_address(row["client"]["address"].partition("%")[0]) in source


def kill(client: Client, number: int) -> str:
    """End one connection."""
    with _understood(client):
        killed = _expect(client.ask("DELETE", f"/connections/{number}"))
        return f"killed {killed['id']}, {screen.client(killed['client'])}\n"


def reload(client: Client) -> str:
    """Reload the configuration; return what has changed. Raises `Refusal` with what is wrong with it."""
    with _understood(client):
        answer = _expect(client.ask("POST", "/reload", patience=RELOAD_PATIENCE))
        old, new = answer["old"], answer["new"]
        lines = [f"{name}: {_written(old[name])} -> {_written(new[name])}" for name in answer["changed"]]
        return "".join(f"{line}\n" for line in lines or ["reloaded, nothing has changed"])


@contextlib.contextmanager
def _understood(client: Client) -> Iterator[None]:
    """Refuse an answer that is not what this version expects: what listens there may be anything that knows HTTP."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        line = f"echod: what answers at {client.where} is no echod, or of another version"
        raise Refusal(line, exit_code=os.EX_UNAVAILABLE) from None


def _expect(answer: tuple[int, Any]) -> Any:  # noqa: ANN401 - as the daemon answers
    """Return what the daemon has answered, if it has done what was asked."""
    code, content = answer
    match code:
        case 200:
            return content
        case 422:
            raise Refusal(*map(str, content["errors"]), exit_code=os.EX_CONFIG)
        case 404:
            raise Refusal(f"echod: {content['error']}", exit_code=os.EX_DATAERR)
        case 503:
            raise Refusal(f"echod: {content['error']}", exit_code=os.EX_UNAVAILABLE)
    raise Refusal(f"echod: the daemon answers {code}: {_written(content)}", exit_code=os.EX_SOFTWARE)


def _json(content: Any) -> str:  # noqa: ANN401 - as the daemon answers
    return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE).decode()


def _written(value: Any) -> str:  # noqa: ANN401 - as the daemon answers
    return orjson.dumps(value).decode()
