"""HTTP on real Unix sockets, with clients that are slow, broken or too many."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Any, cast

import h11
import pytest

from echod.admin import http
from echod.admin.http import Request, Response, refusal, reply
from tests.support.inside import Client, Server, becomes, descriptors, listening, on_loop, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LONG = b"0123456789abcdef" * (1 << 16)
"""More than the kernel and the transport hold for a client that does not read."""
GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with little patience, where a test waits for its end; what must not end in time does not depend on it."""
    monkeypatch.setattr(http, "LINGER", 0.05)


async def echo(request: Request) -> Response:
    """Answer with what was asked; /parts/… in parts."""
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
    """An answer that is not there before it is let go."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self, _: Request) -> Response:
        self.asked.set()
        await self.go.wait()
        return reply(200, "at last")


# What is answered


@on_loop
async def test_a_request_is_answered() -> None:
    """With its status, its body and its type, never to be stored."""
    async with serving(echo) as server:
        with server.connect() as client:
            answer = await client.ask("/status?watch=1#top")
    assert (answer.status, answer.body) == (200, b"GET /status")
    assert answer.headers["content-type"] == "text/plain"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-length"] == "11"
    assert answer.headers["date"].endswith(" GMT")


@on_loop
async def test_an_answer_knows_the_request() -> None:
    """Its method, its path without escapes, and its headers by names in lower case."""
    seen: list[Request] = []

    async def see(request: Request) -> Response:
        seen.append(request)
        return reply(200, None)

    async with serving(see) as server:
        with server.connect() as client:
            for target in ("/a%20b?c=d", "http://localhost/a%20b", "/%ff%ed%a0%80"):
                await client.ask(target, "DELETE", Accept="text/plain", **{"X-Twice": "1", "x-twice": "2"})
    assert [request.path for request in seen] == ["/a b", "/a b", "/\ufffd\ufffd\ufffd\ufffd"]
    assert seen[0].method == "DELETE"
    assert seen[0].headers == {"host": "localhost", "accept": "text/plain", "x-twice": "2"}


def test_a_reply_is_json_with_a_line_end() -> None:
    """So that a shell's prompt does not follow it on the same line."""
    answer = reply(200, {"status": "ready"}, ("x-name", "value"))
    assert answer == Response(200, b'{"status":"ready"}\n', "application/json", (("x-name", "value"),))
    assert refusal(404, "no").body == b'{"error":"no"}\n'


@on_loop
async def test_headers_of_an_answer_are_sent() -> None:
    """Beside those that every answer has."""

    async def refuse(_: Request) -> Response:
        return refusal(405, "no", ("allow", "GET"))

    async with serving(refuse) as server:
        with server.connect() as client:
            assert (await client.ask()).headers["allow"] == "GET"


@on_loop
async def test_an_answer_in_parts_arrives_whole() -> None:
    """In chunks, so that its length need not be known before; and the connection goes on after it."""
    async with serving(echo) as server:
        with server.connect() as client:
            answer = await client.ask("/parts/of/it")
            assert (answer.headers["transfer-encoding"], answer.body) == ("chunked", b"GET /parts/of/it")
            assert (await client.ask("/parts")).body == b"GET /parts"


@on_loop
async def test_a_long_answer_arrives_whole() -> None:
    """Also when the connection ends with it: what the transport still holds is sent."""
    async with serving(echo) as server:
        for headers in ({}, {"connection": "close"}):
            with server.connect() as client:
                assert (await client.ask("/long", **headers)).body == LONG


@pytest.mark.parametrize("target", ["/", "/parts"])
@on_loop
async def test_head_is_answered_without_a_body(target: str) -> None:
    """And otherwise as GET is: the next answer follows directly."""
    async with serving(echo) as server:
        with server.connect() as client:
            assert (await client.ask(target, "HEAD")).body == b""
            assert (await client.ask("/next")).body == b"GET /next"


@on_loop
async def test_head_says_how_long_the_body_would_be() -> None:
    """If that is known."""
    async with serving(echo) as server:
        with server.connect() as client:
            assert (await client.ask("/12345", "HEAD")).headers["content-length"] == "11"


# One request after another


@on_loop
async def test_a_connection_is_kept() -> None:
    """For as many requests as the client has."""
    async with serving(echo) as server:
        with server.connect() as client:
            for number in range(5):
                assert (await client.ask(f"/{number}")).body == f"GET /{number}".encode()
        await becomes(lambda: not server.connections)


