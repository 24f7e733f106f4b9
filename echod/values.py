"""The forms in which people write values: durations, counts, addresses, networks, rates.

Each parser takes what a source gave (any TOML value, or the text of a flag or variable) and returns what the program
uses; it raises `ValueError` with a message that begins with "must" and names a good example. What is of another type
passes through, for pydantic to judge. Knows nothing of which setting has which form.
"""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Annotated

from pydantic import BeforeValidator

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d)\s*)+", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_MULTIPLES = {"": 1, "k": 10**3, "M": 10**6, "Ki": 2**10, "Mi": 2**20}
_COUNT = re.compile(r"(-?\d+(?:_\d+)*)(k|M|Ki|Mi|)", re.ASCII)
_RATE = re.compile(r"(\d+(?:\.\d+)?)/(s|m|h)", re.ASCII)
_ZONE = re.compile(r"[!-~]{0,15}")
"""After "%" in a link-local address, the name of an interface (netdevice(7), IFNAMSIZ)."""
LONGEST = 366 * 86400.0
"""Seconds. What is above is a slip of the keyboard, and timers take no more."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def shown(value: object) -> str:
    """Return the value as TOML writes it, cut to a length that fits a message."""
    if isinstance(value, bool | str):
        text = printable(json.dumps(value, ensure_ascii=False))
    elif isinstance(value, int):
        text = str(value) if abs(value) < 10**18 else hex(value)  # Python does not write thousands of digits
    elif isinstance(value, list | tuple):
        text = "a list" if value else "[]"
    elif isinstance(value, dict):
        text = "a table"
    else:  # a float, or one of TOML's dates and times
        text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - a line's worth


def printable(text: str) -> str:
    """Return the text with escapes for what would break a line, or what a terminal would obey or refuse."""
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"  # noqa: PLR2004 - four digits' worth


def duration(value: object) -> float | None:
    """Seconds from "500ms", "30s", "1h30m"; `None` from "off"."""
    if value == "off":
        return None
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise ValueError(
            f'must be a duration with its unit, e.g. "500ms", "30s", "1h30m", or "off"; got {shown(value)}'
        )
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(value))
    if seconds > LONGEST:
        raise ValueError(f"must be at most 366 days, got {shown(value)}")
    return seconds


def timeout(value: object) -> float | None:
    """Return `duration(value)`, but never 0, which would end every connection at once."""
    seconds = duration(value)
    if seconds == 0:
        raise ValueError(f'must be more than 0, or "off"; got {shown(value)}')
    return seconds


def count(value: object) -> object:
    """Return a whole number from a number, or from "10k", "64Ki", "10_000"."""
    if isinstance(value, str):
        found = _COUNT.fullmatch(value)
        if found is None or len(value) > 20:  # noqa: PLR2004 - more digits than any count has
            raise ValueError(f'must be a whole number, e.g. 1024 or "64Ki", got {shown(value)}')
        return int(found[1]) * _MULTIPLES[found[2]]
    return value


def listed(value: object) -> tuple[str, ...]:
    """Return a tuple from a list of strings or from one string."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise ValueError(f"must be a string or a list of strings, got {shown(value)}")


def hosts(value: object) -> tuple[str, ...]:
    """Return a tuple of numeric addresses, or `("*",)`. Names are not resolved: a resolver can hang or lie."""
    names = listed(value)
    if not names:
        raise ValueError('must name an address, or "*" for all')
    if "*" in names and len(names) > 1:
        raise ValueError('must be "*" alone, or addresses: "*" already means every address')
    addresses = set()
    for name in names:
        try:
            address = name if name == "*" else ipaddress.ip_address(name)
            if not _ZONE.fullmatch(name.partition("%")[2]):
                raise ValueError  # noqa: TRY301 - it is handled just as what the library finds
        except ValueError:
            raise ValueError(f'must be "*" or IP addresses, e.g. "127.0.0.1" or "::1"; got {shown(name)}') from None
        if address in addresses:
            raise ValueError(f"must name each address once, got {shown(name)} twice")
        addresses.add(address)
    return names


def networks(value: object) -> tuple[Network, ...]:
    """Return the networks; an address alone is a network of one."""
    return tuple(_network(name) for name in listed(value))


def _network(name: str) -> Network:
    try:
        return ipaddress.ip_network(name)
    except ValueError:
        pass
    try:
        network = ipaddress.ip_network(name, strict=False)
    except ValueError:
        raise ValueError(f'must be networks, e.g. "10.0.0.0/8" or "2001:db8::/32"; got {shown(name)}') from None
    raise ValueError(f'must be networks; {shown(name)} is an address within "{network}"')


def rate(value: object) -> float | None:
    """Return events per second from "500/s", "30/m"; `None` from "off"."""
    if value == "off":
        return None
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    if found is None or float(found[1]) == 0:
        raise ValueError(f'must be a rate above 0, e.g. "500/s" or "30/m", or "off"; got {shown(value)}')
    return float(found[1]) / _SECONDS[found[2]]


Duration = Annotated[float | None, BeforeValidator(duration)]
Timeout = Annotated[float | None, BeforeValidator(timeout)]
Count = Annotated[int, BeforeValidator(count)]
Hosts = Annotated[tuple[str, ...], BeforeValidator(hosts)]
Networks = Annotated[tuple[Network, ...], BeforeValidator(networks)]
Rate = Annotated[float | None, BeforeValidator(rate)]
