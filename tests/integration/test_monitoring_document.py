"""docs/monitoring.md says what the daemon answers: every field of /status and /connections, and its type."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import field_tables
from tests.support.harness import LOCAL, Echod, command, read_all, read_exactly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Daemon = Callable[..., Echod]

DOCUMENT = Path(__file__).parents[2] / "docs" / "monitoring.md"


@pytest.fixture
def ask(echod: Daemon, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Return what asks a daemon that has an open connection, a rejected client and a reload behind it."""
    where = ["--admin.socket", str(tmp_path / "admin.sock")]

    def ask(name: str) -> Any:
        return json.loads(command(name, "--json", *where).stdout)

    unix = ["--listen.unix", str(tmp_path / "echo.sock")]
    with echod("[pool]\nsize = 1", flags=[*where, *unix, "--udp.port", "0"]) as daemon, daemon.connect() as sock:
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"x"
        with daemon.connect() as rejected, socket.socket(socket.AF_UNIX) as other:
            assert read_all(rejected) == b""
            other.connect(unix[1])
            assert read_all(other) == b""
        daemon.reload("[pool]\nsize = 1\n[timeouts]\nidle = '1m'")
        yield ask


def documented(heading: str) -> field_tables.Fields:
    return field_tables.fields(field_tables.sections(DOCUMENT.read_text())[heading])


def test_status_is_as_documented(ask: Callable[[str], Any]) -> None:
    answer = ask("status")
    assert answer["udp"]
    field_tables.check(answer, documented("`GET /status`"))
    assert (len(answer["listeners"]), len(answer["sources"]), len(answer["rejections"])) == (3, 1, 2)
    assert answer["sources"][0]["source"] == LOCAL


def test_connections_are_as_documented(ask: Callable[[str], Any]) -> None:
    (row,) = ask("connections")
    field_tables.check(row, documented("`GET /connections`"))
