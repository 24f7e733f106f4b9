"""The admin server's HTTP on real Unix sockets, with clients that are slow, broken or too many."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import sys
import termios
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import h11
import pytest

from echod.admin import http
from echod.admin.http import Request, Response, refusal, reply
from tests.support.in_process import Client, Server, becomes, descriptors, listening, on_loop, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LONG = b"0123456789abcdef" * (1 << 16)
"""More than the kernel holds for a client that does not read."""
GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server wait only briefly for a client to close its connection."""
    monkeypatch.setattr(http, "LINGER", 0.05)


async def echo(request: Request) -> Response:
    """Answer with the method and the path; /parts… and /long in parts."""
    answer = f"{request.method} {request.path}".encode()
    if request.path.startswith("/parts"):
        return Response(200, in_parts(answer))
    if request.path == "/long":
        return Response(200, in_parts(LONG, 1 << 16))
    return Response(200, answer, "text/plain")


async def in_parts(data: bytes, size: int = 4) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), size):
        yield data[begin : begin + size]
        await asyncio.sleep(0)


class Held:
    """Answers nobody before `go` is set."""

    def __init__(self) -> None:
        self.asked = 0
        self.go = asyncio.Event()

    async def __call__(self, _: Request) -> Response:
        self.asked += 1
        await self.go.wait()
        return reply(200, "at last")


# The answer


@on_loop
async def test_a_request_is_answered() -> None:
    """The answer has a status, a body and a type, and must not be stored. It is the last one on its connection."""
    async with serving(echo) as server:
        answer = await server.ask("/status?watch=1#top")
    assert (answer.status, answer.body) == (200, b"GET /status")
    assert answer.headers["content-type"] == "text/plain"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-length"] == "11"
    assert answer.headers["connection"] == "close"
    assert answer.headers["date"].endswith(" GMT")


@on_loop
async def test_the_request_is_parsed() -> None:
    """The path is percent-decoded and without the query; the names of the headers are in lower case, and repeated ones are one."""
    seen: list[Request] = []

    async def see(request: Request) -> Response:
        seen.append(request)
        return reply(200, None)

    async with serving(see) as server:
        for target in ("/a%20b?c=d", "http://localhost/a%20b", "/%ff%ed%a0%80"):
            await server.ask(target, "DELETE", Accept="text/plain", **{"X-Twice": "1", "x-twice": "2"})
    assert [request.path for request in seen] == ["/a b", "/a b", "/\ufffd\ufffd\ufffd\ufffd"]
    assert seen[0].method == "DELETE"
    assert seen[0].headers == {"host": "localhost", "accept": "text/plain", "x-twice": "1, 2"}


def test_a_reply_is_json_with_a_line_end() -> None:
    """A shell's prompt then begins on a line of its own."""
    answer = reply(200, {"status": "ready"}, ("x-name", "value"))
    assert answer == Response(200, b'{"status":"ready"}\n', "application/json", (("x-name", "value"),))
    assert refusal(404, "no").body == b'{"error":"no"}\n'


@on_loop
async def test_headers_of_an_answer_are_sent() -> None:
    """They come in addition to those that every answer has."""

    async def refuse(_: Request) -> Response:
        return refusal(405, "no", ("allow", "GET"))

    async with serving(refuse) as server:
        assert (await server.ask()).headers["allow"] == "GET"


@on_loop
async def test_an_answer_in_parts_arrives_whole() -> None:
    """It is sent in chunks, because its length is not known in advance."""
    async with serving(echo) as server:
        answer = await server.ask("/parts/of/it")
    assert (answer.headers["transfer-encoding"], answer.body) == ("chunked", b"GET /parts/of/it")


@pytest.mark.parametrize("target", ["/long", "/whole"])
@on_loop
async def test_a_long_answer_arrives_whole(target: str) -> None:
    """It may exceed what the kernel holds."""

    async def answer(request: Request) -> Response:
        return await echo(request) if request.path == "/long" else Response(200, LONG)

    async with serving(answer) as server:
        assert (await server.ask(target)).body == LONG


