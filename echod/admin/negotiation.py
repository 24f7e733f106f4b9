"""Which form of an answer the client wants: the Accept header of RFC 9110, 12.5.1."""

from __future__ import annotations

import re

NAMED = 2
"""How precise a media type is without a wildcard."""
_QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def wanted(accept: str, kind: str, version: str = "") -> tuple[float, int]:
    """Return how much this form is wanted, from 0 to 1, and how precisely it is meant: the most precise range decides.

    Of the parameters, `version` counts.
    """
    ranges = ("*/*", f"{kind.partition('/')[0]}/*", kind)
    found = [(-1, 0.0)]
    for item in accept.lower().split(","):
        name, *parameters = (part.strip().replace('"', "") for part in item.split(";"))
        versions = [each for each in parameters if each.startswith("version=")]
        quality = next((each[2:] for each in parameters if each.startswith("q=")), "1")
        if name in ranges and versions in ([], [version]) and _QUALITY.fullmatch(quality):
            found.append((ranges.index(name) + len(versions), float(quality)))
    precision, most = max(found)
    return most, precision
