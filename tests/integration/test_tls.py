"""TLS as its clients and operators see it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509

from tests.support.bystander import unharmed
from tests.support.certificates import authority_file, client_context, client_hello, pem_file
from tests.support.harness import DEADLINE, LOCAL, Echod, command, free_port, read_all, reset, send_all, until
from tests.support.proxy_headers import LOCAL_CHECK, v1
from tests.support.tls_records import Records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Daemon = Callable[..., Echod]

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
BIG = os.urandom(700_000)


def config(port: int | str = 0, certificate: str | None = None, more: str = "", rest: str = "") -> str:
    return f"[tls]\nport = {port}\ncertificate = '{certificate or pem_file()}'\n{more}\n{rest}"


def tls_port(daemon: Echod) -> int:
    urls = [line["listener"] for line in daemon.events("listener.started")]
    return int(next(url for url in urls if url.startswith("tls://")).rpartition(":")[2])


@contextlib.contextmanager
def connected(daemon: Echod, context: ssl.SSLContext | None = None) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection((LOCAL, tls_port(daemon)), timeout=DEADLINE) as raw,
        (context or client_context()).wrap_socket(raw, server_hostname="localhost") as sock,
    ):
        yield sock


def complete_handshake(
    sock: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
) -> None:
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            incoming.write(sock.recv(1 << 16))
    sock.sendall(outgoing.read())


def echo_of_one(daemon: Echod, context: ssl.SSLContext | None = None) -> bytes:
    with connected(daemon, context) as sock:
        sock.sendall(b"x")
        return sock.recv(1)


def test_the_first_echo_waits_for_no_timer(echod: Daemon) -> None:
    """In TLS 1.3, a client that has not turned off Nagle's algorithm sends once its Finished is acknowledged."""
    with echod(config()) as daemon:

        def took() -> float:
            with connected(daemon, client_context(version=ssl.TLSVersion.TLSv1_3)) as sock:
                began = time.monotonic()
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
                return time.monotonic() - began

        # The kernel delays an acknowledgement by 40 ms, each time; a machine that has much to do delays some of them.
        assert any(took() < 0.02 for _ in range(100))


def test_clients_that_end_their_handshakes_make_room_for_others(echod: Daemon) -> None:
    """They have ended when the others connect, but each end waits behind the handshakes of those before it."""
    rest = "[pool]\nsize = 32\n[timeouts]\nhandshake = '1h'\n"
    with echod(config(rest=rest)) as daemon, contextlib.ExitStack() as stack:

        def connect() -> socket.socket:
            address = (LOCAL, tls_port(daemon))
            return stack.enter_context(socket.create_connection(address, timeout=DEADLINE))

        patient, distrustful = [connect() for _ in range(28)], [connect() for _ in range(4)]
        alerts = [alert(sock) for sock in distrustful]
        with daemon.suspended():
            for sock in patient:
                sock.sendall(client_hello())
            for sock, last in zip(distrustful, alerts, strict=True):
                sock.sendall(last)
                sock.close()
            others = [connect() for _ in distrustful]
        for other in others:
            with client_context().wrap_socket(other, server_hostname="localhost") as sock:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"


def alert(sock: socket.socket) -> bytes:
    """Begin a handshake as a client that does not trust the certificate; return its last message, which is not sent yet."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            incoming.write(sock.recv(1 << 16))
        except ssl.SSLCertVerificationError:
            return outgoing.read()


def rejection(daemon: Echod) -> str:
    line = daemon.wait_for("connection.rejected")
    assert line["reason"] == "handshake"
    assert line["listener"].startswith("tls://")
    error: str = line["error"]
    return error


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_each_byte_comes_back_and_the_log_says_what_was_negotiated(echod: Daemon, version: ssl.TLSVersion) -> None:
    with echod(config()) as daemon:
        with connected(daemon, client_context(version=version)) as sock:
            sender = threading.Thread(target=sock.sendall, args=[BIG])
            sender.start()
            got = bytearray()
            while len(got) < len(BIG):
                got += sock.recv(1 << 16)
            assert got == BIG
            cipher = sock.cipher()
            assert cipher
            sender.join()  # OpenSSL's objects are not for two threads: it may still be in the last call
            sock.unwrap()
        line = daemon.wait_for("connection.closed")
        assert line["tls"] == {"version": version.name.replace("_", "."), "cipher": cipher[0], "client": None}
        assert (line["reason"], line["bytes_received"], line["bytes_sent"]) == ("eof", len(BIG), len(BIG))
        assert daemon.events("connection.opened")[0]["tls"] == line["tls"]
        assert line["syn"]["mss"] > 0


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_slow_reader_that_half_closes_gets_all_of_its_echo_and_close_notify(
    echod: Daemon, version: ssl.TLSVersion
) -> None:
    """The case in which uvloop's own TLS loses bytes: data, close_notify and FIN, and then a slow reader."""
    with echod(config()) as daemon, socket.create_connection((LOCAL, tls_port(daemon)), timeout=DEADLINE) as sock:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context(version=version).wrap_bio(incoming, outgoing, server_hostname="localhost")
        complete_handshake(sock, tls, incoming, outgoing)
        tls.write(BIG)
        with pytest.raises(ssl.SSLWantReadError):
            tls.unwrap()
        everything = outgoing.read()

        def send() -> None:
            sock.sendall(everything)
            sock.shutdown(socket.SHUT_WR)

        threading.Thread(target=send).start()
        time.sleep(0.1)
        got, ended = bytearray(), False
        while data := sock.recv(9000):
            incoming.write(data)
            try:
                while part := tls.read(1 << 16):
                    got += part
                ended = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                ended = True
        assert got == BIG
        assert ended
        assert daemon.wait_for("connection.closed")["reason"] == "eof"


