"""`echod ping` against services that are right, and that are wrong in each way."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from echod import probes
from echod.client.ping import _following
from tests.support import echo_servers
from tests.support.echo_servers import changed, delayed, ending, flipped, in_turn, right, serving, silent
from tests.support.harness import LOCAL, free_port
from tests.support.idle_clock import CROWD

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.echo_servers import Behaviour
    from tests.support.idle_clock import IdleClock

Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("clock")

QUICK = ["-i", "0.01", "-W", "60"]
IMPATIENT = ["-W", "0.1"]
"""For what never comes back."""


def ping(capsys: Capture, *words: str) -> tuple[int, str, str]:
    """Return the exit code, standard output and standard error."""
    code = probes.run(["ping", *words])
    return code, *capsys.readouterr()


def told(capsys: Capture, *words: str) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
    """Return the exit code, the events before the summary, and the summary."""
    code, out, err = ping(capsys, *QUICK, "--json", *words)
    assert err == ""
    *events, summary = map(json.loads, out.splitlines())
    assert summary["event"] == "ping.summary"
    assert summary["sent"] == summary["echoed"] + summary["lost"] + summary["wrong"]
    return code, events, summary


def counts(summary: dict[str, Any]) -> tuple[int, int, int]:
    return summary["echoed"], summary["lost"], summary["wrong"]


def test_right_echoes_are_a_line_each_and_a_summary(capsys: Capture) -> None:
    """The connection's own time is on the line of its first echo. The summary begins as that of a monitoring plugin."""
    with serving(right) as port:
        code, out, err = ping(capsys, "-i", "0.01", "-c", "3", f"{LOCAL}:{port}")
    assert (code, err) == (0, "")
    lines = re.sub(r"\b\d+\.\d+(?=[ s])", "0.0", out).replace(str(port), "7007").splitlines()
    assert lines[:5] == [
        "PING tcp://127.0.0.1:7007 (127.0.0.1:7007) 56 bytes",
        "56 bytes from 127.0.0.1:7007: seq=1 time=0.0 ms rtt=0.0 ms connect=0.0 ms",
        "56 bytes from 127.0.0.1:7007: seq=2 time=0.0 ms rtt=0.0 ms",
        "56 bytes from 127.0.0.1:7007: seq=3 time=0.0 ms rtt=0.0 ms",
        "OK - 3 of 3 echoed, 0 % lost, rtt 0.0 ms | rtt=0.0s;;;0 loss=0%;;;0;100 wrong=0;;;0 connect=0.0s;;;0",
    ]
    assert lines[5] == "3 sent, 3 echoed, 0 lost, 0 wrong, in 0.0 s to tcp://127.0.0.1:7007"
    assert [line.split()[0] for line in lines[6:]] == ["ms", "connect", "echo", "kernel", "jitter"]


def test_json_has_a_line_for_each_echo_and_the_summary(capsys: Capture) -> None:
    """With numbers in seconds, and the names of ss(8) for what the kernel knows."""
    with serving(right) as port:
        code, events, summary = told(capsys, "-c", "2", f"{LOCAL}:{port}")
    assert code == 0
    assert [(each["event"], each["seq"], each["size"]) for each in events] == [
        ("ping.echo", 1, 56),
        ("ping.echo", 2, 56),
    ]
    first, second = events
    assert first["server"] == {"address": LOCAL, "port": port}
    assert 0 < first["connect"] < 5
    assert "connect" not in second
    assert 0 < second["time"] < 5
    assert second["tcp"].keys() == {"rtt", "rttvar", "minrtt", "retrans"}
    assert summary["target"] == f"tcp://{LOCAL}:{port}"
    assert (summary["sent"], *counts(summary), summary["loss"]) == (2, 2, 0, 0, 0)
    echo = summary["echo"]
    assert 0 < echo["min"] <= echo["p50"] <= echo["p90"] <= echo["p99"] <= echo["max"]
    assert (echo["count"], summary["connect"]["count"], summary["tls"]["count"]) == (2, 1, 0)
    assert summary["tls"]["avg"] is None
    assert summary["tcp"]["retrans"] == 0


