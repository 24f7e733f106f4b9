"""`echod ping` and TLS: who is trusted, what a handshake takes, and how a connection ends."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.echo_servers import ending, right, serving, silent
from tests.support.harness import DEADLINE, LOCAL
from tests.support.idle_clock import CROWD
from tests.unit.client.test_ping import QUICK, ping, told

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from tests.support.echo_servers import Behaviour

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of "localhost" with its key, in one file; its own authority."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    directory = tmp_path_factory.mktemp("tls")
    key, public = directory / "key.pem", directory / "public.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=localhost"
    extension = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(public)]
    subprocess.run(
        ["openssl", *words.split(), *extension],  # noqa: S607
        check=True,
        capture_output=True,
        timeout=DEADLINE,
    )
    both = directory / "both.pem"
    both.write_text(public.read_text() + key.read_text())
    return both


def over_tls(certificate: Path, behave: Behaviour, *, client_ca: Path | None = None) -> Behaviour:
    """Behave like this over TLS; the end of it is one without close_notify."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    if client_ca:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED

    def serve(client: socket.socket) -> None:
        with context.wrap_socket(client, server_side=True) as secure:
            behave(secure)

    return serve


def test_a_trusted_server_has_times_of_its_own_for_tls(capsys: Capture, certificate: Path) -> None:
    """Beside those of the connection; messages of any size come back."""
    with serving(over_tls(certificate, right)) as port:
        words = ["-c", "2", "--ca", str(certificate), "-s", "56,200000", f"tls://localhost:{port}"]
        code, events, summary = told(capsys, *words)
        _, out, _ = ping(capsys, *QUICK, *words)
    assert (code, summary["echoed"], summary["tls"]["count"]) == (0, 2, 2)
    assert 0 < events[0]["tls"] < 5
    assert " tls=" in out.splitlines()[1]
    assert " tls=0." in out.splitlines()[3]


@pytest.mark.parametrize(
    ("words", "host", "error"),
    [
        ([], "localhost", "its certificate is not trusted: self-signed certificate"),
        (["--ca", "CERTIFICATE"], LOCAL, "its certificate is not trusted: IP address mismatch"),
        (["--insecure"], LOCAL, None),
    ],
)
def test_a_server_is_verified(
    capsys: Capture, certificate: Path, words: list[str], host: str, error: str | None
) -> None:
    """By name and authority, unless that is not wanted."""
    words = [str(certificate) if word == "CERTIFICATE" else word for word in words]
    with serving(over_tls(certificate, right)) as port:
        code, (event,), _ = told(capsys, "-c", "1", *words, f"tls://{host}:{port}")
    assert code == (2 if error else 0)
    assert event.get("error", "").startswith(error or "")


@pytest.mark.parametrize("shown", [True, False])
def test_a_client_certificate_is_shown(capsys: Capture, certificate: Path, *, shown: bool) -> None:
    """The server that wants one refuses without it."""
    with serving(over_tls(certificate, right, client_ca=certificate)) as port:
        words = ["--cert", str(certificate)] if shown else []
        target = f"tls://localhost:{port}"
        code, (event, *_), _ = told(capsys, "-c", "1", "--ca", str(certificate), *words, target)
    assert code == (0 if shown else 2)
    assert shown or event["reason"] in ("error", "reset")  # the alert, unless a reset has overtaken it
    if event.get("reason") == "error":
        assert event["error"] == "TLS: the server refuses: certificate required"


def test_an_end_without_close_notify_is_told(capsys: Capture, certificate: Path) -> None:
    """Somebody on the way may have cut the stream (RFC 8446, 6.1)."""

    def behave(client: socket.socket) -> None:
        client.recv(100)

    with serving(over_tls(certificate, behave)) as port:
        words = ["-c", "1", "--ca", str(certificate), f"tls://localhost:{port}"]
        _, (event,), _ = told(capsys, *words)
    assert (event["reason"], event["error"]) == ("error", "ended without close_notify (TLS)")


def test_a_server_without_tls_is_told(capsys: Capture) -> None:
    """One that echoes the handshake, one that greets, one that closes, and one that is silent."""
    for behave, error in (
        (right, "the server does not speak TLS at this port"),
        (ending(0, answer=lambda _: b"220 ready\r\n"), "the server does not speak TLS at this port"),
        (ending(0, answer=lambda _: b""), "the server closed the connection in the TLS handshake"),
    ):
        with serving(behave) as port:
            _, (event,), _ = told(capsys, "-c", "1", "--insecure", f"tls://localhost:{port}")
        assert (event["reason"], event["error"]) == ("connect", error)
    with serving(silent) as port:
        _, (event,), _ = told(capsys, "-W", "0.1", "-c", "1", f"tls://localhost:{port}")
    assert event["error"] == "no TLS handshake within 0.1 s"


@pytest.mark.usefixtures("clock")
def test_a_server_that_does_not_read_stops_the_sending(capsys: Capture, certificate: Path) -> None:
    """As without TLS."""

    def behave(_: socket.socket) -> None:
        CROWD.sleep(60)

    with serving(over_tls(certificate, behave)) as port:
        words = ["-c", "1", "-W", "0.3", "--ca", str(certificate), "-s", "16000000", f"tls://localhost:{port}"]
        code, (event,), _ = told(capsys, *words)
    assert (event["reason"], code) == ("timeout", 2)


@pytest.mark.parametrize(
    ("option", "content", "error"),
    [
        ("--ca", None, "No such file or directory"),
        ("--ca", "nothing", "no certificates in PEM form"),
        ("--cert", None, "No such file or directory"),
        ("--cert", "nothing", "no certificate with its key, without a passphrase, in PEM form"),
    ],
)
def test_a_file_that_is_no_use_is_wrong_usage(
    capsys: Capture, tmp_path: Path, option: str, content: str | None, error: str
) -> None:
    """Before anything is sent."""
    file = tmp_path / "file.pem"
    if content is not None:
        file.write_text(content)
    assert ping(capsys, option, str(file), "tls://localhost:1") == (3, "", f"echod: {option}: {file}: {error}\n")