def test_fin_without_close_notify_is_truncated(echod: Daemon) -> None:
    with echod(config()) as daemon:
        with connected(daemon) as sock:
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"
            os.close(sock.detach())
        assert daemon.wait_for("connection.closed")["reason"] == "truncated"


@pytest.mark.parametrize(
    ("request_", "error"), [(b"GET / HTTP/1.0\r\n\r\n", "http request"), (b"hello world\n", "wrong version number")]
)
def test_a_client_without_tls_is_rejected(echod: Daemon, request_: bytes, error: str) -> None:
    with echod(config()) as daemon:
        with socket.create_connection((LOCAL, tls_port(daemon)), timeout=DEADLINE) as sock:
            sock.sendall(request_)
            read_all(sock)
        assert rejection(daemon) == error
        assert daemon.events("connection.opened") == []


def test_a_tls_client_on_the_plain_port_gets_its_bytes_back(echod: Daemon) -> None:
    with echod(config()) as daemon, daemon.connect() as raw, pytest.raises(ssl.SSLError):
        client_context().wrap_socket(raw, server_hostname="localhost")


def test_a_handshake_that_is_not_complete_in_time_is_rejected(echod: Daemon) -> None:
    with echod(config(rest="[timeouts]\nhandshake = '500ms'")) as daemon:
        with socket.create_connection((LOCAL, tls_port(daemon)), timeout=DEADLINE) as sock:
            sock.sendall(b"\x16\x03")
            assert read_all(sock) == b""
        assert rejection(daemon) == "timed out"


def test_a_connection_that_ends_without_a_byte_is_a_probe(echod: Daemon, tmp_path: Path) -> None:
    """As on the plain port: a load balancer's check by TCP, also with a PROXY header. It ends with FIN or RST."""
    where = ["--admin.socket", str(tmp_path / "admin.sock")]
    rest = f"[access]\nproxies = '127.0.0.2'\n[log]\nlevel = 'debug'\n[listen]\nhost = '{LOCAL}'\nport = 0"
    headers = {LOCAL: b"", "127.0.0.2": LOCAL_CHECK, "127.0.0.3": b"", "127.0.0.4": b""}
    with echod(config(rest=rest), flags=where) as daemon:
        for source, header in [*headers.items(), ("127.0.0.2", v1("203.0.113.7", 4711))]:
            address = (LOCAL, tls_port(daemon))
            with socket.create_connection(address, DEADLINE, source_address=(source, 0)) as sock:
                sock.sendall(header)
                if source == "127.0.0.3":
                    reset(sock)
        probes = [daemon.wait_for("connection.probed", count=count) for count in range(1, 6)]
        assert sorted(str(line["command"]) for line in probes) == ["LOCAL", *["None"] * 4]
        assert any(line.get("proxy", {}).get("address") == "127.0.0.2" for line in probes)
        answer = json.loads(command("status", "--json", *where).stdout)["connections"]
        assert (answer["probes"], sum(answer["rejected"].values()), answer["accepted"]) == (5, 0, 0)
        others = {"connection.opened", "connection.closed", "connection.rejected"}
        assert others.isdisjoint(line["event"] for line in daemon.lines)


