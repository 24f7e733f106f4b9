"""The status page in a real Chromium: it shows what happens as it happens, to everybody, on any screen."""

from __future__ import annotations

import contextlib
import json
import socket
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import TYPE_CHECKING

import pytest

from tests.support.browser import CHROMIUM, Browser
from tests.support.certificates import pem_file
from tests.support.harness import LOCAL, Echod, command, read_all, read_exactly, reserved_port, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.browser import Tab

    Daemon = Callable[..., Echod]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium; on Debian: apt install chromium"),
]

AXE = resources.files("axe_core_python").joinpath("axe.min.js").read_text()
"""Finds what keeps people from using a page (https://github.com/dequelabs/axe-core)."""
POOL = 5


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture
def port() -> Iterator[int]:
    with reserved_port() as port:
        yield port


@pytest.fixture
def start(echod: Daemon, tmp_path: Path, port: int) -> Callable[[], Echod]:
    """Return what starts a daemon with a small pool, which serves the page on `port`."""

    def start(more: str = "") -> Echod:
        flags = ["--admin.socket", str(tmp_path / "admin.sock"), "--admin.http", f"{LOCAL}:{port}"]
        return echod(f"[pool]\nsize = {POOL}\n{more}", flags=flags)

    return start


@contextlib.contextmanager
def full(daemon: Echod) -> Iterator[None]:
    """Fill the pool."""
    with contextlib.ExitStack() as stack:
        for _ in range(POOL):
            sock = stack.enter_context(daemon.connect(source="127.0.0.9"))
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"
        yield


def is_rejected(daemon: Echod) -> bool:
    with daemon.connect(source="127.0.0.7") as client:
        return read_all(client) == b""


def opened(browser: Browser, port: int, **how: object) -> Tab:
    tab = browser.open(f"http://{LOCAL}:{port}/", **how)  # type: ignore[arg-type]
    tab.wait_for_text("running", "#state")
    return tab


def test_it_shows_what_happens_as_it_happens(
    browser: Browser, start: Callable[[], Echod], port: int, tmp_path: Path
) -> None:
    """A full pool, a storm, a refused reload, a lame duck and a restart, without being loaded again."""
    with start() as daemon:
        tab = opened(browser, port)
        tab.wait_for_text(f"0 of {POOL} in use", "#pool")
        tab.wait_for_text("rtt\tnot measured yet", "#health")
        tab.evaluate("window.stays = document.querySelector('#pool')")

        with full(daemon):
            tab.wait_for_text(f"! {POOL} of {POOL} in use, 100 %", "#pool")
            tab.wait_for_text("running, not ready: pool full", "#state")
            tab.wait_for_text("127.0.0.9", "#sources")
            assert tab.evaluate("document.querySelector('#gauge').ariaValueNow") == str(POOL)
            assert all(is_rejected(daemon) for _ in range(200))
            tab.wait_for_text("rejects clients", "#events")
            tab.wait_for_text("pool_full\t200", "#rejected")
            tab.wait_for_text("127.0.0.7:", "#last")
            peak = "document.querySelectorAll('#rates path')[1].getAttribute('d').includes(' 1.0')"
            until(lambda: is_rejected(daemon) and tab.evaluate(peak), what="a curve", interval=0.1)
        tab.wait_for_text("rejects nobody any more", "#events")
        tab.wait_for_text(f"eof\t{POOL}", "#closed")
        tab.wait_for_text("rtt\tp50 ", "#health")
        tab.wait_for_text("sent again\t0 segments", "#health")

        assert daemon.reload("[pool]\nsize = '<img src=x onerror=alert(1)>'\n")["event"] == "config.rejected"
        tab.wait_for_text("a reload was refused", "#events")
        tab.wait_for_text("! refused", "#reload")
        tab.wait_for_text("<img src=x", "#reload")  # as text
        assert daemon.reload(f"[pool]\nsize = {POOL}\n[timeouts]\ndrain = '9s'\n")["event"] == "config.reloaded"
        tab.wait_for_text("reloaded: timeouts.drain", "#events")
        tab.wait_for_text("changed\ttimeouts.drain", "#reload")

        socket = ["--admin.socket", str(tmp_path / "admin.sock")]
        assert command("lame-duck", *socket).returncode == 0
        tab.wait_for_text("lame duck", "#state")
        tab.wait_for_text("not ready for", "#about")
        tab.wait("document.title === '! echod: lame duck'")
        assert command("lame-duck", "--off", *socket).returncode == 0
        tab.wait("document.title === 'echod: running'")
        daemon.file.write_text(f"[pool]\nsize = {POOL}\n")

    tab.wait_for_text("the daemon does not answer", "#state")
    tab.wait_for_text("what is below is of", "#about")
    with start() as daemon:
        tab.wait_for_text("running", "#state")
        tab.wait_for_text(f"restarted: pid {daemon.process.pid}", "#events")
        assert tab.evaluate("window.stays === document.querySelector('#pool')")
        assert tab.happened("Runtime.exceptionThrown") == []
        asked = {each["request"]["url"] for each in tab.happened("Network.requestWillBeSent")}
        assert asked == {f"http://{LOCAL}:{port}/", f"http://{LOCAL}:{port}/status"}
        entries = [each["entry"]["text"] for each in tab.happened("Log.entryAdded")]
        assert all("ERR_CONNECTION_REFUSED" in each for each in entries), entries


