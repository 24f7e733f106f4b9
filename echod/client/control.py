"""The commands about the running daemon: each sends a request to its admin socket, and returns text for standard output.

An unreachable daemon, an error that it reports, and an answer that echod would not give end in a `Refusal`.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import h11
import orjson

from echod import unix
from echod.client import screen
from echod.config import render
from echod.errors import Refusal

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from pathlib import Path

    from echod.networks import Network

    Row = Mapping[str, Any]


class User(NamedTuple):
    """A user whose processes are clients of a Unix socket."""

    uid: int

    def __str__(self) -> str:
        """Return it as answers have the source of a client."""
        return f"uid:{self.uid}"


TIMEOUT = 10.0
"""Seconds to wait for an answer."""
_NOT_FOUND = 404
_UNAVAILABLE = 503
RELOAD_TIMEOUT = 75.0
"""Seconds to wait for the answer to a reload; the daemon gives up on a file after 60."""


class AdminClient:
    """Sends requests to the first of these paths at which a daemon accepts.

    `trouble` explains why the right path may be missing from the list; it is raised if no path has a daemon.
    """

    def __init__(self, paths: Sequence[Path], trouble: Refusal | None = None) -> None:
        self._paths = paths
        self._trouble = trouble
        self.url = ""
        """The socket of the last request."""

    def request(self, method: str, target: str, *, timeout: float = TIMEOUT) -> tuple[int, Any]:
        """Return the status code and the decoded JSON. Raises `Refusal` with exit code 69 or 77."""
        self.url, sock = self._connect(timeout)
        with sock:
            try:
                return _exchange(sock, method, target)
            except TimeoutError:
                raise _unavailable(f"{self.url}: no answer within {timeout:.0f} s") from None
            except (OSError, h11.RemoteProtocolError, ValueError):
                raise _unavailable(f"{self.url}: no valid answer; is it the admin socket of echod?") from None

    def _connect(self, timeout: float) -> tuple[str, socket.socket]:
        forbidden = ""
        for path in self._paths:
            try:
                return unix.url(path), unix.connect(path, timeout)
            except PermissionError:
                forbidden = forbidden or unix.url(path)
            except TimeoutError:
                raise _unavailable(f"{unix.url(path)}: no answer within {timeout:.0f} s") from None
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED):
                    raise _unavailable(f"{unix.url(path)}: {error.strerror or error}") from None
        if self._trouble:
            raise self._trouble
        if forbidden:
            line = f"echod: {forbidden}: no permission: be root, the daemon's user, or a member of its group"
            raise Refusal(line, exit_code=os.EX_NOPERM)
        if not self._paths:
            raise _unavailable('admin.socket is "off": no daemon can be reached')
        raise _unavailable(f"no daemon answers at {' or '.join(map(unix.url, self._paths))}")


def _exchange(sock: socket.socket, method: str, target: str) -> tuple[int, Any]:
    connection = h11.Connection(h11.CLIENT)
    request = h11.Request(method=method, target=target, headers=[("host", "echod"), ("connection", "close")])
    sock.sendall((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
    code, body = 0, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(sock.recv(65536))
        elif isinstance(event, h11.Response):
            code = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return code, orjson.loads(body)


def _unavailable(line: str) -> Refusal:
    return Refusal(f"echod: {line}", exit_code=os.EX_UNAVAILABLE)


def status(daemon: AdminClient, *, as_json: bool) -> str:
    """Return one screen about the daemon, or what it answers, in JSON."""
    with _as_expected(daemon):
        answer = _content(daemon.request("GET", "/status"))
        return _json_line(answer) if as_json else screen.status(answer)


def config(daemon: AdminClient, *, sources: bool) -> str:
    """Return the settings that the daemon has, as TOML, with the origin of each if wanted."""
    with _as_expected(daemon):
        answer = _content(daemon.request("GET", "/config"))
        return render.toml(answer["settings"], answer["origins"] if sources else None)


def connections(daemon: AdminClient, *, as_json: bool, order: str, source: Network | User | None) -> str:
    """Return a row for each open connection in this order, only for clients of this network or user if one is given."""
    with _as_expected(daemon):
        rows = _rows(daemon, source)
        rows.sort(key=ORDERS[order])
        return _json_line(rows) if as_json else screen.connections(rows)


def kill(daemon: AdminClient, connections: Sequence[int]) -> Iterator[str]:
    """End these connections; yield a line for each. Raises `Refusal` at the end with a line for each that was not there."""
    missing = yield from _end(daemon, connections)
    if missing:
        raise Refusal(*missing, exit_code=os.EX_DATAERR)


def kill_source(daemon: AdminClient, source: Network | User) -> Iterator[str]:
    """End the connections of this network or user; yield a line for each. Raises `Refusal` if there is none."""
    with _as_expected(daemon):
        numbers = [row["connection"] for row in _rows(daemon, source)]
    if not numbers:
        raise Refusal(f"echod: there is no connection from {source}", exit_code=os.EX_DATAERR)
    yield from _end(daemon, numbers)  # one that has ended meanwhile is what the user wants


def _end(daemon: AdminClient, connections: Sequence[int]) -> Generator[str, None, list[str]]:
    """End connections; yield a line for each that was there, and return one for each that was not."""
    missing = []
    for connection in connections:
        with _as_expected(daemon):
            code, content = daemon.request("DELETE", f"/connections/{connection}")
            if code == _NOT_FOUND:
                missing.append(f"echod: {content['error']}")
            else:
                killed = _content((code, content))
                yield f"killed {killed['connection']}, {screen.client(killed['client'])}\n"
    return missing


def reload(daemon: AdminClient) -> tuple[str, list[str]]:
    """Reload the configuration; return a line for each setting that changed, and warnings. Raises `Refusal` if refused."""
    with _as_expected(daemon):
        answer = _content(daemon.request("POST", "/reload", timeout=RELOAD_TIMEOUT))
        old, new = answer["old"], answer["new"]
        lines = [f"{name}: {_json(old[name])} -> {_json(new[name])}" for name in answer["changed"]]
        text = "".join(f"{line}\n" for line in lines or ["reloaded, nothing has changed"])
        return text, list(map(str, answer["warnings"]))


def ready(daemon: AdminClient) -> str:
    """Return a line if a client that connects now is served; raise `Refusal` with the reason otherwise."""
    with _as_expected(daemon):
        code, content = daemon.request("GET", "/readyz")
        if code == _UNAVAILABLE:
            raise _unavailable(f"not ready: {content['status']}")
        _content((code, content))
        return "ready\n"


def lame_duck(daemon: AdminClient, *, on: bool) -> str:
    """Let the daemon be not ready but go on accepting, or take that back; return a line. Raises `Refusal` if it stops."""
    with _as_expected(daemon):
        answer = _content(daemon.request("PUT" if on else "DELETE", "/lame-duck"))
        if answer["lame_duck"] is not on:
            raise ValueError
        return "lame duck: accepting, but not ready\n" if on else "no lame duck\n"


def _rows(daemon: AdminClient, source: Network | User | None) -> list[Row]:
    rows: list[Row] = _content(daemon.request("GET", "/connections"))
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
    "id": lambda row: row["connection"],
    "client": _by_client,
    "age": _most_first("age"),
    "idle": _most_first("idle"),
    "bytes": _most_first("bytes_received"),
    "state": lambda row: (row["state"], row["connection"]),
    "rtt": lambda row: -row["tcp"]["rtt"] if row["tcp"] else 0,
}
"""The keys by which connections can be sorted: columns of the table. Quantities come largest first."""


@contextlib.contextmanager
def _as_expected(daemon: AdminClient) -> Iterator[None]:
    """Refuse an answer of another form: any program that speaks HTTP may listen there, or another version of echod."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        raise _unavailable(f"{daemon.url}: unexpected answer; is it another version of echod?") from None


def _content(answer: tuple[int, Any]) -> Any:  # noqa: ANN401 - as the daemon answers
    """Return the content of a successful answer; raise `Refusal` with what the daemon says otherwise."""
    code, content = answer
    match code:
        case 200:
            return content
        case 422:
            raise Refusal(*map(str, content["errors"]), exit_code=int(content["exit_code"]))
        case 409 | 503:
            raise _unavailable(content["error"])
    raise Refusal(f"echod: the daemon answers {code}: {_json(content)}", exit_code=os.EX_SOFTWARE)


def _json(value: Any) -> str:  # noqa: ANN401 - as the daemon answers
    return orjson.dumps(value).decode()


def _json_line(value: Any) -> str:  # noqa: ANN401 - as the daemon answers
    return _json(value) + "\n"
