"""HTTP/1.1 on a listening socket, for a few clients at a time, of which any may be broken or hostile.

Knows nothing of what is answered. h11 has the protocol; here are the bounds: of connections, of bytes, and of time.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
from email.utils import formatdate
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

import h11
import orjson

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable

    from echod.log import Logger

CONNECTIONS = 16
"""At one time. One more ends the one that has been without a request for the longest, if need be one that is answered."""
GRACE = 0.05
"""Seconds from its begin for which a connection is not ended to make room: in a flood, its request is there by then."""
GRACE_ANSWERED = 1.0
"""Likewise, from a request on for which it is being answered. Meanwhile, who comes waits in the backlog."""
HEAD = 8192
"""Bytes of a request's first line and headers."""
BODY = 65536
"""Bytes of a request's body, which nothing here needs."""
REQUEST = 5.0
"""Seconds from its first byte to its last, and from a connection's begin to its first request."""
KEEP_ALIVE = 75.0
"""Seconds between two requests: more than Prometheus' usual minute between two scrapes."""
STALL = 10.0
"""Seconds for which a client may read nothing of its answer."""
LINGER = 1.0
"""Seconds in which what a client still sends is read, so that the kernel's reset does not overtake a refusal."""
PAUSE = 0.1
"""Seconds without accepting when there is no descriptor."""

JSON = "application/json"


class Request(NamedTuple):
    """What a client wants."""

    method: str
    path: str
    headers: dict[str, str]
    """By name in lower case; of a repeated one, the last."""


class Response(NamedTuple):
    """What it gets: a body whole, or in parts as they come."""

    status: int
    body: bytes | AsyncIterator[bytes]
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


def reply(status: int, content: object, *headers: tuple[str, str]) -> Response:
    """Return an answer in JSON."""
    return Response(status, orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE), headers=headers)


def refusal(status: int, error: str, *headers: tuple[str, str]) -> Response:
    """Return an answer that says why there is no other."""
    return reply(status, {"error": error}, *headers)


