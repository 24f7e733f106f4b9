"""What is answered on the admin socket and on `admin.http`: which path gives what, and who may.

Knows nothing of HTTP's form, and of how the answers look to people. What is answered takes little of the loop at a time:
a long list comes in parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import socket
from typing import TYPE_CHECKING

import orjson

from echod import unix
from echod.admin import metrics, status
from echod.admin.http import HttpServer, Response, refusal, reply
from echod.config.types import split_endpoint
from echod.errors import Refusal
from echod.server import tcp
from echod.server.pool import peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from echod.admin.http import Request
    from echod.admin.status import Daemon
    from echod.config import settings
    from echod.server.tcp import Listener
    from echod.unix import AdminSocket

    Answer = Callable[[Request], Awaitable[Response]]

BATCH = 50
"""Connections written out before the loop goes on."""
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::[0-9]*)?")
_LONGEST_ID = 19  # digits


class Admin:
    """Both servers, as far as they are on. Raises `Refusal` if one can't listen; then there is none."""

    def __init__(self, loop: asyncio.AbstractEventLoop, daemon: Daemon, settings: settings.Admin) -> None:
        self._servers: list[HttpServer] = []
        self._socket = self._open_socket(daemon, settings.socket)
        with contextlib.ExitStack() as undo:
            if self._socket:
                undo.callback(self._socket.sock.close)
                undo.callback(self._socket.close)  # first, as in our own
            endpoints = _bind(settings.http)
            undo.pop_all()
        routes = Routes(daemon)
        if self._socket:
            self._servers.append(HttpServer(loop, daemon.log, self._socket.sock, routes.local))
            daemon.log.info("admin.started", listener=self._socket.url)
        for endpoint in endpoints:
            self._servers.append(HttpServer(loop, daemon.log, endpoint.sock, routes.remote))
            daemon.log.info("admin.started", listener=endpoint.url.replace("tcp:", "http:"))

    def _open_socket(self, daemon: Daemon, setting: str) -> AdminSocket | None:
        path = unix.of_daemon(setting, os.environ)
        if path is None:
            return None
        try:
            return unix.AdminSocket(path, make_directory=setting == "auto")
        except Refusal as refusal:
            if setting != "auto":
                raise
            # Nobody asked for just this path: a second daemon on a desk goes on without.
            daemon.log.warning("config.warning", message=refusal.lines[0])
            return None

    async def close(self) -> None:
        """Answer nobody any more."""
        if self._socket:
            self._socket.close()  # first: as long as we listen, no other daemon takes the path
        for server in self._servers:
            await server.close()


def _bind(setting: str) -> list[Listener]:
    host, port = split_endpoint(setting)
    try:
        return tcp.bind([host] if host else [], port, backlog=unix.BACKLOG, reuse_port=False)
    except Refusal as refusal:
        lines = [line.replace("echod: ", "echod: admin.http: ", 1) for line in refusal.lines]
        raise Refusal(*lines, exit_code=refusal.exit_code) from None


class Routes:
    """What each path answers: `local` to who may use the socket, `remote` to anyone who can reach a port."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def local(self, request: Request) -> Response:
        """Answer on the Unix socket."""
        path = request.path
        if path == "/connections":
            return await _to("GET", self._connections, request)
        if path.startswith("/connections/"):
            return await _to("DELETE", self._kill, request)
        if path == "/reload":
            return await _to("POST", self._reload, request)
        return await self._read_only(request)

    async def remote(self, request: Request) -> Response:
        """Answer on `admin.http`. A page in a browser must not reach it by a name that its author lets point here."""
        host = request.headers.get("host")
        if host is not None and not is_ours(host):
            return refusal(421, "ask by an address, by localhost, or by this machine's host name")
        return await self._read_only(request)

    async def _read_only(self, request: Request) -> Response:
        answers: dict[str, Answer] = {
            "/metrics": self._metrics,
            "/status": self._status,
            "/livez": self._live,
            "/readyz": self._ready,
        }
        answer = answers.get(request.path)
        if answer is None:
            return refusal(404, f"there is {', '.join(answers)}; on the Unix socket also /connections and /reload")
        return await _to("GET", answer, request)

    async def _metrics(self, request: Request) -> Response:
        return Response(200, *await metrics.expose(self._daemon, request.headers.get("accept", "")))

    async def _status(self, _: Request) -> Response:
        return reply(200, status.status(self._daemon))

    async def _live(self, _: Request) -> Response:
        return reply(200, {"status": "alive"})

    async def _ready(self, _: Request) -> Response:
        if status.accepting(self._daemon):
            return reply(200, {"status": "ready"})
        state = self._daemon.state
        return reply(503, {"status": "not accepting" if state == "running" else state})

    async def _connections(self, _: Request) -> Response:
        return Response(200, self._rows())

    async def _rows(self) -> AsyncIterator[bytes]:
        in_use = self._daemon.pool.in_use
        numbers = list(in_use)
        before = b"["
        for begin in range(0, len(numbers), BATCH):
            workers = [in_use[number] for number in numbers[begin : begin + BATCH] if number in in_use]
            rows = [orjson.dumps(status.connection(worker)) for worker in workers]
            if rows:
                yield before + b",\n".join(rows)
                before = b",\n"
            await asyncio.sleep(0)
        yield b"[]\n" if before == b"[" else b"]\n"

    async def _kill(self, request: Request) -> Response:
        number = request.path.removeprefix("/connections/")
        known = number.isascii() and number.isdecimal() and len(number) <= _LONGEST_ID
        worker = self._daemon.pool.in_use.get(int(number)) if known else None
        if worker is None:
            return refusal(404, f"there is no connection {number}")
        worker.abort("killed", reset=worker.paused)
        return reply(200, {"id": worker.connection, "client": peer(worker.client)})

    async def _reload(self, _: Request) -> Response:
        ended = await self._daemon.reload_now()
        if ended is None:
            return refusal(503, "the daemon stops")
        if ended.change is None:
            return reply(422, {"errors": ended.errors})
        return reply(200, {"changed": ended.change.names, "old": ended.change.old, "new": ended.change.new})


async def _to(method: str, answer: Answer, request: Request) -> Response:
    """Answer if the method is this one; with GET goes HEAD."""
    if request.method == method or (request.method, method) == ("HEAD", "GET"):
        return await answer(request)
    allowed = "GET, HEAD" if method == "GET" else method
    return refusal(405, f"{request.path} takes {allowed}", ("allow", allowed))


def is_ours(host: str) -> bool:
    """Say whether a Host header names this machine: by an address or its host name, which no page decides on.

    A domain may follow the host name. Who knows that name could have a domain of theirs point here, so it does not follow
    one that everybody knows.
    """
    found = _HOST.fullmatch(host)
    name = found[1].strip("[]").rstrip(".").casefold() if found else ""
    own = socket.gethostname().casefold()
    if name in ("localhost", own) or name.partition(".")[0] == own.partition(".")[0] not in ("", "localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
