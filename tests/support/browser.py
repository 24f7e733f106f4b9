"""A real Chromium without a window, driven over a pair of pipes by the DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/ names the methods. A message is JSON that ends in NUL.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any, Self

from tests.support.harness import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path

CHROMIUM = shutil.which("chromium")
# No sandbox, because root may not use it. The pages that are opened here are our own.
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-extensions",
]


class Browser:
    """Ends, with all of its processes, at the end of the block."""

    def __enter__(self) -> Self:
        assert CHROMIUM
        self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        their_input, self._output = os.pipe()
        self._input, their_output = os.pipe()
        # Chromium reads descriptor 3 and writes descriptor 4.
        redirect = f'exec "$@" 3</proc/self/fd/{their_input} 4>/proc/self/fd/{their_output}'
        flags = [*_FLAGS, f"--user-data-dir={self._home.name}", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", redirect, "sh", CHROMIUM, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(their_input, their_output),
        )
        os.close(their_input)
        os.close(their_output)
        self._unread = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._output)  # at which it ends
        try:
            self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._input)
        self._home.cleanup()

    def call(self, method: str, *, session: str | None = None, **params: Any) -> Any:
        """Return the result of a method. What happens meanwhile is added to `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._output, data) :]
        deadline = time.monotonic() + 3 * DEADLINE
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._input], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "Chromium does not answer"
            data = os.read(self._input, 1 << 20)
            assert data, "Chromium has ended"
            self._unread += data
        message, _, self._unread = self._unread.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def open(self, url: str, *, width: int = 1000, height: int = 1100, **media: str) -> Tab:
        """Open a page in a window of this size, in CSS pixels; `media` are media features, with - written as _."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        tab.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        tab.call("Emulation.setEmulatedMedia", features=features)
        tab.call("Page.navigate", url=url)
        return tab


class Tab:
    """An open page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **params: Any) -> Any:
        """Return the result of a method about this page."""
        return self._browser.call(method, session=self._session, **params)

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression, or what its promise becomes. What the page's policy forbids is not in the way."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + DEADLINE
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, (
                f"{condition}; the page has:\n{self.evaluate('document.body.innerText')}"
            )
            time.sleep(0.1)

    def wait_for_text(self, text: str, within: str = "body") -> None:
        """Wait until an element shows this text."""
        self.wait(f"document.querySelector({json.dumps(within)})?.innerText.includes({json.dumps(text)})")

    def happened(self, method: str) -> list[dict[str, Any]]:
        """Return the parameters of the events of this kind so far."""
        return [
            each["params"]
            for each in self._browser.events
            if each.get("sessionId") == self._session and each["method"] == method
        ]

    def screenshot(self, file: Path) -> None:
        """Write the whole page as PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(answer["data"]))