@on_loop
async def test_parts_are_made_as_the_client_reads() -> None:
    """A client that does not read costs one part and what the kernel holds."""
    made = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal made
        for made in range(1, 101):  # noqa: B007 - read below
            yield bytes(1 << 16)

    async def answer(_: Request) -> Response:
        return Response(200, parts())

    async with serving(answer) as server:
        with server.connect() as client:
            await client.send(GET)
            await becomes(lambda: readable(client))
            for _ in range(1000):
                await asyncio.sleep(0)
            assert made < 20
            assert len((await client.answer()).body) == 100 << 16


@pytest.mark.parametrize("target", ["/", "/parts"])
@on_loop
async def test_head_is_answered_without_a_body(target: str) -> None:
    """Otherwise it is answered like GET."""
    async with serving(echo) as server:
        answer = await server.ask(target, "HEAD")
    assert (answer.status, answer.body) == (200, b"")


@on_loop
async def test_head_says_how_long_the_body_would_be() -> None:
    """This needs a body whose length is known."""
    async with serving(echo) as server:
        assert (await server.ask("/12345", "HEAD")).headers["content-length"] == "11"


# The request


@on_loop
async def test_a_request_byte_by_byte_is_answered() -> None:
    """It does not matter where a request is cut."""
    async with serving(echo) as server:
        with server.connect() as client:
            for byte in GET:
                await client.send(bytes([byte]))
                await asyncio.sleep(0)
            assert (await client.answer()).status == 200


