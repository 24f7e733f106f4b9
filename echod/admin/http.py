"""An HTTP/1.1 server for a few clients at a time, any of which may be broken or hostile.

A connection carries one request and one answer, and then it ends: Prometheus, curl and echod's own commands need no more.
Each client has a task with four steps:

1. Read the request. h11 parses it; a bad request is refused with a JSON error.
2. Make the answer: `answer`, a function given to the server, decides what it is.
3. Send the answer, in parts if the body comes in parts.
4. Stop sending, and discard what the client still sends, until it closes the connection.

Each step is bounded in bytes and time. The number of clients is bounded too: a new one evicts the oldest one that isn't being
answered. Echo connections come first: in one turn of the event loop, the server accepts at most one client and parses at
most one h11 event, however many clients there are and however much they send.
"""

from __future__ import annotations

import asyncio
import http
import socket
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

import h11
import orjson

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from echod.log import Logger

    Answer = Callable[["Request"], Awaitable["Response"]]

CONNECTIONS = 16  # at one time; beyond that, each new one evicts another
REQUEST = 5.0  # seconds from accepting a client to the end of its request
HEAD = 8192  # bytes of the request line and the headers
SIZE = 65536  # bytes of a request; a body is ignored, but a client may send one
STALL = 10.0  # seconds in which a client has to read a part of its answer, or a whole one without parts
LINGER = 1.0  # seconds in which a client has to close the connection after its answer
GRACE = 0.05  # seconds in which a new client isn't evicted: in a flood, its request gets read all the same
GRACE_ANSWERING = 1.0  # seconds in which a client isn't evicted once it is being answered
PAUSE = 0.05  # seconds until the next attempt if no client may be evicted, or no descriptor is free


class Request(NamedTuple):
    """What a client asks for."""

    method: str
    path: str
    """Without the query, and percent-decoded."""
    headers: dict[str, str]
    """Names are in lower case. The values of a repeated header are joined by commas (RFC 9110, 5.2)."""


class Response(NamedTuple):
    """What a client gets. The body is whole, or an iterator of its parts."""

    status: int
    body: bytes | AsyncIterator[bytes]
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


def reply(status: int, content: object, *headers: tuple[str, str]) -> Response:
    """Return a response with this content as JSON."""
    return Response(status, orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE), headers=headers)


def refusal(status: int, error: str, *headers: tuple[str, str]) -> Response:
    """Return a response that says why a request is refused."""
    return reply(status, {"error": error}, *headers)


