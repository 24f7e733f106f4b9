"""A daemon that gives canned answers: HTTP on a Unix socket, in a thread. And answers for it to give."""

from __future__ import annotations

import contextlib
import http
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Self

import orjson

from echod.server import syn
from tests.support.harness import DEADLINE
from tests.support.rig import SYN, tcp_info

if TYPE_CHECKING:
    from pathlib import Path


class Canned:
    """Gives each client the next answer, or closes its connection if none is left."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[str] = []
        self._answers: deque[bytes] = deque()
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(path))
        self._sock.listen()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)  # ends accept
        self._thread.join(DEADLINE)
        self._sock.close()

    def answer(self, status: int, content: Any) -> None:
        """Add an answer in JSON."""
        body = orjson.dumps(content)
        head = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.answer_raw(head.encode() + body)

    def answer_raw(self, data: bytes) -> None:
        """Add an answer of any bytes."""
        self._answers.append(data)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # at the end
            while True:
                client, _ = self._sock.accept()
                with client, contextlib.suppress(ConnectionError):
                    client.settimeout(DEADLINE)
                    request = b""
                    while b"\r\n\r\n" not in request and (data := client.recv(4096)):
                        request += data
                    if not request:  # it only wanted to know whether anybody listens
                        continue
                    self.requests.append(request.partition(b" HTTP/")[0].decode())
                    if self._answers:
                        client.sendall(self._answers.popleft())


def status(**changes: Any) -> dict[str, Any]:
    """Return an answer to `GET /status` from a healthy daemon, with these changes."""
    return {
        "version": "0.1.0",
        "pid": 4711,
        "state": "running",
        "readiness": "ready",
        "accepting": True,
        "lame_duck": None,
        "uptime": 90061.5,
        "config": "/etc/echod/echod.toml",
        "pool": {"size": 1000, "in_use": 250, "when_full": "reject"},
        "connections": {
            "accepted": 12345,
            "closed": {"eof": 12000, "reset": 0, "error": 95},
            "rejected": {"denied": 0, "pool_full": 0},
        },
        "bytes_received": 1_500_000,
        "bytes_sent": 999,
        "rates": {"interval": 1.0, "accepted": 12.0, "rejected": 0.0, "bytes_received": 2e6, "bytes_sent": 1999.0},
        "listeners": [{"listener": "tcp://[::]:7007", "state": "accepting", "backlog": 1024, "queued": 2}],
        "missing": [],
        "udp": None,
        "accept_paused_seconds": 0.0,
        "sources": [{"source": "192.0.2.1", "connections": 200}, {"source": "2001:db8::/64", "connections": 50}],
        "rejections": [],
        "tcp": {"rtt": {"p50": 0.0002, "p99": 0.02, "max": 0.31}, "retrans": 1234},
        "loop_lag": {"last": 0.0004, "p50": 0.001, "p99": 0.002, "max": 0.25},
        "tls": None,
        "reload": {
            "timestamp": "2023-11-14T22:13:20.250000Z",
            "age": 125.0,
            "success": True,
            "changed": [],
            "warnings": [],
            "errors": [],
        },
        "log": {"dropped": 0, "held": 0, "held_since": None, "error": None},
        **changes,
    }


def row(**changes: Any) -> dict[str, Any]:
    """Return a row of `GET /connections`, with these changes."""
    return {
        "connection": 1,
        "client": {"address": "192.0.2.1", "port": 40000},
        "listener": "tcp://[::]:7007",
        "age": 61.0,
        "idle": 0.0,
        "bytes_received": 1500,
        "bytes_sent": 1500,
        "pending": 0,
        "state": "open",
        "tcp": tcp_info(rtt=0.00025).fields(),
        "syn": syn.fields(SYN),
        **changes,
    }