@pytest.mark.parametrize(
    ("behave", "events", "expected", "code"),
    [
        (flipped(17), [r"wrong: 1 byte wrong, the first at offset 17: sent 0x.., came 0x.."] * 2, (0, 0, 2), 2),
        (
            changed(lambda data: data[:9] + data[12:]),
            [r"wrong: 3 bytes missing at offset (9|1\d)"] * 2,  # what follows may begin alike, by chance
            (0, 0, 2),
            2,
        ),
        (changed(lambda data: data * 2), [r"echo: ", r"wrong: 56 bytes more than were sent"] * 2, (0, 0, 2), 2),
        (
            changed(lambda data: data[:20] + data),
            [r"wrong: 20 bytes came twice, seen at offset 2\d"] * 2,  # what follows may begin alike, by chance
            (0, 0, 2),
            2,
        ),
        (changed(lambda data: bytes(len(data))), [r"wrong: wrong from offset [01] on"] * 2, (0, 0, 2), 2),
        (
            changed(lambda data: bytes([data[0] ^ 1]) + data[1:] + b"surplus"),
            ["wrong: 1 byte wrong", "wrong: 7 bytes more than were sent"] * 2,
            (0, 0, 2),
            2,
        ),
        (silent, [r"lost: no echo within 0.1 s"] * 2, (0, 2, 0), 2),
        (changed(lambda data: data[:28]), [r"lost: 28 of 56 bytes came back within 0.1 s"] * 2, (0, 2, 0), 2),
        (
            ending(0, answer=lambda data: data[:28]),
            [r"lost: 28 of 56 bytes came back, then: the server closed the connection"] * 2,
            (0, 2, 0),
            2,
        ),
        (ending(0, answer=lambda _: b""), [r"lost: the server closed the connection"] * 2, (0, 2, 0), 2),
        (
            in_turn(ending(1, answer=lambda _: b"", by_reset=True), right),
            [r"echo: ", r"lost: the server reset the connection", r"echo: "],
            (2, 1, 0),
            1,
        ),
        (
            in_turn(ending(0, answer=lambda data: data), right),
            [r"echo: ", r"disconnected: the server closed the connection", r"echo: "],
            (2, 0, 0),
            0,
        ),
        (delayed(0.05), [r"echo: "] * 2, (2, 0, 0), 0),
        (ending(0, answer=lambda data: b"\0" + data[1:27]), ["wrong: "], (0, 0, 1), 2),
    ],
    ids=[
        "flips", "drops", "doubles", "repeats a part", "zeros",
        "flips and adds", "never answers", "stops", "truncates", "closes", "resets",
        "closes an idle connection", "delays", "truncates what is wrong",
    ],
)  # fmt: skip
def test_each_fault_is_told_for_what_it_is(
    capsys: Capture, behave: Behaviour, events: list[str], expected: tuple[int, int, int], code: int
) -> None:
    """And has its exit status: 2 if a byte was wrong or nothing came back, 1 if some were lost."""
    with serving(behave) as port:
        waits = any("0.1 s" in text or "missing" in text for text in events)
        words = ["-i", "0.15", "-c", str(sum(expected)), *(IMPATIENT if waits else [])]
        found, lines, summary = told(capsys, *words, f"{LOCAL}:{port}")
    texts = [f"{each['event'].removeprefix('ping.')}: {each.get('error', '')}" for each in lines]
    assert len(texts) == len(events), texts
    for text, pattern in zip(texts, events, strict=True):
        assert re.match(pattern, text), texts
    assert (counts(summary), found) == (expected, code)
    for outcome in ("lost", "wrong"):
        first = next((each["error"] for each in lines if each["event"] == f"ping.{outcome}"), None)
        assert summary[f"first_{outcome}"] == first


