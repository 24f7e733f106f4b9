"""The status page `GET /`: `page.html` for a browser, and the screen of `echod status` for a terminal.

The page asks for `/status` each second, and shows what it says. The browser may load and run nothing else: the
Content-Security-Policy names the page's own script and style by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Final

from echod.admin.http import Response
from echod.admin.negotiation import wanted

VARY: Final = ("vary", "Accept")
_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


def load() -> Response:
    """Return the page as an answer, with its headers."""
    body = Path(__file__).with_name("page.html").read_bytes()
    policy = [
        "default-src 'none'",
        "connect-src 'self'",
        "img-src data:",
    ]  # the icon is empty, so that nobody asks for one
    policy += ["base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]
    for name, text in _INLINE.findall(body):
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
        policy.append(f"{name.decode()}-src 'sha256-{digest}'")
    headers = (
        VARY,
        ("content-security-policy", "; ".join(policy)),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
    )
    return Response(200, body, "text/html; charset=utf-8", headers)


def is_wanted(accept: str) -> bool:
    """Say whether a client asks for HTML rather than for text. curl takes anything (`*/*`), and gets text."""
    html = wanted(accept, "text/html")
    return html[0] > 0 and html > wanted(accept, "text/plain")