@on_loop
async def test_requests_that_come_at_once_are_answered_in_order() -> None:
    """Of which the last one wants to be the last."""
    requests = [b"GET /%d HTTP/1.1\r\nhost: localhost\r\n\r\n" % number for number in range(20)]
    requests[-1] = requests[-1].replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(b"".join(requests))
            for number in range(20):
                assert (await client.answer()).body == b"GET /%d" % number
            assert await client.read() == b""


@on_loop
async def test_a_request_byte_by_byte_is_answered() -> None:
    """Where it is cut does not matter."""
    async with serving(echo) as server:
        with server.connect() as client:
            for byte in GET:
                await client.send(bytes([byte]))
                await asyncio.sleep(0)
            assert (await client.answer()).status == 200


@pytest.mark.parametrize("target", ["/12345", "/parts"])
@on_loop
async def test_http_1_0_gets_its_answer_and_the_end(target: str) -> None:
    """It knows no chunks and asks once."""
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(f"GET {target} HTTP/1.0\r\n\r\n".encode())
            answer = await client.answer()
            assert answer.body == f"GET {target}".encode()
            assert "transfer-encoding" not in answer.headers
            assert await client.read() == b""


@on_loop
async def test_a_client_that_wants_the_end_gets_it() -> None:
    """After its answer."""
    async with serving(echo) as server:
        with server.connect() as client:
            assert (await client.ask(connection="close")).headers["connection"] == "close"
            assert await client.read() == b""


@on_loop
async def test_a_client_that_has_finished_gets_its_answer() -> None:
    """As `printf … | nc -U` does it."""
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(GET)
            client.sock.shutdown(socket.SHUT_WR)
            assert (await client.answer()).body == b"GET /"
            assert await client.read() == b""


@on_loop
async def test_a_client_that_says_nothing_and_goes_is_forgotten() -> None:
    """Without an answer, without a line."""
    async with serving(echo) as server:
        server.connect().sock.close()
        with server.connect() as client:
            client.sock.shutdown(socket.SHUT_WR)
            assert await client.read() == b""
        await becomes(lambda: not server.connections)
        assert server.lines.lines == []


@pytest.mark.parametrize(
    "body", [b"content-length: 5\r\n\r\nhello", b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
)
@on_loop
async def test_a_body_is_read_and_ignored(body: bytes) -> None:
    """Nothing here needs one, but a client may send it; the next request begins after it."""
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(b"POST /reload HTTP/1.1\r\nhost: localhost\r\n" + body + GET)
            assert (await client.answer()).body == b"POST /reload"
            assert (await client.answer()).body == b"GET /"


# What is refused


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
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 65537\r\n\r\n" + b"y" * 65537, 413),
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
    ],
)
@on_loop
async def test_a_bad_request_is_refused(request_: bytes, status: int) -> None:
    """With a sentence, and then the connection ends; nothing of it is answered."""
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(request_)
            answer = await client.answer()
            assert answer.status == status
            assert answer.headers["connection"] == "close"
            assert list(answer.json) == ["error"]
            assert await client.read() == b""
        await becomes(lambda: not server.connections)
        assert server.lines.lines == []


@on_loop
async def test_a_body_of_the_most_bytes_is_taken() -> None:
    """The bound is what it says."""
    size = http.BODY
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size + b"y" * size)
            assert (await client.answer("POST")).status == 200


@on_loop
async def test_a_bad_request_after_a_good_one_is_refused() -> None:
    """The good one has its answer first."""
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(GET + b"nonsense\r\n\r\n" + GET)
            assert [(await client.answer()).status for _ in range(2)] == [200, 400]
            assert await client.read_all() == b""


@on_loop
async def test_a_refusal_is_read_by_who_sends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it still sends is read for a while, or the kernel's reset would overtake the refusal."""
    monkeypatch.setattr(http, "LINGER", 20.0)
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(b"nonsense\r\n\r\n")
            await becomes(lambda: readable(client))
            await client.send(b"y" * 1_000_000)
            client.sock.shutdown(socket.SHUT_WR)
            assert (await client.answer()).status == 400
            assert await client.read() == b""
        await becomes(lambda: not server.connections)


def readable(client: Client) -> bool:
    with contextlib.suppress(BlockingIOError):
        return bool(client.sock.recv(1, socket.MSG_PEEK))
    return False


# Time