class HttpServer:
    """Answers what comes in on a socket that listens and does not block; the socket is its own from now on."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: Logger,
        sock: socket.socket,
        answer: Callable[[Request], Awaitable[Response]],
    ) -> None:
        self._loop = loop
        self._log = log
        self._sock = sock
        self._answer = answer
        # One a connection: whether it is being answered, since when it is or is not, and when it began. The one that has
        # neither asked nor been answered for the longest comes first.
        self._tasks: dict[asyncio.Task[None], tuple[bool, float, float]] = {}
        self._pause: asyncio.TimerHandle | None = None
        # One event of one client in each round of the loop: they may send thousands at a time, and all at one time.
        self._turn = asyncio.Lock()
        self._listen()

    async def close(self) -> None:
        """Stop listening, and end every connection."""
        if self._pause:
            self._pause.cancel()
            self._pause = None
        self._loop.remove_reader(self._sock)
        self._sock.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock, self._accept)

    def _listen_in(self, seconds: float) -> None:
        self._loop.remove_reader(self._sock)
        self._pause = self._loop.call_later(seconds, self._listen)

    def _accept(self) -> None:
        """Accept one, and no batch: these clients come after those that want their echo."""
        if len(self._tasks) >= CONNECTIONS:
            wait = self._make_room()
            if wait > 0:
                self._listen_in(wait)
                return
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:  # no descriptor is left: it stays readable, and the loop would spin
            self._listen_in(PAUSE)
            return
        sock.settimeout(0)
        task = self._loop.create_task(self._serve(sock))
        now = self._loop.time()
        self._tasks[task] = False, now, now
        task.add_done_callback(lambda task: self._ended(task, sock))

    def _make_room(self) -> float:
        """End one for the sake of the next; or return for how many seconds it has to be left alone."""
        task, (answered, since, began) = min(self._tasks.items(), key=lambda item: item[1][0])  # the first of the least
        wait = (since + GRACE_ANSWERED if answered else began + GRACE) - self._loop.time()
        if wait <= 0:
            del self._tasks[task]
            task.cancel()
        return wait

    def _note(self, *, answered: bool) -> None:
        task = asyncio.current_task()
        if task in self._tasks:
            _, _, began = self._tasks.pop(task)
            self._tasks[task] = answered, self._loop.time(), began

    def _ended(self, task: asyncio.Task[None], sock: socket.socket) -> None:
        self._tasks.pop(task, None)
        sock.close()  # here, because a task that is cancelled at once does not even begin
        if self._pause:  # there is room now, or a descriptor
            self._pause.cancel()
            self._listen()

    async def _serve(self, sock: socket.socket) -> None:
        reader = asyncio.StreamReader(limit=HEAD)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, sock)
            try:
                writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
                await _Connection(reader, writer, self._answer_safely, self._note, self._turn).live()
            finally:
                transport.abort()
        except OSError:  # also TimeoutError: the client has gone, or might as well have
            pass
        except Exception:  # noqa: BLE001 - a bug in an answer that had begun: the client sees that it is cut short
            self._log.exception("internal.error", message="an answer broke off")

    async def _answer_safely(self, request: Request) -> Response:
        self._note(answered=True)
        try:
            return await self._answer(request)
        except Exception:  # noqa: BLE001 - a bug in an answer must not end the server
            self._log.exception("internal.error", message=f"{request.method} {request.path} failed")
            return refusal(500, "internal error, please report it: the log has more")


class _Connection:
    """One client: request by request, until one of the two has enough."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer: Callable[[Request], Awaitable[Response]],
        note: Callable[..., None],
        turn: asyncio.Lock,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._answer = answer
        self._note = note
        self._turn = turn
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD)
        self._wants_body = True  # HEAD does not

    async def live(self) -> None:
        """Answer until the connection ends. Raises `OSError` or `TimeoutError`."""
        patience = REQUEST
        while await self._answer_next(patience):
            self._http.start_next_cycle()
            self._note(answered=False)
            patience = KEEP_ALIVE
        self._writer.close()
        async with asyncio.timeout(STALL):
            await self._writer.wait_closed()

    async def _answer_next(self, patience: float) -> bool:
        """Answer one request; say whether there may be another."""
        try:
            asked = await self._receive(patience)
            if asked is None:
                return False
            request = _request(asked)
        except h11.RemoteProtocolError as error:
            await self._refuse(error.error_status_hint, str(error))
            return False
        await self._send(await self._answer(request))
        return self._http.our_state is self._http.their_state is h11.DONE

    async def _receive(self, patience: float) -> h11.Request | None:
        """Return the next request, read to its end, or `None` if there is none. Raises `RemoteProtocolError`."""
        request: h11.Request | None = None
        self._wants_body = True
        body = 0
        begun = False
        try:
            async with asyncio.timeout(patience) as deadline:
                while True:
                    async with self._turn:
                        await asyncio.sleep(0)
                    event = self._http.next_event()
                    if event is h11.NEED_DATA:
                        self._http.receive_data(await self._reader.read(HEAD))
                        if not begun:
                            begun = True
                            deadline.reschedule(asyncio.get_running_loop().time() + REQUEST)
                    elif isinstance(event, h11.Request):
                        request = event
                        self._wants_body = request.method != b"HEAD"
                    elif isinstance(event, h11.Data):
                        body += len(event.data)
                        if body > BODY:
                            raise h11.RemoteProtocolError("the body is too large", error_status_hint=413)
                    else:
                        return request if isinstance(event, h11.EndOfMessage) else None
        except TimeoutError:
            if begun:
                line = f"a request has to arrive within {REQUEST:.0f} s"
                raise h11.RemoteProtocolError(line, error_status_hint=408) from None
            return None

    async def _send(self, response: Response) -> None:
        headers = [
            ("date", formatdate(usegmt=True)),
            ("content-type", response.content_type),
            ("cache-control", "no-store"),
            *response.headers,
        ]
        body = response.body
        if isinstance(body, bytes):
            headers.append(("content-length", str(len(body))))
        reason = http.HTTPStatus(response.status).phrase
        head = self._http.send(h11.Response(status_code=response.status, headers=headers, reason=reason))
        if not self._wants_body:
            await self._write(head + self._http.send(h11.EndOfMessage()))
        elif isinstance(body, bytes):  # in one write: a small answer is one packet
            await self._write(head + self._http.send(h11.Data(body)) + self._http.send(h11.EndOfMessage()))
        else:
            await self._write(head)
            async for part in body:
                await self._write(self._http.send(h11.Data(part)))
            await self._write(self._http.send(h11.EndOfMessage()))

    async def _write(self, data: bytes | None) -> None:
        if self._writer.is_closing():  # uvloop would raise RuntimeError
            raise ConnectionResetError
        self._writer.write(data or b"")
        async with asyncio.timeout(STALL):
            await self._writer.drain()

    async def _refuse(self, status: int, error: str) -> None:
        await self._send(refusal(status, error, ("connection", "close")))
        self._writer.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while await self._reader.read(HEAD):
                    pass


def _request(asked: h11.Request) -> Request:
    if asked.method == b"CONNECT":  # what follows would be no HTTP any more
        raise h11.RemoteProtocolError("this is no proxy", error_status_hint=501)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in asked.headers}
    try:
        path = unquote(urlsplit(asked.target.decode("latin-1")).path)
    except ValueError:
        raise h11.RemoteProtocolError("the target is no URL") from None
    return Request(asked.method.decode("latin-1"), path, headers)
