"""Whatever a client sends, the admin server raises nothing, leaves nothing behind, and answers the next client."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from typing import TYPE_CHECKING
from unittest import mock

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from echod.admin import http
from echod.admin.http import Request, Response
from echod.admin.routes import is_ours
from tests.support.in_process import Inside, Server, becomes, on_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

METHODS = ["GET", "HEAD", "POST", "DELETE", "PUT", "OPTIONS", "CONNECT", "get", "M-SEARCH"]
TARGETS = [
    "/metrics",
    "/status",
    "/livez",
    "/readyz",
    "/connections",
    "/connections/1",
    "/reload",
    "/",
    "*",
    "//[",
    "x:1",
]

token = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters='"(),/:;<=>?@[\\]{}'), min_size=1)
value = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40).map(
    str.strip
)
target = st.sampled_from(TARGETS) | st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1).map(
    "/{}".format
)


@pytest.fixture(autouse=True, scope="module")
def hurry() -> Iterator[None]:
    """Let the server wait only briefly for a client to close its connection, and evict at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http, "LINGER", 0.02)
        patch.setattr(http, "GRACE", 0.0)
        yield


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Return something like a request. It has all its parts, and most of them are good."""
    lines = [f"{draw(st.sampled_from(METHODS) | token)} {draw(target)} HTTP/1.{draw(st.sampled_from('0117'))}"]
    lines += draw(
        st.lists(st.sampled_from(["host: localhost", "connection: close", "expect: 100-continue", "upgrade: x"]))
    )
    lines += [f"{name}: {text}" for name, text in draw(st.lists(st.tuples(token, value), max_size=3))]
    body = draw(st.binary(max_size=20))
    match draw(st.integers(0, 5)):
        case 0:
            lines.append(f"content-length: {len(body)}")
        case 1:
            lines.append(f"content-length: {draw(st.integers(-1, 100_000))}")
        case 2:
            lines.append("transfer-encoding: chunked")
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        case _:
            body = b""
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1") + body


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """Return some requests or other bytes. A few bytes are missing, doubled or replaced."""
    data = bytearray(b"".join(draw(st.lists(requests() | st.binary(max_size=30), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 3))):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.integers(0, 5)))
        data[begin:end] = draw(st.binary(max_size=3) | st.just(bytes(data[begin:end]) * 2))
    return bytes(data)


async def answer(request: Request) -> Response:
    """Answer whole or in parts."""
    body = f"{request.method} {request.path}".encode()
    return Response(200, in_parts(body) if len(request.path) % 2 else body)


async def in_parts(data: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), 3):
        yield data[begin : begin + 3]
        await asyncio.sleep(0)


@on_loop
async def survive(parts: Sequence[bytes], *, finishes: bool) -> None:
    """Send these parts. The server must then answer another client, and have nothing left or logged."""
    server = Server(answer)
    try:
        with server.connect() as client:
            with contextlib.suppress(ConnectionError):  # the server closes when it has waited long enough
                for part in parts:
                    await client.send(part)
                    await asyncio.sleep(0)
            if finishes:
                client.sock.shutdown(socket.SHUT_WR)
                await client.read_all()
        assert (await server.ask("/good")).body == b"GET /good"
        await becomes(lambda: not server.connections)
        assert server.lines.lines == []
    finally:
        await server.http.close()


@given(data=st.binary(max_size=200) | broken(), cuts=st.sets(st.integers(1, 400), max_size=5), finishes=st.booleans())
@example(data=b"GET / HTTP/1.1\r\nhost: a\r\n\r\n" * 500, cuts={7, 300}, finishes=True)
@example(data=b"GET /" + b"a" * 100_000, cuts={4}, finishes=True)
@example(
    data=b"GET / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n", cuts=set(), finishes=True
)
@settings(max_examples=150)
def test_nothing_that_is_sent_harms_the_server(data: bytes, cuts: set[int], *, finishes: bool) -> None:
    """It does not matter whether the client waits for its answer or closes at once."""
    edges = [0, *sorted(cuts), len(data)]
    survive([data[begin:end] for begin, end in itertools.pairwise(edges)], finishes=finishes)


@given(method=st.sampled_from(["GET", "HEAD", "POST", "DELETE"]), path=target, cut=st.integers(1, 50))
@settings(max_examples=60)
def test_every_answer_to_a_good_request_is_well_formed(method: str, path: str, cut: int) -> None:
    """Nothing follows the answer."""

    @on_loop
    async def talk() -> None:
        server = Server(answer)
        data = f"{method} {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode()
        try:
            with server.connect() as client:
                await client.send(data[:cut])
                await asyncio.sleep(0)
                await client.send(data[cut:])
                got = await client.answer(method)
                assert got.status == 200 or (got.status == 400 and ("[" in path or "]" in path))  # not a URL
                assert (got.body == b"") == (method == "HEAD")
                assert await client.ends()
        finally:
            await server.http.close()

    talk()


@given(
    path=target,
    accept=value | st.from_regex(r"application/openmetrics-text; ?version=.{0,8}", fullmatch=True),
    host=value,
)
@example(path="/metrics", accept="application/openmetrics-text;version=2.\xff", host="localhost")
@example(path="/metrics", accept="application/openmetrics-text;version=1.\xa00.0", host="localhost")
@settings(max_examples=60)
def test_headers_of_any_text_are_answered(path: str, accept: str, host: str) -> None:
    """The answers of the real routes are well-formed, and none is an internal error."""
    try:
        accept.encode("latin-1")
    except UnicodeEncodeError:
        return

    @on_loop
    async def talk() -> None:
        inside = Inside()
        for route in (inside.routes.local, inside.routes.remote):
            server = Server(route)
            try:
                try:
                    got = await server.ask(path, Accept=accept, host=host)
                except h11.RemoteProtocolError as error:
                    raise AssertionError(f"no good answer: {error}") from None
                assert got.status in {200, 400, 404, 405, 421, 503}
                assert server.lines.lines == []
            finally:
                await server.http.close()
        inside.close()

    talk()


@given(host=st.text(max_size=30) | st.builds("{}:{}".format, st.sampled_from(["localhost", "[::1]", "[x]"]), st.text()))
def test_any_host_is_ours_or_not(host: str) -> None:
    """No text raises an error."""
    assert is_ours(host) in {True, False}


@given(name=st.from_regex(r"[a-z0-9-]{1,10}(\.[a-z]{2,6}){1,3}", fullmatch=True))
def test_no_name_that_a_dns_server_can_give_is_ours(name: str) -> None:
    """This holds with and without a port, unless it begins with the machine's own name, which is longer here."""
    with mock.patch.object(socket, "gethostname", return_value="a-host-name"):
        assert not is_ours(name)
        assert not is_ours(f"{name}:9107")