@pytest.mark.parametrize(
    "begin",
    [b"G", GET[:-2], b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhell"],
    ids=["line", "head", "body"],
)
@on_loop
async def test_a_request_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch, begin: bytes) -> None:
    """It has its time from its first byte on, however it is spread."""
    monkeypatch.setattr(http, "REQUEST", 0.05)
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(begin)
            answer = await client.answer()
            assert answer.status == 408
            assert answer.json == {"error": "a request has to arrive within 0 s"}
            assert await client.read() == b""


@on_loop
async def test_a_later_request_that_does_not_end_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it has begun, its time is that of a request, and not the longer one between two."""
    async with serving(echo) as server:
        with server.connect() as client:
            await client.ask()
            monkeypatch.setattr(http, "REQUEST", 0.05)
            await client.send(b"G")
            assert (await client.answer()).status == 408


@on_loop
async def test_a_byte_now_and_then_gives_no_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a client could hold a connection for hours with one request."""
    monkeypatch.setattr(http, "REQUEST", 0.05)
    async with serving(echo) as server:
        with server.connect() as client:
            while not readable(client):
                await client.send(b"y")
                await asyncio.sleep(0.005)
            assert (await client.answer()).status == 408


@on_loop
async def test_who_asks_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word: it might read that as the answer to what it just begins to ask."""
    monkeypatch.setattr(http, "REQUEST", 0.05)
    async with serving(echo) as server:
        with server.connect() as client:
            assert await client.read() == b""


@on_loop
async def test_who_asks_nothing_more_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its own, longer time."""
    monkeypatch.setattr(http, "KEEP_ALIVE", 0.05)
    async with serving(echo) as server:
        with server.connect() as client:
            assert (await client.ask()).status == 200
            assert await client.read() == b""


@on_loop
async def test_the_time_between_two_requests_is_not_that_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prometheus comes once a minute, on one connection."""
    async with serving(echo) as server:
        with server.connect() as client:
            await client.ask()
            with monkeypatch.context() as short, server.connect() as other:
                short.setattr(http, "REQUEST", 0.05)
                assert await other.read() == b""  # who has asked nothing in that time
            assert (await client.ask()).status == 200


@on_loop
async def test_an_answer_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload does; the times are those of the client."""
    for name in ("REQUEST", "KEEP_ALIVE", "STALL"):
        monkeypatch.setattr(http, name, 0.5)
    held = Held()
    async with serving(held) as server:
        with server.connect() as client, server.connect() as other:
            await client.send(GET)
            await held.asked.wait()
            assert await other.read() == b""
            held.go.set()
            assert (await client.answer()).json == "at last"


