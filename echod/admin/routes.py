"""Which path is answered with what. An answer takes little of the loop at a time: a long list comes in parts."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from typing import TYPE_CHECKING

import orjson

from echod import screen
from echod.admin import metrics, page, status
from echod.admin.http import Response, refusal, reply
from echod.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection

    from echod.admin.http import Request
    from echod.admin.status import Meter, Running

    Answer = Callable[[Request], Awaitable[Response]]

BATCH = 50
"""Connections written out before the loop goes on."""
_LONGEST_ID = 19  # digits
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::[0-9]*)?")


class Routes:
    """The answers, by path: `local` on the Unix socket, whose file mode decides who may connect, `remote` on `admin.http`."""

    def __init__(self, running: Running, meter: Meter, names: Collection[str] = ()) -> None:
        """`names`, in lower case, are further ones by which `remote` may be asked."""
        self._running = running
        self._server, self._reloads, _ = running
        self._meter = meter
        self._names = names
        self._page = page.load()

    async def local(self, request: Request) -> Response:
        """Answer on the Unix socket."""
        path = request.path
        if path == "/config":
            return await _to("GET", self._config, request)
        if path == "/connections":
            return await _to("GET", self._connections, request)
        if path.startswith("/connections/"):
            return await _to("DELETE", self._kill, request)
        if path == "/reload":
            return await _to("POST", self._reload, request)
        if path == "/lame-duck":
            return await _to("PUT, DELETE", self._lame_duck, request)
        return await self._read_only(request)

    async def remote(self, request: Request) -> Response:
        """Answer on `admin.http`, but not to a name that the author of a page in a browser could let point here."""
        host = request.headers.get("host")
        if host is not None and not is_ours(host, self._names):
            return refusal(421, "ask by an address, localhost, this machine's host name or a name of admin.names")
        return await self._read_only(request)

    async def _read_only(self, request: Request) -> Response:
        answers: dict[str, Answer] = {
            "/": self._overview,
            "/metrics": self._metrics,
            "/status": self._status,
            "/livez": self._live,
            "/readyz": self._ready,
        }
        answer = answers.get(request.path)
        if answer is None:
            return refusal(
                404,
                f"there is {', '.join(answers)}; on the Unix socket also /config, /connections, /reload and /lame-duck",
            )
        return await _to("GET", answer, request)

    async def _overview(self, request: Request) -> Response:
        """Answer the status page to a browser, and the screen of `echod status` to anything else."""
        if page.is_wanted(request.headers.get("accept", "")):
            return self._page
        text = screen.status(await status.status(self._running, self._meter))
        return Response(200, text.encode(), "text/plain; charset=utf-8", (page.VARY,))

    async def _metrics(self, request: Request) -> Response:
        return Response(200, *await metrics.expose(self._running, request.headers.get("accept", "")))

    async def _status(self, _: Request) -> Response:
        return reply(200, await status.status(self._running, self._meter))

    async def _live(self, _: Request) -> Response:
        return reply(200, {"status": "alive"})

    async def _ready(self, _: Request) -> Response:
        readiness = self._server.readiness
        return reply(200 if readiness == "ready" else 503, {"status": readiness})

    async def _config(self, _: Request) -> Response:
        return reply(200, self._reloads.document)

    async def _connections(self, _: Request) -> Response:
        return Response(200, self._rows())

    async def _rows(self) -> AsyncIterator[bytes]:
        in_use = self._server.pool.in_use
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
        worker = self._server.pool.in_use.get(int(number)) if known else None
        if worker is None:
            return refusal(404, f"there is no connection {number}")
        worker.abort("killed", reset=worker.paused)
        return reply(200, {"connection": worker.connection, **worker.client.as_client()})

    async def _reload(self, _: Request) -> Response:
        ended = await self._reloads.requested()
        if ended is None:
            return refusal(503, "the daemon stops")
        if ended.change is None:
            return reply(422, {"errors": ended.errors, "exit_code": ended.exit_code})
        change, files = ended.change, {"files": ended.files} if ended.files else {}
        answer = {"changed": change.names, "old": change.old, "new": change.new, **files, "warnings": change.warnings}
        return reply(200, answer)

    async def _lame_duck(self, request: Request) -> Response:
        on = request.method == "PUT"
        try:
            self._server.set_lame_duck(on=on)
        except Refusal as refused:
            return refusal(409, str(refused))
        return reply(200, {"lame_duck": on})


async def _to(methods: str, answer: Answer, request: Request) -> Response:
    """Answer if the method is one of these; with GET goes HEAD."""
    allowed = "GET, HEAD" if methods == "GET" else methods
    if request.method in allowed.split(", "):
        return await answer(request)
    return refusal(405, f"{request.path} takes {allowed}", ("allow", allowed))


def is_ours(host: str, names: Collection[str] = ()) -> bool:
    """Say whether a Host header names this machine: by an address, `localhost`, its host name or one of `names`.

    The host name may have a domain. A page in a browser can then reach this port only by a name that its author points here
    and that begins with this machine's host name, which is not well known. For "localhost", which is, no domain may follow.
    """
    found = _HOST.fullmatch(host)
    name = found[1].strip("[]").rstrip(".").casefold() if found else ""
    own = socket.gethostname().casefold()
    if name in ("localhost", own, *names) or name.partition(".")[0] == own.partition(".")[0] not in ("", "localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