@pytest.mark.parametrize("target", ["/12345", "/parts"])
@on_loop
async def test_http_1_0_is_answered(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """HTTP/1.0 has no chunks; the end of the connection is the end of the body, and comes at once."""
    monkeypatch.setattr(http, "LINGER", 1e6)
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(f"GET {target} HTTP/1.0\r\n\r\n".encode())
            answer = await client.answer()
            assert answer.body == f"GET {target}".encode()
            assert "transfer-encoding" not in answer.headers
            assert await client.ends()


@on_loop
async def test_a_client_that_half_closes_gets_its_answer() -> None:
    """`printf … | nc -U` does this."""
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(GET)
            client.sock.shutdown(socket.SHUT_WR)
            assert (await client.answer()).body == b"GET /"
            assert await client.ends()


@on_loop
async def test_a_client_that_sends_nothing_and_closes_leaves_nothing() -> None:
    """It gets no answer, and nothing is logged."""
    async with serving(echo) as server:
        server.connect().sock.close()
        with server.connect() as client:
            client.sock.shutdown(socket.SHUT_WR)
            assert await client.ends()
        await becomes(lambda: not server.connections)
        assert server.lines.lines == []


@pytest.mark.parametrize(
    "body", [b"content-length: 5\r\n\r\nhello", b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
)
@on_loop
async def test_a_body_is_ignored(body: bytes) -> None:
    """No request needs one, but a client may send it."""
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(b"POST /reload HTTP/1.1\r\nhost: localhost\r\n" + body)
            assert (await client.answer()).body == b"POST /reload"
            assert await client.ends()


@pytest.mark.parametrize("length", [5, 1_000_000])
@on_loop
async def test_a_client_that_expects_100_continue_is_answered_at_once(length: int) -> None:
    """The answer is the final one, because it does not depend on the body; a client that sends it anyway does no harm."""
    async with serving(echo) as server:
        with server.connect() as client:
            head = f"POST /reload HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
            await client.send(head.encode())
            assert (await client.answer()).body == b"POST /reload"
            with contextlib.suppress(ConnectionError):  # of a large one, the server has read enough after a while
                await client.send(bytes(length))
        await becomes(lambda: not server.connections)
        assert server.lines.lines == []


@on_loop
async def test_only_the_first_request_on_a_connection_is_answered() -> None:
    """What follows is discarded, and does not keep the answer from arriving."""
    asked: list[str] = []

    async def answer(request: Request) -> Response:
        asked.append(request.path)
        return await echo(request)

    async with serving(answer) as server:
        with server.connect() as client:
            await client.send(GET + GET.replace(b"/ ", b"/second ") * 1000)
            assert (await client.answer()).body == b"GET /"
            assert await client.read_all() == b""
    assert asked == ["/"]


# Refusals


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET //[ HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 2 * http.HEAD + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * http.HEAD, 431),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 65536\r\n\r\n" + b"y" * 65536, 413),
        (b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n", 501),
    ],
    ids=[
        "garbage",
        "TLS",
        "no host",
        "two hosts",
        "HTTP/0.9",
        "no URL",
        "a negative length",
        "an unknown encoding",
        "no chunk",
        "a large head",
        "a head without end",
        "a large body",
        "a tunnel",
    ],
)
@on_loop
async def test_a_bad_request_is_refused(request_: bytes, status: int) -> None:
    """The client gets the reason, and then the connection ends; nothing is logged."""
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(request_)
            answer = await client.answer()
            assert answer.status == status
            assert answer.headers["connection"] == "close"
            assert list(answer.json) == ["error"]
            assert await client.ends()
        await becomes(lambda: not server.connections)
        assert server.lines.lines == []


@on_loop
async def test_the_largest_request_is_answered() -> None:
    """One more byte is too much."""
    head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999\r\n\r\n"
    size = http.SIZE - len(head)
    async with serving(echo) as server:
        for more, status in ((0, 200), (1, 413)):
            with server.connect() as client:
                await client.send(head.replace(b"99999", b"%d" % (size + more)) + bytes(size + more))
                assert (await client.answer("POST")).status == status


@on_loop
async def test_a_refused_head_request_gets_no_body() -> None:
    """The client would take it for the next answer."""
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(b"HEAD //[ HTTP/1.1\r\nhost: a\r\n\r\n")
            assert (await client.answer("HEAD")).status == 400
            assert await client.ends()


@on_loop
async def test_a_client_that_keeps_sending_can_read_its_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server reads on for a while. If it closed at once, the kernel's reset could overtake the refusal."""
    monkeypatch.setattr(http, "LINGER", 20.0)
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(b"nonsense\r\n\r\n")
            await becomes(lambda: readable(client))
            await client.send(b"y" * 1_000_000)
            client.sock.shutdown(socket.SHUT_WR)
            assert (await client.answer()).status == 400
            assert await client.ends()
        await becomes(lambda: not server.connections)


def readable(client: Client) -> bool:
    with contextlib.suppress(BlockingIOError):
        return bool(client.sock.recv(1, socket.MSG_PEEK))
    return False


# Time


class Patience:
    """The server's timeouts, by a clock that goes only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self._now = 0.0
        self._deadlines: list[tuple[float, asyncio.Timeout]] = []
        monkeypatch.setattr(http, "asyncio", SimpleNamespace(**vars(asyncio) | {"timeout": self._timeout}))

    def _timeout(self, seconds: float) -> asyncio.Timeout:
        self.begun += 1
        timeout = asyncio.timeout(None)
        self._deadlines.append((self._now + seconds, timeout))
        return timeout

    def wait(self, seconds: float) -> None:
        """Let this much time pass."""
        self._now += seconds
        over = [timeout for deadline, timeout in self._deadlines if deadline <= self._now]
        self._deadlines = [each for each in self._deadlines if each[0] > self._now]
        for timeout in over:
            with contextlib.suppress(RuntimeError):  # what it was for has ended before
                timeout.reschedule(0)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Patience:
    return Patience(monkeypatch)


def unread(client: Client) -> int:
    """Return how much memory holds what it has sent and the server has not read (SIOCOUTQ)."""
    return int.from_bytes(fcntl.ioctl(client.sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


@pytest.mark.parametrize(
    "begin",
    [b"G", GET[:-2], b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhell"],
    ids=["line", "head", "body"],
)
@on_loop
async def test_a_request_that_does_not_end_is_refused(patience: Patience, begin: bytes) -> None:
    """The whole request has to arrive in time."""
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(begin)
            await becomes(lambda: not unread(client))
            patience.wait(http.REQUEST)
            answer = await client.answer()
            assert answer.status == 408
            assert answer.json == {"error": "the request took over 5 s"}
            assert await client.ends()


@on_loop
async def test_a_byte_now_and_then_gives_no_more_time(patience: Patience) -> None:
    """Otherwise a client could hold a connection for hours with one request."""
    async with serving(echo) as server:
        with server.connect() as client:
            for _ in range(10):
                await client.send(b"y")
                await becomes(lambda: not unread(client))
                patience.wait(http.REQUEST / 10)
            assert (await client.answer()).status == 408


@on_loop
async def test_a_client_that_sends_nothing_is_closed_without_an_answer(patience: Patience) -> None:
    """A browser that connects in advance would take it for the answer to a later request."""
    async with serving(echo) as server:
        with server.connect() as client:
            await becomes(lambda: patience.begun)
            patience.wait(http.REQUEST)
            assert await client.ends()


@on_loop
async def test_an_answer_may_take_its_time(patience: Patience) -> None:
    """A reload does; only the client is held to a time."""
    held = Held()
    async with serving(held) as server:
        with server.connect() as client, server.connect() as other:
            await client.send(GET)
            await becomes(lambda: held.asked and patience.begun == 2)
            patience.wait(http.REQUEST + http.STALL)
            assert await other.ends()
            held.go.set()
            assert (await client.answer()).json == "at last"


@pytest.mark.parametrize("target", ["/long", "/whole"])
@on_loop
async def test_a_client_that_does_not_read_its_answer_is_closed(patience: Patience, target: str) -> None:
    """This holds for an answer in parts and for a whole one."""

    async def answer(request: Request) -> Response:
        return await echo(request) if request.path == "/long" else Response(200, LONG)

    async with serving(answer) as server:
        with server.connect() as client:
            await client.send(f"GET {target} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
            await becomes(lambda: readable(client))
            while server.connections:
                patience.wait(http.STALL / 10)
                await asyncio.sleep(0)
            assert len(await client.read_all()) < len(LONG)
        assert server.lines.lines == []


@on_loop
async def test_a_client_that_reads_slowly_gets_its_answer(patience: Patience) -> None:
    """The time begins anew with each part."""
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(b"GET /long HTTP/1.1\r\nhost: a\r\n\r\n")
            data = bytearray()
            while not data.endswith(b"0\r\n\r\n"):
                data += await client.read()
                patience.wait(http.STALL / 10)  # sixteen times
                for _ in range(10):
                    await asyncio.sleep(0)
            assert len(data) > len(LONG)


@on_loop
async def test_a_client_that_does_not_close_is_closed() -> None:
    """What it has not read yet still arrives."""
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(GET)
            await becomes(lambda: server.connections)
            await becomes(lambda: not server.connections)
            assert (await client.answer()).body == b"GET /"


@on_loop
async def test_many_small_chunks_leave_the_loop_to_others() -> None:
    """In one turn of the loop the server parses one event, however many clients there are."""
    clients, chunks = 4, 1000
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def ask(server: Server) -> None:
        with server.connect() as client:
            await client.send(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
            await client.send(b"1\r\nx\r\n" * chunks + b"0\r\n\r\n")
            assert (await client.answer()).status == 200

    async with serving(echo) as server:
        counting = asyncio.create_task(count())
        await asyncio.gather(*(ask(server) for _ in range(clients)))
        counting.cancel()
    assert turns > clients * chunks


# Too many clients


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "GRACE", 0.0)
    monkeypatch.setattr(http, "GRACE_ANSWERING", 0.0)


@pytest.mark.usefixtures("no_grace")
@on_loop
async def test_each_new_client_evicts_the_oldest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand idle clients keep nobody out."""
    monkeypatch.setattr(http, "CONNECTIONS", 3)
    async with serving(echo) as server:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.connect()) for _ in range(10)]
            for client in clients[:-3]:
                assert await client.ends()
            assert server.connections == 3
            for client in reversed(clients[-3:]):
                assert (await client.ask()).status == 200