@pytest.mark.parametrize("target", ["/long", "/whole"])
@on_loop
async def test_who_does_not_read_its_answer_is_cut(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """In the middle of a long one, and at the end of a connection: nothing is held for it for longer."""
    monkeypatch.setattr(http, "STALL", 0.05)

    async def answer(request: Request) -> Response:
        return await echo(request) if request.path == "/long" else Response(200, LONG)

    async with serving(answer) as server:
        with server.connect() as client:
            await client.send(f"GET {target} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
            await becomes(lambda: server.connections)
            await becomes(lambda: not server.connections)
            assert len(await client.read_all()) < len(LONG)
        assert server.lines.lines == []


@on_loop
async def test_who_does_not_read_the_end_of_its_last_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the transport holds of it may be little enough to be no reason to wait."""
    monkeypatch.setattr(http, "STALL", 0.05)

    async def answer(_: Request) -> Response:
        return Response(200, in_parts(LONG, 30_000), headers=(("connection", "close"),))

    async with serving(answer) as server:
        with server.connect() as client:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            await client.send(GET)
            for _ in range(25):
                await client.read()
            await becomes(lambda: not server.connections)


@on_loop
async def test_who_reads_slowly_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time begins anew with what it takes."""
    monkeypatch.setattr(http, "STALL", 0.5)
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(b"GET /long HTTP/1.1\r\nhost: a\r\n\r\n")
            data = bytearray()
            while not data.endswith(b"0\r\n\r\n"):
                data += await client.read()
                await asyncio.sleep(0.05)
            assert len(data) > len(LONG)


# Too many


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "GRACE", 0.0)
    monkeypatch.setattr(http, "GRACE_ANSWERED", 0.0)


@pytest.mark.usefixtures("no_grace")
@on_loop
async def test_one_too_many_ends_who_has_asked_nothing_for_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand idle clients keep nobody from asking, and who asks now and then stays."""
    monkeypatch.setattr(http, "CONNECTIONS", 3)
    async with serving(echo) as server:
        with contextlib.ExitStack() as stack:
            first, second, third = (stack.enter_context(server.connect()) for _ in range(3))
            for client in (first, second, third, first):
                assert (await client.ask()).status == 200
            fourth = stack.enter_context(server.connect())
            assert (await fourth.ask()).status == 200
            assert await second.read() == b""
            stack.enter_context(server.connect())
            assert await third.read() == b""
            await becomes(lambda: server.connections == 3)
            assert (await first.ask()).status == 200


@pytest.mark.usefixtures("no_grace")
@on_loop
async def test_one_too_many_ends_rather_who_is_idle_than_who_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever came first."""
    monkeypatch.setattr(http, "CONNECTIONS", 2)
    held = Held()

    async def answer(request: Request) -> Response:
        return await (held if request.path == "/held" else echo)(request)

    async with serving(answer) as server:
        with server.connect() as client, server.connect() as idle:
            await client.send(GET.replace(b"/ ", b"/held "))
            await held.asked.wait()
            await idle.ask()
            with server.connect():
                assert await idle.read() == b""
            held.go.set()
            assert (await client.answer()).status == 200


@pytest.mark.usefixtures("no_grace")
@on_loop
async def test_one_too_many_may_end_who_waits_for_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """If all do; and it leaves no trace."""
    monkeypatch.setattr(http, "CONNECTIONS", 1)
    held = Held()
    async with serving(held) as server:
        with server.connect() as client:
            await client.send(GET)
            await held.asked.wait()
            held.asked.clear()
            with server.connect() as other:
                await other.send(GET)
                assert await client.read_all() == b""
                await held.asked.wait()
                held.go.set()
                assert (await other.answer()).status == 200
        assert server.lines.lines == []


@pytest.mark.parametrize(("name", "asks"), [("GRACE", False), ("GRACE_ANSWERED", True)])
@on_loop
async def test_who_has_just_come_or_asked_is_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch, name: str, *, asks: bool
) -> None:
    """One too many waits for its end; a flood of them would else keep everybody from being answered."""
    monkeypatch.setattr(http, "CONNECTIONS", 1)
    monkeypatch.setattr(http, name, 20.0)
    held = Held()
    async with serving(held) as server:
        with server.connect() as client:
            if asks:
                await client.send(GET)
                await held.asked.wait()
            else:
                await becomes(lambda: server.connections)
            with server.connect() as other:
                await other.send(GET)
                await becomes(lambda: server.http._pause)
                held.go.set()
                assert (await (client.answer() if asks else client.ask())).status == 200
                client.sock.close()
                assert (await other.answer()).status == 200  # at once: there is room now


@on_loop
async def test_who_is_left_alone_is_so_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """After that, it has to make room."""
    monkeypatch.setattr(http, "CONNECTIONS", 1)
    async with serving(echo) as server:
        with server.connect() as client:
            await becomes(lambda: server.connections)
            with server.connect() as other:
                assert (await other.ask()).status == 200
            assert await client.read() == b""


@on_loop
async def test_one_that_is_ended_before_its_request_is_seen_comes_not_back() -> None:
    """Its request and the newcomer may be there in the same round of the loop."""
    async with serving(echo) as server:
        with server.connect() as client, server.connect():
            await becomes(lambda: server.connections == 2)
            eldest = next(iter(server.http._tasks))
            del server.http._tasks[eldest]  # as a newcomer does it
            assert (await client.ask()).status == 200
            assert eldest not in server.http._tasks


@pytest.mark.usefixtures("no_grace")
@on_loop
async def test_a_thousand_clients_leave_nothing_behind() -> None:
    """Neither descriptors nor tasks, and the next one is answered."""
    async with serving(echo) as server:
        with server.connect() as warm:
            await warm.ask()
        await becomes(lambda: not server.connections)
        before = descriptors()
        for _ in range(20):
            with contextlib.ExitStack() as stack:
                for _ in range(50):
                    await stack.enter_context(server.connect()).send(b"GET / HT")
                    await asyncio.sleep(0)
        with server.connect() as client:
            assert (await client.ask()).status == 200
        await becomes(lambda: not server.connections)
        await becomes(lambda: descriptors() <= before)


# Trouble


