"""The status page: who gets it and who gets text, and what it may do in a browser. How it looks there, a Chromium shows."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
import uvloop

from echod import screen
from echod.admin import page, status
from echod.admin.http import Request, Response

if TYPE_CHECKING:
    from tests.support.in_process import Inside

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


def ask(daemon: Inside, accept: str | None) -> Response:
    headers = {} if accept is None else {"accept": accept}
    return uvloop.run(daemon.routes.remote(Request("GET", "/", headers)))


def whole(response: Response) -> bytes:
    assert isinstance(response.body, bytes)
    return response.body


@pytest.mark.parametrize("accept", [BROWSER, "text/html", "text/html;q=0.5", "TEXT/HTML, text/plain;q=0.9"])
def test_a_browser_gets_html(daemon: Inside, accept: str) -> None:
    answer = ask(daemon, accept)
    assert (answer.status, answer.content_type) == (200, "text/html; charset=utf-8")
    assert whole(answer).startswith(b"<!DOCTYPE html>")
    assert dict(answer.headers)["vary"] == "Accept"


@pytest.mark.parametrize(
    "accept", [None, "", "*/*", "text/*", "text/plain", "text/html;q=0", "text/html, text/plain", "x"]
)
def test_a_terminal_gets_what_echod_status_prints(
    daemon: Inside, monkeypatch: pytest.MonkeyPatch, accept: str | None
) -> None:
    """curl accepts anything, and shows HTML as it is. A text browser that names both runs no script."""
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    answer = ask(daemon, accept)
    assert (answer.status, answer.content_type) == (200, "text/plain; charset=utf-8")
    assert dict(answer.headers) == {"vary": "Accept"}
    expected = screen.status(uvloop.run(status.status(daemon.running, daemon.meter)))
    assert without_ages(whole(answer).decode()) == without_ages(expected)


def without_ages(text: str) -> str:
    return re.sub(r"loaded .* ago", "loaded", text)


def test_the_page_is_one_small_file() -> None:
    """Which a slow network carries in the first round trip or two."""
    assert len(whole(page.load())) < 15_000


def test_the_page_may_run_only_its_own_script_and_ask_only_its_daemon() -> None:
    """By the hashes of what is in it (CSP 3, 8.3). Nothing else is allowed, from anywhere."""
    answer = page.load()
    headers = dict(answer.headers)
    policy = dict(each.split(" ", 1) for each in headers["content-security-policy"].split("; "))
    body = whole(answer)
    for name in ("script", "style"):
        (text,) = re.findall(f"<{name}>(.*?)</{name}>".encode(), body, re.DOTALL)
        assert policy.pop(f"{name}-src") == f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
    assert policy.pop("connect-src") == "'self'"
    assert policy.pop("img-src") == "data:"
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) == {"'none'"}
    assert set(policy) == {"base-uri", "form-action", "frame-ancestors"}
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_page_loads_nothing_and_makes_no_html_of_what_it_is_told() -> None:
    """The only address in it is `status`, which is relative, so that it works behind a path of a reverse proxy."""
    text = whole(page.load()).decode()
    links: list[str | None] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 - as it is called
            links.extend(
                value for name, value in attrs if name in ("src", "href", "action", "style") or name.startswith("on")
            )

    Links().feed(text)
    assert links == ["data:,"]
    assert re.findall(r"fetch\(([^,)]*)", text) == ['"status"']
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)