@pytest.mark.usefixtures("no_grace")
@on_loop
async def test_a_new_client_evicts_none_that_is_being_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if that one is the oldest."""
    monkeypatch.setattr(http, "CONNECTIONS", 2)
    held = Held()
    async with serving(held) as server:
        with server.connect() as client:
            await client.send(GET)
            await becomes(lambda: held.asked)
            with server.connect() as idle, server.connect():
                assert await idle.ends()
            held.go.set()
            assert (await client.answer()).status == 200


@pytest.mark.usefixtures("no_grace")
@on_loop
async def test_a_client_that_has_its_answer_is_evicted_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has nothing more to wait for, and should have closed by now."""
    monkeypatch.setattr(http, "CONNECTIONS", 2)
    monkeypatch.setattr(http, "LINGER", 20.0)
    held = Held()

    async def answer(request: Request) -> Response:
        return await (held if request.path == "/held" else echo)(request)

    async with serving(answer) as server:
        with server.connect() as client, server.connect() as answered:
            await client.send(GET.replace(b"/ ", b"/held "))
            await becomes(lambda: held.asked)
            assert (await answered.ask()).status == 200
            with server.connect() as other:
                held.go.set()
                assert (await other.ask()).status == 200
                assert (await client.answer()).status == 200


@on_loop
async def test_a_new_client_evicts_the_oldest_if_all_are_being_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise clients that never read could keep everybody out. Nothing is logged."""
    monkeypatch.setattr(http, "CONNECTIONS", 2)
    monkeypatch.setattr(http, "GRACE", 20.0)
    monkeypatch.setattr(http, "GRACE_ANSWERING", 0.0)
    held = Held()
    async with serving(held) as server:
        with contextlib.ExitStack() as stack:
            first, second, third = (stack.enter_context(server.connect()) for _ in range(3))
            for number, client in enumerate((second, first, third), 1):
                await client.send(GET)
                await becomes(lambda number=number: held.asked == number)  # type: ignore[misc]
            assert await second.read_all() == b""
            held.go.set()
            for client in (first, third):
                assert (await client.answer()).status == 200
        assert server.lines.lines == []


@pytest.mark.parametrize(("name", "asks"), [("GRACE", False), ("GRACE_ANSWERING", True)])
@on_loop
async def test_a_client_is_safe_from_eviction_for_a_while(
    monkeypatch: pytest.MonkeyPatch, name: str, *, asks: bool
) -> None:
    """In a flood of clients, nobody would be answered otherwise. Meanwhile the next one waits in the backlog."""
    monkeypatch.setattr(http, "CONNECTIONS", 1)
    monkeypatch.setattr(http, name, 20.0)
    grace = http.GRACE
    monkeypatch.setattr(http, "GRACE", 20.0)  # until they are being answered
    held = Held()
    async with serving(held) as server:
        with server.connect() as first, server.connect() as second, server.connect() as third:
            if asks:
                await first.send(GET)
                await second.send(GET)
                await becomes(lambda: held.asked == 2)
                monkeypatch.setattr(http, "GRACE", grace)
            await third.send(GET)
            await asyncio.sleep(3 * http.PAUSE)
            assert server.connections == 2
            held.go.set()
            for client in (first, second):
                assert (await (client.answer() if asks else client.ask())).status == 200
                client.sock.close()
            assert (await third.answer()).status == 200


@on_loop
async def test_a_client_can_be_evicted_after_that_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one waits no longer than that."""
    monkeypatch.setattr(http, "CONNECTIONS", 1)
    async with serving(echo) as server:
        with server.connect() as first, server.connect() as second:
            assert await first.ends()
            assert (await second.ask()).status == 200