def test_the_summary_alone_says_what_went_wrong(capsys: Capture) -> None:
    """On its first line, which is all that a monitoring system may show. Our own end of a connection is none by the server."""
    with serving(in_turn(ending(0, answer=lambda _: b""), ending(1, answer=bytes_and(b"more")), right)) as port:
        code, out, _ = ping(capsys, "-q", "-i", "0.15", "-c", "4", f"{LOCAL}:{port}")
    lines = out.splitlines()
    reasons = "4 bytes more than were sent; the server closed the connection"
    assert re.match(rf"CRITICAL - 2 of 4 echoed, 25 % lost, 1 wrong, rtt [0-9.]+ ms: {reasons} \| rtt=", lines[0])
    assert lines[2] == "connections that the server or the network has ended: 1"
    assert code == 2


def bytes_and(more: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data + more


def test_bytes_before_any_message_are_told(capsys: Capture) -> None:
    """A service that greets is no echo service."""

    def greet(client: socket.socket) -> None:
        client.sendall(b"220 ready\r\n" * 8)
        silent(client)

    with serving(greet) as port:
        code, events, summary = told(capsys, "-c", "1", f"{LOCAL}:{port}")
    assert (events[0]["event"], events[0]["offset"], code) == ("ping.wrong", 0, 2)
    assert counts(summary) == (0, 0, 1)


def test_a_service_that_never_accepts_has_a_connection_and_no_echo(capsys: Capture) -> None:
    """The kernel has established and acknowledged: the network is right, and the program is not."""
    with echo_servers.deaf() as port:
        code, (event,), summary = told(capsys, *IMPATIENT, "-c", "1", f"{LOCAL}:{port}")
        _, out, _ = ping(capsys, *QUICK, *IMPATIENT, "-c", "1", f"{LOCAL}:{port}")
    assert (event["reason"], event["acknowledged"], summary["connect"]["count"], code) == ("timeout", True, 1, 2)
    assert "seq=1 no echo within 0.1 s; its kernel has acknowledged all bytes" in out


def test_a_service_that_does_not_read_leaves_no_room_to_send(capsys: Capture) -> None:
    """What the kernels hold is sent; what they have no room for waits."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind((LOCAL, 0))
        listener.listen()
        words = ["-c", "2", "-s", "16000000", f"{LOCAL}:{listener.getsockname()[1]}"]
        _, events, _ = told(capsys, *IMPATIENT, *words)
        _, out, _ = ping(capsys, *QUICK, *IMPATIENT, *words)
    assert [each["error"] for each in events] == ["no echo within 0.1 s", "no room to send within 0.1 s"]
    assert events[0]["acknowledged"] is False
    assert "not all bytes are acknowledged, retrans=0: look at the network" in out


def test_a_refused_connection_is_tried_again_for_each_message(capsys: Capture) -> None:
    """With one line each. The summary comes also when nothing came back."""
    code, out, _ = ping(capsys, *QUICK, "-c", "2", f"{LOCAL}:{free_port()}")
    lines = out.splitlines()
    assert [line.partition(": ")[2] for line in lines[1:3]] == ["seq=1 connection refused", "seq=2 connection refused"]
    assert lines[3] == "CRITICAL - 0 of 2 echoed, 100 % lost: connection refused | loss=100%;;;0;100 wrong=0;;;0"
    assert len(lines) == 5
    assert code == 2


def test_a_connection_that_is_not_established_in_time_is_given_up(capsys: Capture, full: str) -> None:
    """Here, the backlog of a Unix socket is full."""
    code, (event, _), summary = told(capsys, *IMPATIENT, "-c", "2", "-i", "0.02", full)
    assert (event["error"], code) == ("no connection within 0.1 s", 2)
    assert summary["connections"] == 0


@pytest.fixture
def full(tmp_path: Path) -> Any:
    """A target whose backlog is full."""
    path = str(tmp_path / "full")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        listener.listen(0)
        client.connect(path)
        yield f"unix:{path}"


def test_late_echoes_are_told_and_stay_lost(capsys: Capture) -> None:
    """Their connection stays open for them; messages that follow get another one."""
    with serving(in_turn(delayed(0.6), right)) as port:
        code, events, summary = told(capsys, "-W", "0.25", "-c", "4", "-i", "0.3", f"{LOCAL}:{port}")
    assert [each["event"] for each in events if each["seq"] == 1] == ["ping.lost", "ping.late"]
    assert next(each["time"] for each in events if each["event"] == "ping.late") > 0.5
    assert (summary["late"], summary["lost"], summary["connections"], code) == (1, 1, 2, 1)


def test_a_late_echo_that_is_wrong_is_wrong(capsys: Capture) -> None:
    """A wrong byte is worse than a lost message."""

    def answer(data: bytes) -> bytes:
        CROWD.sleep(0.2)
        return data[:5] + bytes([data[5] ^ 1]) + data[6:]

    with serving(in_turn(changed(answer), right)) as port:
        code, events, summary = told(capsys, *IMPATIENT, "-c", "4", "-i", "0.15", f"{LOCAL}:{port}")
    assert [each["event"] for each in events if each["seq"] == 1] == ["ping.lost", "ping.wrong"]
    assert (summary["wrong"], summary["sent"], code) == (1, 4, 2)


def test_bytes_that_nobody_sent_end_an_idle_connection(capsys: Capture) -> None:
    """Also after an echo that came late, whose message is wrong then."""

    def answer(data: bytes) -> bytes:
        CROWD.sleep(0.2)
        return data * 2

    with serving(in_turn(changed(answer), right)) as port:
        code, events, summary = told(capsys, *IMPATIENT, "-c", "4", "-i", "0.15", f"{LOCAL}:{port}")
    assert [each["event"] for each in events if each["seq"] == 1] == ["ping.lost", "ping.late", "ping.wrong"]
    assert (summary["wrong"], summary["sent"], code) == (1, 4, 2)


def test_sizes_take_turns_and_show_from_which_on_nothing_comes_back(capsys: Capture) -> None:
    """A large message that gets stuck does not stop the small ones: each size has its own connection."""

    def behave(client: socket.socket) -> None:
        while data := client.recv(1 << 18):
            if len(data) < 1000:
                client.sendall(data)

    with serving(behave) as port:
        words = ["-c", "6", "-s", "64,900,4000", f"{LOCAL}:{port}"]
        code, _, summary = told(capsys, *IMPATIENT, *words)
        _, out, _ = ping(capsys, *QUICK, *IMPATIENT, "-q", *words)
    assert [(row["size"], row["sent"], row["echoed"]) for row in summary["sizes"]] == [
        (64, 2, 2),
        (900, 2, 2),
        (4000, 2, 0),
    ]
    assert (summary["black_hole"], code) == (4000, 1)
    assert out.splitlines()[-1].startswith("nothing came back of 4000 bytes or more, but of less:")
    assert re.search(r"^ 4000 +2 +0 +2 +0 +-$", out, re.MULTILINE)


def test_reconnect_tries_each_address_by_itself(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the one that fails is not hidden by the next. The summary has a row for each."""
    port = free_port()
    with (
        serving(right, socket.create_server((LOCAL, port))),
        serving(right, socket.create_server(("127.0.0.2", port))),
    ):
        hosts = [LOCAL, "127.0.0.2", "127.0.0.3"]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
        words = ["-c", "6", "--reconnect", f"several.example:{port}"]
        code, events, summary = told(capsys, *words)
        _, out, _ = ping(capsys, *QUICK, "-q", *words)
        _, _, together = told(capsys, "-c", "1", f"several.example:{port}")
    rows = {row["server"]["address"]: row["echoed"] for row in summary["servers"]}
    assert rows == dict(zip(hosts, (2, 2, 0), strict=True))
    events.sort(key=lambda each: each["seq"])
    assert [each["event"] for each in events] == ["ping.echo", "ping.echo", "ping.lost"] * 2
    assert all("connect" in each for each in events if each["event"] == "ping.echo")
    assert (summary["connections"], summary["connect"]["count"], code) == (4, 4, 1)
    assert re.search(rf"^127.0.0.3:{port} +2 +0 +2 +0 +-$", out, re.MULTILINE)
    assert [row["server"]["address"] for row in together["servers"]] == [LOCAL]


def test_an_address_that_does_not_answer_is_passed_over(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 8305: the next one is tried at once after an error. The line says which answered."""
    monkeypatch.setattr("echod.client.opening.ATTEMPT_DELAY", 60)
    with serving(right) as port:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.9", LOCAL)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
        code, (event,), _ = told(capsys, "-c", "1", f"several.example:{port}")
    assert (event["server"]["address"], code) == (LOCAL, 0)


def test_a_deadline_ends_it(capsys: Capture, clock: IdleClock) -> None:
    """If nothing came back, all is lost; else a message that was just sent does not count."""
    with serving(silent) as port:
        began = clock.now
        code, events, summary = told(capsys, "-w", "0.1", "-W", "5", "-i", "0.04", f"{LOCAL}:{port}")
    assert 0.09 < clock.now - began < 2
    assert (summary["lost"], code) == (len(events), 2)
    assert 1 <= len(events) <= 3
    with serving(in_turn(delayed(0.1))) as port:
        code, events, summary = told(capsys, "-w", "0.4", "-W", "5", "-i", "0.35", f"{LOCAL}:{port}")
    assert (summary["sent"], summary["echoed"], code) == (1, 1, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_summary(capsys: Capture, number: signal.Signals) -> None:
    """And QUIT shows how it goes, on standard error. Handlers are put back."""
    before = signal.getsignal(number)
    signals = {2: signal.SIGQUIT, 3: number}
    asked = 0

    def answer(data: bytes) -> bytes:
        nonlocal asked
        asked += 1
        if asked in signals:
            os.kill(os.getpid(), signals[asked])
        return data

    with serving(changed(answer)) as port:
        code, out, err = ping(capsys, "-i", "0.05", "-q", f"{LOCAL}:{port}")
    assert code == 0
    assert re.match(r"OK - ([23]) of \1 echoed", out)
    assert re.fullmatch(r"[12]/[12] echoed, 0 % lost, min/avg/max = [\d./]+ ms\n", err)
    assert signal.getsignal(number) is before


def test_a_second_signal_is_not_caught(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the first one did not end it, such as in a terminal that takes no output, the next one ends the process."""
    handlers = []

    def stuck(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        handlers.append(signal.getsignal(signal.SIGINT))

    monkeypatch.setattr("echod.client.ping.Ping._send", stuck)
    with serving(right) as port:
        ping(capsys, "-q", f"{LOCAL}:{port}")
    assert handlers == [signal.SIG_DFL]


def test_interim_without_an_echo(capsys: Capture) -> None:
    def ask(client: socket.socket) -> None:
        client.recv(100)
        os.kill(os.getpid(), signal.SIGQUIT)
        silent(client)

    with serving(ask) as port:
        _, _, err = ping(capsys, *QUICK, *IMPATIENT, "-c", "1", "-q", f"{LOCAL}:{port}")
    assert err == "0/0 echoed, 0 % lost, no echo yet\n"


@pytest.mark.parametrize(
    ("limits", "code", "text"),
    [
        (["--warn", "5,20%", "--crit", "9s,50%"], 0, "OK - "),
        (
            ["--warn", "0.001ms,5%", "--crit", "9,100%"],
            1,
            "WARNING - .* \\(rtt above --warn\\) .*rtt=.*s;0.000001;9;0 loss=0%;5;100;0;100",
        ),
        (["--warn", "0,0%", "--crit", "0.000001,50%"], 2, "CRITICAL - .* \\(rtt above --crit\\) .* loss=0%;0;50;0;100"),
    ],
)
def test_limits_decide_the_state(capsys: Capture, limits: list[str], code: int, text: str) -> None:
    """The average round trip, and the part of lost messages. Performance data has the limits too."""
    with serving(right) as port:
        found, out, _ = ping(capsys, *QUICK, "-q", "-c", "2", *limits, f"{LOCAL}:{port}")
    assert found == code
    assert re.match(text, out)


@pytest.mark.parametrize(("limit", "code"), [("--warn", 1), ("--crit", 2)])
def test_a_loss_beyond_its_limit(capsys: Capture, limit: str, code: int) -> None:
    """Some lost is a warning anyway."""
    with serving(in_turn(ending(1, answer=lambda _: b""), right)) as port:
        found, _, summary = told(capsys, "-c", "4", limit, "5,20%", f"{LOCAL}:{port}")
    assert (found, summary["loss"], summary["limit"]) == (code, 25, f"loss above {limit}")


def test_messages_that_were_due_while_the_process_did_not_run_are_left_out() -> None:
    """Otherwise a laptop that wakes up sends hundreds at once. A short delay is made up for: the schedule has no drift."""
    assert _following(3, 3.0, 1.0) == 4
    assert _following(3, 3.9, 1.0) == 4
    assert _following(3, 100.5, 1.0) == 101
    assert _following(0, 0.9, 0.01) == 1
    assert _following(1, 350.0, 300.0) == 2


# Ways to a service


@pytest.mark.parametrize("name", ["/echo.sock", "@echod-test-ping"])
def test_unix_sockets(capsys: Capture, tmp_path: Path, name: str) -> None:
    """At a path, or abstract; the kernel has no times for them."""
    path = f"{tmp_path}{name}" if name.startswith("/") else name
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path.replace("@", "\0"))
    listener.listen()
    with serving(right, listener):
        code, out, _ = ping(capsys, *QUICK, "-c", "1", f"unix:{path}")
        _, _, summary = told(capsys, "-c", "1", "--proxy", "v1", f"unix:{path}")
    assert code == 0
    assert f"56 bytes from {path}: seq=1 time=" in out
    assert (summary["tcp"], summary["servers"][0]["server"]) == (None, {"path": path})


@pytest.mark.parametrize(
    ("version", "family", "host", "size"),
    [("v1", socket.AF_INET, LOCAL, None), ("v2", socket.AF_INET, LOCAL, 28), ("v2", socket.AF_INET6, "::1", 52)],
)
def test_a_proxy_header_comes_first(
    capsys: Capture, version: str, family: socket.AddressFamily, host: str, size: int | None
) -> None:
    """It names the two ends of the connection."""
    headers = []

    def behave(client: socket.socket) -> None:
        header = b""
        while not header.endswith(b"\r\n") if size is None else len(header) < size:
            header += client.recv(1)
        headers.append((header, client.getpeername()[1]))
        right(client)

    with serving(behave, socket.create_server((host, 0), family=family)) as port:
        code, _, _ = told(
            capsys, "-c", "1", "--proxy", version, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        )
    assert code == 0
    ((header, client_port),) = headers
    if version == "v1":
        assert header == f"PROXY TCP4 {host} {host} {client_port} {port}\r\n".encode()
    else:
        address = socket.inet_pton(family, host)
        assert header[:12] == b"\r\n\r\n\0\r\nQUIT\n"
        assert header[12:16] == bytes([0x21, 0x11 if family == socket.AF_INET else 0x21, 0, size - 16 if size else 0])
        assert header[16:] == address * 2 + client_port.to_bytes(2) + port.to_bytes(2)


def test_large_messages_come_back_whole(capsys: Capture) -> None:
    """More than the kernel takes at once."""
    with serving(right) as port:
        code, _, summary = told(capsys, "-W", "5", "-c", "1", "-s", "9000000", f"{LOCAL}:{port}")
    assert (code, summary["echoed"]) == (0, 1)


def test_a_unix_socket_that_is_not_there(capsys: Capture, tmp_path: Path) -> None:
    """The error of the kernel, for each message."""
    code, events, _ = told(capsys, "-c", "2", f"unix:{tmp_path}/none")
    assert ([each["error"] for each in events], code) == (["no such file or directory"] * 2, 2)