def test_required_client_certificates(echod: Daemon) -> None:
    """The subject is in the log; who has none, or one of another authority, gets an alert."""
    more = f"verify = 'required'\nclient_ca = '{authority_file()}'"
    with echod(config(more=more)) as daemon:
        with connected(daemon, client_context(certificate=pem_file("probe.example"))) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        assert "CN=probe.example" in daemon.wait_for("connection.opened")["tls"]["client"]
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
            echo_of_one(daemon)
        assert rejection(daemon) == "peer did not return a certificate"
        other = client_context(certificate=pem_file("evil.example", by="two"))
        with pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca"):
            echo_of_one(daemon, other)
        assert "certificate verify failed" in daemon.wait_for("connection.rejected", count=2)["error"]


def test_a_reload_that_accepts_clients_of_more_authorities_says_so(echod: Daemon, tmp_path: Path) -> None:
    """The settings are the same; the file has one more."""
    file = tmp_path / "ca.pem"
    shutil.copy(authority_file(), file)
    text = config(more=f"verify = 'required'\nclient_ca = '{file}'")
    with echod(text) as daemon:
        assert daemon.reload(text)["event"] == "config.reloaded"
        with file.open("a") as opened:
            opened.write(Path(authority_file("two")).read_text())
        assert daemon.reload(text)["event"] == "config.reloaded"
        (line,) = daemon.events("config.warning")
        assert "tls.client_ca: lets in more clients than before: those that " in line["message"]
        assert "O=authority two" in line["message"]
        assert echo_of_one(daemon, client_context(certificate=pem_file("new.example", by="two"))) == b"x"


def test_a_reload_takes_a_new_certificate_and_open_connections_keep_theirs(echod: Daemon, tmp_path: Path) -> None:
    """All or nothing: a file that can't be used changes nothing. The TOML file stays as it is."""
    file, where = tmp_path / "cert.pem", ["--admin.socket", str(tmp_path / "admin.sock")]
    shutil.copy(pem_file(), file)
    text = config(certificate=str(file))
    with echod(text, flags=where) as daemon, connected(daemon) as old:

        def serial() -> Any:
            with connected(daemon) as sock:
                certificate: Any = sock.getpeercert()
                return certificate["serialNumber"]

        first = serial()
        file.write_text("nonsense")
        assert daemon.reload(text)["event"] == "config.rejected"
        assert serial() == first
        shutil.copy(pem_file("localhost", not_after=datetime.now(UTC) + timedelta(days=40)), file)
        answer = daemon.reload(text)
        assert (answer["event"], answer["changed"]) == ("config.reloaded", [])
        assert answer["files"] == {"tls.certificate": str(file)}
        assert serial() != first
        assert command("reload", *where).stdout == "reloaded, nothing has changed\n"
        shutil.copy(pem_file(), file)
        assert command("reload", *where).stdout == f"tls.certificate: {file} has changed, and was read\n"
        assert serial() == first
        old.sendall(b"still there")
        assert old.recv(100) == b"still there"


def test_a_drain_ends_with_close_notify(echod: Daemon) -> None:
    with echod(config(rest="[timeouts]\ndrain = '100ms'")) as daemon, connected(daemon) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        daemon.process.terminate()
        assert sock.recv(1) == b""  # and not SSLEOFError
        sock.close()
        assert daemon.wait_for("connection.closed")["reason"] == "drained"


def test_status_connections_and_metrics(echod: Daemon, tmp_path: Path) -> None:
    where = ["--admin.socket", str(tmp_path / "admin.sock")]
    soon = pem_file("localhost", not_after=datetime.now(UTC) + timedelta(days=3))
    with echod(config(certificate=soon), flags=where) as daemon, connected(daemon):
        daemon.wait_for("connection.opened")
        assert "expires at" in daemon.wait_for("config.warning")["message"]
        assert "\n! tls  " in command("status", *where).stdout
        assert '"version":"TLSv1.3"' in command("connections", "--json", *where).stdout
        curl = ["curl", "-s", "--unix-socket", where[1], "http://echod/metrics"]
        text = subprocess.run(curl, capture_output=True, text=True, check=True).stdout
        assert 'echod_tls_handshakes_total{result="ok"} 1.0' in text
        assert "echod_tls_certificate_expiry_timestamp_seconds" in text