@pytest.mark.usefixtures("no_grace")
@on_loop
async def test_a_thousand_clients_leave_nothing_behind() -> None:
    """Neither descriptors nor tasks are left, and the next client is answered."""
    async with serving(echo) as server:
        await server.ask()
        await becomes(lambda: not server.connections)
        before = descriptors()
        for _ in range(20):
            with contextlib.ExitStack() as stack:
                for _ in range(50):
                    await stack.enter_context(server.connect()).send(b"GET / HT")
                    await asyncio.sleep(0)
        assert (await server.ask()).status == 200
        await becomes(lambda: not server.connections)
        await becomes(lambda: descriptors() <= before)


# Trouble


class FailingSocket:
    """A listening socket whose accept raises these errors first."""

    def __init__(self, *errors: Exception) -> None:
        self._sock = listening()
        self.errors = list(errors)

    def accept(self) -> tuple[socket.socket, Any]:
        if self.errors:
            raise self.errors.pop(0)
        return self._sock.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, ""), OSError(errno.ENOMEM, ""), MemoryError()])
@on_loop
async def test_without_a_descriptor_accepting_pauses_and_goes_on(error: Exception) -> None:
    """The listener stays readable: without a pause the loop would spin, and echoes would suffer."""
    sock = FailingSocket(error, error)
    server = Server(echo, cast("socket.socket", sock))
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert (await server.ask()).status == 200
    assert loop.time() - began >= 2 * http.PAUSE - 0.01
    assert sock.errors == []
    await server.http.close()


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ECONNABORTED])
@on_loop
async def test_a_client_that_has_gone_before_it_is_accepted_stops_nothing(number: int) -> None:
    """The next one is answered."""
    sock = FailingSocket(OSError(number, os.strerror(number)))
    server = Server(echo, cast("socket.socket", sock))
    assert (await server.ask()).status == 200
    assert sock.errors == []
    await server.http.close()


