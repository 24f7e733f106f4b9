"""`make screenshots`: draws the status page, wide and dark, and light on a phone, into docs/.

What it shows is a daemon with clients that echo, some of which are rejected, for a little over a minute.
"""

from __future__ import annotations

import contextlib
import math
import sys
import tempfile
import time
from pathlib import Path

from tests.support.browser import CHROMIUM, Browser
from tests.support.harness import LOCAL, Echod, read_all, read_exactly, reserved_port

DOCS = Path(__file__).parents[2] / "docs"
SECONDS = 64
"""How long the clients go on: the curves show a minute."""
CONFIG = "[pool]\nsize = 20\n[access]\nper_source = 12\n"

USUAL_PATH = """
    window.fetch = () => new Promise(() => {});
    document.querySelector("#reload td").textContent = "/etc/echod/echod.toml";
"""
"""Shows it in place of a temporary one."""


def draw() -> None:
    """Write the pictures."""
    with (
        tempfile.TemporaryDirectory() as directory,
        reserved_port() as port,
        Browser() as browser,
        Browser() as other,  # because only one page of a browser is visible, and the page does not ask while it is not
        Echod(CONFIG, directory=Path(directory), flags=["--admin.http", f"{LOCAL}:{port}"]) as daemon,
        contextlib.ExitStack() as clients,
    ):
        url = f"http://{LOCAL}:{port}/"
        wide = browser.open(url, width=840, height=900, prefers_color_scheme="dark")
        narrow = other.open(url, width=360, height=740, prefers_color_scheme="light")
        lasting = [
            clients.enter_context(daemon.connect(source=source))
            for source, count in (("127.0.0.7", 12), ("127.0.0.9", 3))
            for _ in range(count)
        ]
        begun = time.monotonic()
        while (elapsed := time.monotonic() - begun) < SECONDS:
            data = bytes(int(20_000 * (1.2 + math.sin(elapsed / 4))))
            for sock in lasting:
                sock.sendall(data)
                read_exactly(sock, len(data))
            for _ in range(int(3 * (1.5 + math.sin(elapsed / 7)))):
                daemon.echo(b"hello")
            if int(elapsed) % 30 > 25:
                with daemon.connect(source="127.0.0.7") as rejected:
                    read_all(rejected)
            time.sleep(0.05)
        for tab, name in ((wide, "status-page"), (narrow, "status-page-phone")):
            tab.evaluate(USUAL_PATH)
            tab.screenshot(DOCS / f"{name}.png")


if __name__ == "__main__":
    if not CHROMIUM:
        sys.exit("no chromium; on Debian: apt install chromium")
    draw()