@pytest.mark.slow
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("certificate", [False, True])
def test_openssl_s_client(echod: Daemon, version: str, certificate: bool) -> None:  # noqa: FBT001
    more = f"verify = 'optional'\nclient_ca = '{authority_file()}'"
    with echod(config(more=more)) as daemon:
        words = ["openssl", "s_client", "-connect", f"{LOCAL}:{tls_port(daemon)}", version, "-quiet", "-no_ign_eof"]
        words += ["-CAfile", authority_file(), "-verify_return_error"]
        words += ["-cert", pem_file("probe.example"), "-key", pem_file("probe.example")] if certificate else []
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as client:
            assert client.stdin
            assert client.stdout
            client.stdin.write(b"hello\n")
            client.stdin.flush()
            assert client.stdout.readline() == b"hello\n"
            client.stdin.close()
            client.wait(DEADLINE)
        line = daemon.wait_for("connection.closed")
        assert (line["reason"], bool(line["tls"]["client"])) == ("eof", certificate)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("curl -sS --http0.9 --cacert {ca} https://localhost:{port}/hello", "idle_timeout"),
        ("socat -t 5 - openssl:localhost:{port},cafile={ca},pf=ip4", "eof"),
        # It sends FIN without close_notify.
        (
            "ncat -4 --ssl --ssl-verify --ssl-trustfile {ca} --ssl-cert {own} --ssl-key {own} localhost {port}",
            "truncated",
        ),
    ],
    ids=["curl", "socat", "ncat"],
)
def test_other_clients_verify_the_certificate_and_get_their_bytes_back(echod: Daemon, words: str, reason: str) -> None:
    program = words.split(maxsplit=1)[0]
    if not shutil.which(program):
        pytest.skip(f"needs {program}")
    more = f"verify = 'optional'\nclient_ca = '{authority_file()}'"
    with echod(config(more=more, rest="[timeouts]\nidle = '4s'")) as daemon:
        typed = words.format(ca=authority_file(), own=pem_file("probe.example"), port=tls_port(daemon)).split()
        done = subprocess.run(typed, input=BIG, capture_output=True, timeout=DEADLINE, check=True)
        line = daemon.wait_for("connection.closed")
        assert line["reason"] == reason
        assert bool(line["tls"]["client"]) == (program == "ncat")
        if program == "curl":  # its request, as the answer of HTTP/0.9
            assert done.stdout.startswith(b"GET /hello HTTP/1.1\r\n")
            assert done.stdout.endswith(b"\r\n\r\n")
        else:
            assert done.stdout == BIG


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("testssl"), reason="needs testssl.sh")
def test_testssl_finds_nothing_worse_than_good(echod: Daemon, tmp_path: Path) -> None:
    """Protocols, ciphers, renegotiation, compression and CBC. What it says of the certificate is not ours."""
    found = tmp_path / "found.json"
    words = [
        "testssl",
        "--quiet",
        "--color",
        "0",
        "--warnings",
        "off",
        "--nodns",
        "none",
        "--ip",
        LOCAL,
        "--jsonfile",
        str(found),
    ]
    checks = ["--protocols", "--std", "--renegotiation", "--compression", "--lucky13"]
    with echod(config()) as daemon:
        target = f"localhost:{tls_port(daemon)}"
        subprocess.run([*words, *checks, target], capture_output=True, timeout=10 * DEADLINE, check=True)
    severity = {each["id"]: each["severity"] for each in json.loads(found.read_text())}
    assert {"TLS1_2", "TLS1_3", "cipherlist_AVERAGE", "secure_client_renego", "CRIME_TLS", "LUCKY13"} <= severity.keys()
    of_itself = {"engine_problem", "service", "scanTime"}
    assert {name: how for name, how in severity.items() if how not in ("OK", "INFO") and name not in of_itself} == {}


@pytest.mark.slow
def test_key_updates_of_openssl_s_client(echod: Daemon) -> None:
    """Its commands `K` and `k` send one, with and without asking for the daemon's."""
    with echod(config()) as daemon:
        words = [
            "openssl",
            "s_client",
            "-connect",
            f"{LOCAL}:{tls_port(daemon)}",
            "-tls1_3",
            "-CAfile",
            authority_file(),
        ]
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as client:
            assert client.stdin
            assert client.stdout
            for line, answer in [("one", "one"), *[("K", "KEYUPDATE"), ("k", "KEYUPDATE"), ("two", "two")] * 3]:
                client.stdin.write(f"{line}\n")
                client.stdin.flush()
                assert f"{answer}\n" in iter(client.stdout.readline, "")
            client.stdin.write("Q\n")
            client.stdin.close()
            client.stdout.read()
        closed = daemon.wait_for("connection.closed")
        assert (closed["reason"], closed["bytes_received"], closed["bytes_sent"]) == ("eof", 16, 16)


