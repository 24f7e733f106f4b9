"""What a client can't make the server do: an expensive key exchange, and sessions that take memory."""

from __future__ import annotations

import _ssl
import contextlib
import ctypes
import ssl
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from echod.config import certificates, openssl
from tests.support.certificates import choose_group, client_context, pem_file
from tests.support.rig import settings

if TYPE_CHECKING:
    from collections.abc import Callable


def shake_hands(client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLContext]:
    """Return the client's end of a complete handshake, and the context of the server. Raises `ssl.SSLError`."""
    server = certificates.load(settings(tls__port=7443, tls__certificate=pem_file()).tls).context
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = server.wrap_bio(to_server, to_client, server_side=True)
    there = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    for end in (there, here, there, here, there):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return there, server


@pytest.mark.parametrize("group", ["X25519", "P-256", "P-384", "P-521"])
def test_usual_groups_are_there(group: str) -> None:
    client = client_context()
    choose_group(client, group)
    assert shake_hands(client)[0].version() == "TLSv1.3"


@pytest.mark.parametrize("group", ["ffdhe2048", "ffdhe8192"])
def test_a_client_can_not_choose_an_expensive_key_exchange(group: str) -> None:
    client = client_context()
    choose_group(client, group)
    with pytest.raises(ssl.SSLError, match="no suitable key share"):
        shake_hands(client)


def test_no_session_is_kept() -> None:
    there, server = shake_hands(client_context(version=ssl.TLSVersion.TLSv1_2))
    assert there.version() == "TLSv1.2"
    assert there.session is not None
    assert there.session.id == b""
    assert server.session_stats()["number"] == 0


def test_where_openssl_can_not_be_called_the_group_is_p_256(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that have guessed another one are asked for it. An expensive one is out of the question."""
    monkeypatch.setattr(openssl, "restrict", function(0))
    client = client_context()
    assert shake_hands(client)[0].version() == "TLSv1.3"
    for group in ("X25519", "ffdhe8192"):
        choose_group(client, group)
        with pytest.raises(ssl.SSLError, match="no suitable key share"):
            shake_hands(client)


def function(result: int) -> Callable[..., int]:
    def call(*_: object) -> int:
        return result

    return call


def test_where_openssl_can_not_be_called_it_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a hidden part of Python's program, or Python may have another layout than is known."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with monkeypatch.context() as patch:
        patch.setattr(
            ctypes,
            "CDLL",
            lambda _: SimpleNamespace(
                SSL_CTX_ctrl=function(1), SSL_CTX_get_options=function(context.options + 1), ERR_clear_error=function(0)
            ),
        )
        assert not openssl.restrict(context)
        patch.delattr(_ssl, "__file__")
        assert not openssl.restrict(context)
    assert openssl.restrict(context)