class FailingSocket:
    """A listening socket whose accept fails as told, and then works."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.errors: list[int] = []

    def accept(self) -> tuple[socket.socket, Any]:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return self._sock.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def failing(*errors: int) -> tuple[Server, FailingSocket]:
    sock = FailingSocket(listening())
    sock.errors += errors
    return Server(echo, cast("socket.socket", sock)), sock


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@on_loop
async def test_without_a_descriptor_accepting_pauses_and_goes_on(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The listener stays readable: without a pause the loop would spin, and echoes would suffer."""
    monkeypatch.setattr(http, "PAUSE", 0.05)
    server, sock = failing(number, number)
    loop = asyncio.get_running_loop()
    with server.connect() as client:
        began = loop.time()
        assert (await client.ask()).status == 200
        assert loop.time() - began >= 0.09
    assert sock.errors == []
    await server.http.close()


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EINTR, errno.ECONNABORTED])
@on_loop
async def test_a_client_that_has_gone_before_it_was_accepted_stops_nothing(number: int) -> None:
    """The next one is accepted at once."""
    server, sock = failing(number)
    with server.connect() as client:
        assert (await client.ask()).status == 200
    assert sock.errors == []
    await server.http.close()


@on_loop
async def test_a_server_that_pauses_can_be_closed() -> None:
    """And does not wake up after that."""
    server, sock = failing(errno.EMFILE)
    with server.connect():
        await becomes(lambda: not sock.errors)
        assert server.http._pause
        await server.http.close()
        assert server.http._pause is None


@on_loop
async def test_closing_ends_everybody() -> None:
    """Who is idle, who waits for an answer, who reads none, and who has just come; nobody can connect any more."""
    held = Held()

    async def answer(request: Request) -> Response:
        return await (held if request.path == "/held" else echo)(request)

    server = Server(answer)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(4)]
        await clients[0].ask()
        await clients[1].send(GET.replace(b"/ ", b"/held "))
        await clients[2].send(GET.replace(b"/ ", b"/long "))
        await held.asked.wait()
        await becomes(lambda: readable(clients[2]))
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
    """The connection's own code has not run then."""
    server = Server(echo)
    with server.connect() as client:
        await becomes(lambda: server.connections)
        (task,) = server.http._tasks
        sock = task.get_coro().cr_frame.f_locals["sock"]  # type: ignore[union-attr]
        await server.http.close()
        assert sock.fileno() == -1
        assert await client.read() == b""


@on_loop
async def test_a_bug_in_an_answer_is_500_and_a_line() -> None:
    """The connection goes on: the bug is not the client's."""

    async def fail(request: Request) -> Response:
        if request.path == "/bug":
            raise ZeroDivisionError("a bug")
        return await echo(request)

    async with serving(fail) as server:
        with server.connect() as client:
            answer = await client.ask("/bug")
            assert (answer.status, list(answer.json)) == (500, ["error"])
            assert (await client.ask("/next")).status == 200
        (line,) = server.lines.lines
        assert (line["level"], line["event"], line["message"]) == ("error", "internal.error", "GET /bug failed")
        assert line["exc_info"]


@on_loop
async def test_a_bug_in_the_middle_of_an_answer_cuts_it_short() -> None:
    """The client sees that it is not whole; the log says why, and the next one is answered."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"begin"
        raise ZeroDivisionError("a bug")

    async def fail(request: Request) -> Response:
        return Response(200, broken()) if request.path == "/bug" else await echo(request)

    async with serving(fail) as server:
        with server.connect() as client, pytest.raises((h11.RemoteProtocolError, ConnectionResetError)):
            await client.ask("/bug")
        with server.connect() as client:
            assert (await client.ask()).status == 200
        (line,) = server.lines.lines
        assert (line["event"], line["message"]) == ("internal.error", "an answer broke off")


@on_loop
async def test_a_client_that_goes_in_the_middle_of_its_answer_is_no_bug() -> None:
    """Whether the end is seen by reading or by writing: nothing is said, and nothing is left."""
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
        with server.connect() as client:
            await client.send(GET)
            await becomes(lambda: readable(client))
            client.sock.shutdown(socket.SHUT_RD)
            go.set()
            await becomes(lambda: not server.connections)
        assert server.lines.lines == []


@on_loop
async def test_it_is_no_proxy() -> None:
    """A tunnel would be no HTTP any more: it is refused before anybody answers it."""
    async with serving(echo) as server:
        with server.connect() as client:
            await client.send(b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n")
            assert (await client.answer()).status == 501
            assert await client.read() == b""
        assert server.lines.lines == []