@pytest.mark.slow
def test_a_flood_of_key_updates_costs_no_memory_and_holds_nobody_up(echod: Daemon, tmp_path: Path) -> None:
    """The client asks for the keys of the daemon again and again, and does not read them. It is reset as any that stalls."""
    context = client_context(keylog=tmp_path / "keys")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with echod(config(rest="[timeouts]\nwrite = '1s'")) as daemon, unharmed(daemon), socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(DEADLINE)
        sock.connect((LOCAL, tls_port(daemon)))
        complete_handshake(sock, tls, incoming, outgoing)
        records, before = Records(tmp_path / "keys"), daemon.memory()
        with contextlib.suppress(ConnectionError):  # it is reset
            while not daemon.events("connection.closed"):
                sock.sendall(b"".join(records.key_update() + records.data(bytes(500)) for _ in range(100)))
        assert daemon.memory() - before < 2 << 20
        assert daemon.wait_for("connection.closed")["reason"] == "write_timeout"


@pytest.mark.slow
def test_200_busy_connections_survive_reloads_with_alternating_certificates(echod: Daemon, tmp_path: Path) -> None:
    """Up to 40 reloads a second. After each, a new connection shows the new serial, and the open ones go on with theirs."""
    file = tmp_path / "cert.pem"
    files = [Path(pem_file()), Path(pem_file("localhost", not_after=datetime.now(UTC) + timedelta(days=40)))]
    serials = [x509.load_pem_x509_certificate(each.read_bytes()).serial_number for each in files]
    shutil.copy(files[0], file)
    text = config(certificate=str(file), rest="[pool]\nsize = 300")
    with echod(text) as daemon:
        stop, lost = threading.Event(), []
        rounds = dict.fromkeys(range(200), 0)

        def serial(sock: ssl.SSLSocket) -> int:
            certificate: Any = sock.getpeercert()
            return int(certificate["serialNumber"], 16)

        def busy(numbers: range) -> None:
            context = client_context()
            with contextlib.ExitStack() as stack:
                try:
                    clients = [(number, stack.enter_context(connected(daemon, context))) for number in numbers]
                    while not stop.is_set():
                        for number, client in clients:
                            client.sendall(b"%d" % number)
                            assert client.recv(10) == b"%d" % number
                            rounds[number] += 1
                    assert {serial(client) for _, client in clients} == {serials[0]}
                except (OSError, AssertionError) as error:
                    lost.append(error)

        def all_go_on() -> None:
            before = dict(rounds)
            until(lambda: lost or all(rounds[each] > before[each] for each in before), what="a round of all")

        threads = [threading.Thread(target=busy, args=[range(first, first + 20)]) for first in range(0, 200, 20)]
        for thread in threads:
            thread.start()
        try:
            all_go_on()
            for number in range(1, 121):
                due = time.monotonic() + 0.025
                shutil.copy(files[number % 2], tmp_path / "new.pem")
                (tmp_path / "new.pem").rename(file)
                assert daemon.reload(text)["files"] == {"tls.certificate": str(file)}
                with connected(daemon) as new:
                    assert serial(new) == serials[number % 2]
                time.sleep(max(0.0, due - time.monotonic()))
            all_go_on()
        finally:
            stop.set()
            for thread in threads:
                thread.join(DEADLINE)
        assert lost == []
        assert not daemon.events("config.rejected")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("haproxy"), reason="needs HAProxy")
def test_haproxy_verifies_the_certificate(echod: Daemon, tmp_path: Path) -> None:
    """As a server of HAProxy with `ssl verify required`."""
    with echod(config()) as daemon:
        port = free_port()
        (tmp_path / "haproxy.cfg").write_text(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n"
            f"listen echo\n bind {LOCAL}:{port}\n"
            f" server one {LOCAL}:{tls_port(daemon)} ssl verify required ca-file {authority_file()} verifyhost localhost\n"
        )
        haproxy = subprocess.Popen(
            [shutil.which("haproxy") or "", "-f", str(tmp_path / "haproxy.cfg")], stderr=subprocess.DEVNULL
        )
        try:

            def listens_() -> bool:
                try:
                    socket.create_connection((LOCAL, port)).close()
                except OSError:
                    return False
                return True

            until(listens_, what="HAProxy")
            with socket.create_connection((LOCAL, port), timeout=DEADLINE) as sock:
                send_all(sock, BIG)
                assert read_all(sock) == BIG
        finally:
            haproxy.terminate()
            haproxy.wait(DEADLINE)