@on_loop
async def test_a_server_that_pauses_can_be_closed() -> None:
    """It does not wake up after that."""
    sock = FailingSocket(OSError(errno.EMFILE, ""))
    server = Server(echo, cast("socket.socket", sock))
    with server.connect() as client:
        await becomes(lambda: not sock.errors)
        await server.http.close()
        await asyncio.sleep(2 * http.PAUSE)
        assert server.connections == 0
        with contextlib.suppress(ConnectionResetError):
            assert await client.ends()


@on_loop
async def test_closing_ends_every_connection() -> None:
    """One has sent nothing, one waits for its answer, one does not read it, and one has it; nobody can connect any more."""
    held = Held()

    async def answer(request: Request) -> Response:
        return await (held if request.path == "/held" else echo)(request)

    server = Server(answer)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(4)]
        await clients[1].send(GET.replace(b"/ ", b"/held "))
        await clients[2].send(GET.replace(b"/ ", b"/long "))
        await becomes(lambda: held.asked and readable(clients[2]))
        await clients[3].ask()
        await server.http.close()
        for client in clients:
            await client.read_all()
        assert server.connections == 0
        with pytest.raises(ConnectionRefusedError):
            server.connect()
    assert server.lines.lines == []


@pytest.mark.filterwarnings("error::ResourceWarning")
@on_loop
async def test_closing_right_after_accepting_leaves_no_descriptor() -> None:
    """The client's task has not begun then."""
    server = Server(echo)
    ours, theirs = socket.socketpair()
    with ours:
        server.http._serve(theirs)
        await server.http.close()
        assert theirs.fileno() == -1


@on_loop
async def test_a_bug_in_an_answer_is_500_and_a_line() -> None:
    """The server goes on."""

    async def fail(request: Request) -> Response:
        if request.path == "/bug":
            raise ZeroDivisionError("a bug")
        return await echo(request)

    async with serving(fail) as server:
        answer = await server.ask("/bug")
        assert (answer.status, list(answer.json)) == (500, ["error"])
        assert (await server.ask("/next")).status == 200
        (line,) = server.lines.lines
        assert (line["level"], line["event"], line["message"]) == ("error", "internal.error", "GET /bug failed")
        assert line["exc_info"]


@on_loop
async def test_a_bug_in_the_middle_of_an_answer_cuts_it_short() -> None:
    """The client sees that the answer is incomplete, and the log says why. The server goes on."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"begin"
        raise ZeroDivisionError("a bug")

    async def fail(request: Request) -> Response:
        return Response(200, broken()) if request.path == "/bug" else await echo(request)

    async with serving(fail) as server:
        with server.connect() as client, pytest.raises((h11.RemoteProtocolError, ConnectionResetError)):
            await client.ask("/bug")
        assert (await server.ask()).status == 200
        (line,) = server.lines.lines
        assert (line["event"], line["message"]) == ("internal.error", "an answer broke off")


@pytest.mark.parametrize("how", ["close", "shutdown"])
@on_loop
async def test_a_client_that_leaves_in_the_middle_of_its_answer_is_no_bug(how: str) -> None:
    """Nothing is logged, and nothing is left."""
    go = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield b"begin"
        await go.wait()
        for _ in range(3):
            yield b"more"

    async def answer(_: Request) -> Response:
        return Response(200, parts())

    async with serving(answer) as server:
        with server.connect() as client:
            await client.send(GET)
            await becomes(lambda: readable(client))
            if how == "close":
                client.sock.close()
            else:
                client.sock.shutdown(socket.SHUT_RD)
            go.set()
            await becomes(lambda: not server.connections)
        assert server.lines.lines == []