class HttpServer:
    """Serves the clients of a listening, non-blocking socket, which it closes at the end.

    If `answer` raises an exception, the client gets status 500 and the log gets the traceback.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, log: Logger, sock: socket.socket, answer: Answer) -> None:
        self._loop = loop
        self._log = log
        self._answer = answer
        self._clients: set[_Client] = set()
        self._turn = asyncio.Lock()
        self._listen(sock)

    def _listen(self, sock: socket.socket) -> None:
        self._accepting = self._loop.create_task(self._accept(sock))
        # Not at the end of the task: if a task is cancelled before its first step, none of its code runs.
        self._accepting.add_done_callback(lambda _: sock.close())

    def move(self, sock: socket.socket) -> None:
        """Listen on another socket from now on. Clients stay."""
        self._accepting.cancel()
        self._listen(sock)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = await self._loop.sock_accept(listener)
                self._serve(sock)
            except (OSError, MemoryError):  # no descriptor or no memory is free
                await asyncio.sleep(PAUSE)
            while len(self._clients) > CONNECTIONS and not self._evict():  # noqa: ASYNC110 - time makes room, and no event
                await asyncio.sleep(PAUSE)

    def _serve(self, sock: socket.socket) -> None:
        client = _Client(sock, self._answer, self._log, self._turn)
        self._clients.add(client)
        client.task.add_done_callback(lambda _: self._clients.discard(client))

    def _evict(self) -> bool:
        """End the oldest client that isn't being answered, or else the oldest. Return whether it was old enough for that."""
        client = min(self._clients, key=lambda client: (client.answering, client.since))
        if time.monotonic() < client.since + (GRACE_ANSWERING if client.answering else GRACE):
            return False
        self._clients.remove(client)
        client.task.cancel()
        return True

    async def close(self) -> None:
        """Stop listening and end every connection."""
        tasks = [self._accepting, *(client.task for client in self._clients)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Client:
    """One connection. It has no asyncio transport, because that would hold output that the client doesn't read."""

    def __init__(self, sock: socket.socket, answer: Answer, log: Logger, turn: asyncio.Lock) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._answer = answer
        self._log = log
        self._turn = turn
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD)
        self._is_head = False
        self.answering = False
        self.since = time.monotonic()  # when it was accepted, or when its answer began
        self.task = self._loop.create_task(self._serve())
        # As in `_listen`.
        self.task.add_done_callback(lambda _: sock.close())

    async def _serve(self) -> None:
        try:
            await self._send(await self._respond())
            await self._linger()
        except OSError:  # also TimeoutError: the client has gone, or might as well have
            pass
        except Exception:  # noqa: BLE001 - a bug in the iterator of a body; the client sees that the answer is incomplete
            self._log.exception("internal.error", message="an answer broke off")

    async def _respond(self) -> Response:
        try:
            request = await self._receive()
        except h11.RemoteProtocolError as error:
            return refusal(error.error_status_hint, str(error))
        self.answering, self.since = True, time.monotonic()
        try:
            return await self._answer(request)
        except Exception:  # noqa: BLE001 - a bug in an answer must not end the server
            self._log.exception("internal.error", message=f"{request.method} {request.path} failed")
            return refusal(500, "internal error, please report it: the log has more")

    async def _receive(self) -> Request:
        """Return the request. Raises `h11.RemoteProtocolError`, or `OSError` if the client sends nothing at all."""
        request: Request | None = None
        size = 0
        try:
            async with asyncio.timeout(REQUEST):
                while True:
                    async with self._turn:
                        await asyncio.sleep(0)
                    event = self._http.next_event()
                    if event is h11.NEED_DATA:
                        data = await self._loop.sock_recv(self._sock, HEAD)
                        size += len(data)
                        if size > SIZE:
                            raise h11.RemoteProtocolError("the request is too large", error_status_hint=413)
                        self._http.receive_data(data)
                    elif isinstance(event, h11.Request):
                        self._is_head = event.method == b"HEAD"
                        request = _request(event)
                        if self._http.they_are_waiting_for_100_continue:
                            return request  # no answer depends on the body, so the client need not send it
                    elif request is None:  # the end of the connection
                        raise ConnectionAbortedError
                    elif isinstance(event, h11.EndOfMessage):
                        return request
        except TimeoutError:
            if not size:  # a browser that connects in advance would take 408 for the answer to a later request
                raise
            raise h11.RemoteProtocolError(f"the request took over {REQUEST:.0f} s", error_status_hint=408) from None

    async def _send(self, response: Response) -> None:
        headers = [("date", formatdate(usegmt=True)), ("connection", "close"), ("cache-control", "no-store")]
        headers += [("content-type", response.content_type), *response.headers]
        if isinstance(response.body, bytes):
            headers.append(("content-length", str(len(response.body))))
        reason = http.HTTPStatus(response.status).phrase
        head = self._http.send(h11.Response(status_code=response.status, headers=headers, reason=reason)) or b""
        if self._is_head:
            await self._write(head)
        elif isinstance(response.body, bytes):
            await self._write(head + response.body)
        else:
            await self._write(head)
            async for part in response.body:
                await self._write(self._http.send(h11.Data(part)))
            await self._write(self._http.send(h11.EndOfMessage()))

    async def _write(self, data: bytes | None) -> None:
        async with asyncio.timeout(STALL):
            await self._loop.sock_sendall(self._sock, data or b"")

    async def _linger(self) -> None:
        """Read until the client closes: close(2) with unread input sends RST, which may overtake the answer."""
        self.answering = False
        self._sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(LINGER):
            while await self._loop.sock_recv(self._sock, HEAD):
                pass


def _request(event: h11.Request) -> Request:
    if event.method == b"CONNECT":
        raise h11.RemoteProtocolError("this server is not a proxy", error_status_hint=501)
    headers: dict[str, str] = {}
    for raw, value in event.headers:
        name = raw.decode("latin-1")
        before = f"{headers[name]}, " if name in headers else ""
        headers[name] = before + value.decode("latin-1")
    try:
        path = unquote(urlsplit(event.target.decode("latin-1")).path)
    except ValueError:
        raise h11.RemoteProtocolError("the target is not a URL") from None
    return Request(event.method.decode("latin-1"), path, headers)