def test_a_line_stays_as_it_is_while_its_text_does(browser: Browser, start: Callable[[], Echod], port: int) -> None:
    """Nothing flickers, a selection stays, and a screen reader keeps its place."""
    with start():
        tab = opened(browser, port)
        tab.evaluate("""
            window.changes = [];
            new MutationObserver(all => changes.push(...all.map(each => each.target.id || each.target.nodeName)))
                .observe(document.querySelector("#listeners"), {childList: true, subtree: true, characterData: true});
            window.begun = document.querySelector("#about").textContent;
        """)
        tab.wait("document.querySelector('#about').textContent !== begun")
        assert tab.evaluate("changes") == []


def test_it_does_not_ask_while_nobody_sees_it(browser: Browser, start: Callable[[], Echod], port: int) -> None:
    """A tab that is forgotten in the background costs the daemon nothing."""
    with start():
        tab = opened(browser, port)
        asked = tab.evaluate("""(async () => {
            let asked = 0;
            window.fetch = () => { asked++; return Promise.reject(new Error()); };
            Object.defineProperty(document, "hidden", {get: () => true, configurable: true});
            await poll();
            const whileHidden = asked;
            delete document.hidden;
            await poll();
            return [whileHidden, asked];
        })()""")
        assert asked[0] == 0
        assert asked[1] > 0


@pytest.mark.parametrize(("scheme", "width"), [("light", 320), ("dark", 1280)])
def test_everybody_can_read_it_on_any_screen(
    browser: Browser, start: Callable[[], Echod], port: int, scheme: str, width: int
) -> None:
    """axe finds nothing, with a full pool, and without a daemon; and nothing has to be scrolled sideways."""
    with start() as daemon:
        tab = opened(browser, port, width=width, prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
        with full(daemon):
            with daemon.connect() as rejected:
                assert read_all(rejected) == b""
            daemon.reload("[pool]\nsize = 'x'\n")
            tab.wait_for_text("pool full", "#state")
            tab.wait_for_text("! error", "#reload")
            examine(tab, width)
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, background.strip("rgb()").split(","))) < 3 * 128) == (scheme == "dark")
        assert tab.evaluate("getComputedStyle(document.querySelector('#fill')).transitionDuration") == "0s"
        daemon.file.write_text("")
    tab.wait_for_text("does not answer", "#state")
    examine(tab, width)


def examine(tab: Tab, width: int) -> None:
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.evaluate(f"{AXE};0")
    found = tab.evaluate("axe.run()")
    assert len(found["passes"]) > 20
    assert found["violations"] == [], json.dumps(found["violations"], indent=1)


def test_parts_that_a_daemon_need_not_have_are_shown_once_it_has_them(
    browser: Browser, start: Callable[..., Echod], port: int
) -> None:
    """TLS, with an exclamation mark because its certificate soon expires; and UDP."""
    soon = pem_file("localhost", not_after=datetime.now(UTC) + timedelta(days=3, hours=1))
    with start(f"[tls]\nport = 0\ncertificate = '{soon}'\n[udp]\nport = 0") as daemon:
        tab = opened(browser, port)
        url = daemon.events("listener.started")[-1]["listener"]
        assert url.startswith("udp://")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"x" * 1234, (LOCAL, int(url.rpartition(":")[2])))
        tab.wait_for_text("echoed\t1", "#udp")
        assert tab.evaluate("document.getElementById('udp').innerText").split("\n")[1:] == [
            "received\t1.2 kB",
            "sent\t1.2 kB",
        ]
        certificate, subject, valid = tab.evaluate("document.getElementById('tls').innerText").split("\n")
        assert certificate == f"certificate\t{soon}"
        assert subject.startswith("subject\tCN=localhost")
        assert valid.startswith("! valid until\t2")
        assert "Z, for 3d 0h" in valid
        # Each with one call, as the page asks the daemon again soon.
        text = "document.getElementById('tls').innerText"
        assert tab.evaluate(f"show({{...last, tls: {{...last.tls, expires_in: -1}}}}), {text}").endswith("Z, expired")
        assert "! valid from\t2" in tab.evaluate(f"show({{...last, tls: {{...last.tls, valid_in: 3600}}}}), {text}")
        daemon.reload(f"[pool]\nsize = {POOL}\n")
        tab.wait("document.getElementById('tls').closest('section').hidden")
        assert tab.evaluate("show({...last, udp: null}), document.getElementById('udp').closest('section').hidden")
