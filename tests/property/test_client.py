"""Any bytes on the admin socket are an answer, or refused with one line."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from unittest import mock

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from echod import unix
from echod.client.admin_client import AdminClient
from echod.errors import Refusal

JSON = st.recursive(st.none() | st.integers(0, 9) | st.text(max_size=3), st.lists, max_leaves=4)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """Draw something like an answer, most of it valid."""
    status = draw(
        st.sampled_from(["HTTP/1.1 200 OK", "HTTP/1.1 404 Not Found", "HTTP/1.0 503 x", "HTTP/1.1 100 Go on"])
    )
    body = draw(st.one_of(JSON.map(orjson.dumps), st.binary(max_size=20)))
    lines = draw(
        st.lists(
            st.sampled_from(
                [
                    f"content-length: {len(body)}",
                    "content-length: -1",
                    "content-length: x",
                    "transfer-encoding: chunked",
                ]
            ),
            max_size=2,
        )
    )
    if "transfer-encoding: chunked" in lines and draw(st.booleans()):
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return "".join(f"{line}\r\n" for line in [status, *lines, ""]).encode() + body


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=100) | answers() | st.lists(answers(), min_size=2, max_size=3).map(b"".join))
@example(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n{}")
@example(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffffff\r\n")
@example(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\n")
@example(b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 5000)
def test_any_bytes_are_an_answer_or_refused(data: bytes) -> None:
    """Never a traceback."""
    theirs, ours = socket.socketpair()
    with theirs, ours, mock.patch.object(unix, "connect", return_value=ours):
        ours.settimeout(5)
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        try:
            status, _ = AdminClient([Path("/admin.sock")]).request("GET", "/status")
        except Refusal as refusal:
            (line,) = refusal.lines
            assert line.isprintable()
            assert refusal.exit_code == os.EX_UNAVAILABLE  # noqa: PT017 - the other outcome is as good
        else:
            assert 100 < status < 1000
