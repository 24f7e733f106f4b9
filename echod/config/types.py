"""The forms in which people write values: durations, counts, addresses, networks, rates.

Each form is a type for a setting, made of a parser and its inverse. The parser takes what a layer gives: any TOML value,
or the text of a flag or a variable. It returns what the program uses, or raises `ValueError` with a message that begins
with "must" and gives an example. A value of another type passes through and is refused by pydantic.
"""

from __future__ import annotations

import ipaddress
import re
from decimal import Decimal
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

from echod.networks import Network
from echod.text import shown

_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DECIMAL = r"[0-9]{1,20}(?:\.[0-9]{1,40})?"
_DURATION = re.compile(rf"(?:{_DECIMAL}(?:ms|s|m|h|d) *)+")
_DURATION_PART = re.compile(rf"({_DECIMAL})(ms|s|m|h|d)")
_MULTIPLES = {"": 1, "k": 10**3, "M": 10**6, "Ki": 2**10, "Mi": 2**20}
_COUNT = re.compile(r"(-?[0-9](?:_?[0-9]){0,19})(k|M|Ki|Mi|)")
_RATE = re.compile(rf"({_DECIMAL})/(s|m|h)")
_MODE = re.compile(r"0?[0-7]{3}")
_LISTEN_PATH = "[/@].+"
_HTTP_ADDRESS = re.compile(r"(?:\*|\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")
_LONGEST_NAME = 253  # characters (RFC 1035, 2.3.4, without the length of the first label and the root)
_ZONE = re.compile(r"[!-~]{0,15}")
"""The interface after the "%" of a link-local address. Its name has at most 15 bytes (netdevice(7), IFNAMSIZ)."""
LONGEST = 366 * 86400.0
"""Seconds. A longer duration is a typing error."""
FASTEST = 1e9
"""Per second. A higher rate limits nothing."""
_MAPPED_PREFIX = 96  # bits before the IPv4 address in an IPv4-mapped one (RFC 4291, 2.5.5.2)
SMALLEST_BUFFER, LARGEST_BUFFER = 4 << 10, 1 << 30
"""Bytes. Below, TCP can hardly move; above, the kernel can't count it."""
MAX_PORT = 65535
MAX_HOSTS = 16
"""A reload that moves the listeners has twice as many open at one time; `limits.RESERVE` includes them."""
_LONGEST_PATH = 107  # bytes: sun_path of unix(7) without its NUL


def duration(value: object) -> float | None:
    """Return seconds from "500ms", "30s", "1h30m"; `None` from "off"."""
    if value == "off":
        return None
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise ValueError(
            f'must be a duration with its unit, e.g. "500ms", "30s", "1h30m", or "off"; got {shown(value)}'
        )
    parts = _DURATION_PART.findall(value)
    seconds = float(sum(Decimal(number) * _MILLISECONDS[unit] for number, unit in parts) / 1000)
    if seconds > LONGEST:
        raise ValueError(f"must be at most 366 days, got {shown(value)}")
    return seconds


def timeout(value: object) -> float | None:
    """Return `duration(value)`. Raises `ValueError` for 0, which would close every connection at once."""
    seconds = duration(value)
    if seconds == 0:
        raise ValueError(f'must be more than 0, or "off"; got {shown(value)}')
    return seconds


def count(value: object) -> object:
    """Return a whole number from "10k", "64Ki" or "10_000"; a number as it is."""
    if isinstance(value, str):
        found = _COUNT.fullmatch(value)
        if found is None:
            raise ValueError(f'must be a whole number, e.g. 1024 or "64Ki", got {shown(value)}')
        return int(found[1]) * _MULTIPLES[found[2]]
    return value


def port(value: object) -> object:
    """Return a port; `None` from "off"."""
    if value == "off":
        return None
    try:
        number = count(value)
    except ValueError:
        raise ValueError(f'must be a port, e.g. 7007, or "off"; got {shown(value)}') from None
    if isinstance(number, int) and not 0 <= number <= MAX_PORT:
        raise ValueError(f'must be a port from 0 to {MAX_PORT}, or "off"; got {shown(value)}')
    return number


def buffer(value: object) -> object:
    """Return bytes from "32Ki"; `None` from "auto"."""
    if value == "auto":
        return None
    try:
        size = count(value)
    except ValueError:
        raise ValueError(f'must be a size, e.g. "32Ki", or "auto"; got {shown(value)}') from None
    if isinstance(size, int) and not SMALLEST_BUFFER <= size <= LARGEST_BUFFER:
        raise ValueError(f'must be from "4Ki" to "1024Mi", or "auto"; got {shown(value)}')
    return size


def listed(value: object) -> tuple[object, ...]:
    """Return a tuple from a list, or from one string."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple):
        return tuple(value)
    raise ValueError(f"must be a string or a list of strings, got {shown(value)}")


def host(name: str) -> str:
    """Accept "*" or a numeric address that a socket can listen on.

    Names are not resolved: a resolver can hang, and its answer can change.
    """
    if name == "*":
        return name
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        address = None
    zone = name.partition("%")[2]
    if address is None or not _ZONE.fullmatch(zone):
        raise ValueError(f'must be "*" or IP addresses, e.g. "127.0.0.1" or "::1"; got {shown(name)}{_list_hint(name)}')
    if address.version == 6 and address.ipv4_mapped:  # noqa: PLR2004 - of IP
        raise ValueError(f'must be written as IPv4: "{address.ipv4_mapped}", got {shown(name)}')
    if zone and not address.is_link_local:
        raise ValueError(f"must not name an interface if it is not link-local, got {shown(name)}")
    if address.version == 6 and address.is_link_local and not zone:  # noqa: PLR2004
        raise ValueError(f'must name its interface if it is link-local, e.g. "{address}%eth0"; got {shown(name)}')
    if address.is_multicast or name == "255.255.255.255":
        raise ValueError(f"must be an address that clients can connect to, got {shown(name)}")
    return name


def _list_hint(value: object) -> str:
    return '; write several as a list: ["...", "..."]' if isinstance(value, str) and "," in value else ""


def hosts(names: tuple[str, ...]) -> tuple[str, ...]:
    """Accept addresses that can all be bound to the same port."""
    if not names:
        raise ValueError('must name an address, or "*" for all')
    if "*" in names and len(names) > 1:
        raise ValueError('must be "*" alone, or addresses: "*" already means every address')
    if names == ("*",):
        return names
    if len(names) > MAX_HOSTS:
        raise ValueError(f"must be at most {MAX_HOSTS} addresses, got {len(names)}")
    addresses = [ipaddress.ip_address(name) for name in names]
    for number, (name, address) in enumerate(zip(names, addresses, strict=True)):
        if address in addresses[:number]:
            raise ValueError(f"must name each address once, got {shown(name)} twice")
        if address.is_unspecified and sum(other.version == address.version for other in addresses) > 1:
            raise ValueError(f"must name {shown(name)} alone of IPv{address.version}: it already means every address")
    return names


def network(value: object) -> Network:
    """Return the network. An address alone is a network of one; an IPv4-mapped network is returned as IPv4."""
    try:
        if not isinstance(value, str) or "%" in value:  # ipaddress accepts numbers and zones
            raise ValueError  # noqa: TRY301 - gets the same message as an error of ipaddress
        found = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError(
            f'must be a network, e.g. "10.0.0.0/8" or "2001:db8::/32"; got {shown(value)}{_list_hint(value)}'
        ) from None
    if found.network_address != ipaddress.ip_address(value.partition("/")[0]):
        raise ValueError(f'must be a network; {shown(value)} is an address within "{found}"')
    if isinstance(found, ipaddress.IPv6Network) and found.network_address.ipv4_mapped:
        return ipaddress.IPv4Network((found.network_address.ipv4_mapped, found.prefixlen - _MAPPED_PREFIX))
    return found


def rate(value: object) -> float | None:
    """Return events per second from "500/s", "30/m"; `None` from "off"."""
    if value == "off":
        return None
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    per_second = float(Decimal(found[1]) * 1000 / _MILLISECONDS[found[2]]) if found else 0
    if per_second == 0:
        raise ValueError(f'must be a rate above 0 with its unit, e.g. "500/s" or "30/m", or "off"; got {shown(value)}')
    if per_second > FASTEST:
        raise ValueError(f'must be at most "{FASTEST:.0f}/s", or "off" for no limit; got {shown(value)}')
    return per_second


def http_address(text: str) -> str:
    """Accept "ADDRESS:PORT", with an IPv6 address in brackets, "*:PORT" for every address, or "off"."""
    if text == "off":
        return text
    found = _HTTP_ADDRESS.fullmatch(text)
    try:
        if found is None or int(found[3]) > MAX_PORT:
            raise ValueError  # noqa: TRY301 - gets the same message as an error of ipaddress
        if not text.startswith("*"):
            host(found[1] or found[2])
    except ValueError:
        raise ValueError(
            'must be an address with its port, e.g. "127.0.0.1:9107", "[::1]:9107" or "*:9107" for every address, or "off";'
            f" got {shown(text)}"
        ) from None
    return text


def split_http_address(text: str) -> tuple[str, int]:
    """Return the address (or "*") and the port of an HTTP address; for "off", an empty address and port 0."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), 0 if text == "off" else int(port)


def host_name(text: str) -> str:
    """Return a host name in lower case, without the dot of the root."""
    name = text.removesuffix(".")
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise ValueError(
            f'must be host names without a port, e.g. "echod.example.net"; got {shown(text)}{_list_hint(text)}'
        )
    return name.lower()


def socket_path(text: str) -> str:
    """Accept "auto", "off", or an absolute path that fits into the address of a Unix socket."""
    if text not in ("auto", "off") and (not text.startswith("/") or not text.isprintable()):
        raise ValueError(f'must be a path that begins with "/", or "auto" or "off"; got {shown(text)}')
    return _fitting(text)


def _fitting(text: str) -> str:
    if len(text.encode()) > _LONGEST_PATH:
        raise ValueError(f"must be at most {_LONGEST_PATH} bytes long (unix(7)), got {len(text.encode())}")
    return text


def listen_path(text: str) -> str:
    """Accept "off", an absolute path, or "@" and a name, that fits into the address of a Unix socket."""
    if text != "off" and (not text.startswith(("/", "@")) or text in ("/", "@") or not text.isprintable()):
        raise ValueError(f'must be a path that begins with "/", "@" and a name, or "off"; got {shown(text)}')
    return _fitting(text)


def mode(value: object) -> object:
    """Return the bits of a file's mode from "0660"."""
    if not isinstance(value, str) or not _MODE.fullmatch(value):
        raise ValueError(f'must be a mode of octal digits in quotes, e.g. "0660"; got {shown(value)}')
    return int(value, 8)


# The inverses: each text is parsed as the same value.


def duration_text(seconds: float | None) -> str:
    """Return "1h30m", "500ms" or "off"."""
    if seconds is None:
        return "off"
    exact = Decimal(repr(seconds))
    if 0 < exact < 1 and exact * 1000 % 1 == 0:
        return f"{exact * 1000:.0f}ms"
    if exact % 1 or not exact:
        return f"{_decimal(seconds)}s"
    text = ""
    rest = int(seconds) * 1000
    for unit in ("d", "h", "m", "s"):
        number, rest = divmod(rest, _MILLISECONDS[unit])
        text += f"{number}{unit}" if number else ""
    return text


def rate_text(per_second: float | None) -> str:
    """Return "500/s", "30/m" or "off"."""
    if per_second is None:
        return "off"
    for unit in ("s", "m", "h"):
        text = f"{round(per_second * _MILLISECONDS[unit] / 1000)}/{unit}"
        if not text.startswith("0/") and rate(text) == per_second:
            return text
    return f"{_decimal(per_second)}/s"


def _decimal(number: float) -> str:
    """Return the shortest decimal without an exponent that is parsed as this number."""
    text = f"{Decimal(repr(number)):f}"
    return text.removesuffix(".0")


def mode_text(bits: int) -> str:
    """Return "0660"."""
    return f"{bits:04o}"


def _hosts_text(names: tuple[str, ...]) -> str | list[str]:
    return names[0] if len(names) == 1 else list(names)


def _networks_text(networks: tuple[Network, ...]) -> list[str]:
    return [str(each) for each in networks]


class Form(NamedTuple):
    """How a value is written: a word for help texts, and the JSON Schema of the value in a file."""

    word: str
    schema: dict[str, Any]


def _text(pattern: re.Pattern[str], *, off: bool = True) -> dict[str, Any]:
    """Return the schema of a string. JSON Schema does not anchor its regular expressions (ECMA-262)."""
    return {"type": "string", "pattern": f"^(?:{'off|' if off else ''}{pattern.pattern})$"}


_STRINGS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
_DURATION_FORM = Form("DURATION", _text(_DURATION))

# For a duration, take `Timeout` if 0 makes no sense, such as a time after which a connection is closed, else `Duration`.
Duration = Annotated[float | None, BeforeValidator(duration), PlainSerializer(duration_text), _DURATION_FORM]
Timeout = Annotated[float | None, BeforeValidator(timeout), PlainSerializer(duration_text), _DURATION_FORM]
Count = Annotated[
    int, BeforeValidator(count), Form("NUMBER", {"anyOf": [{"type": "integer"}, _text(_COUNT, off=False)]})
]
Buffer = Annotated[
    int | None,
    BeforeValidator(buffer),
    PlainSerializer(lambda size: "auto" if size is None else size),
    Form("SIZE", {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": f"^(?:auto|{_COUNT.pattern})$"}]}),
]
Port = Annotated[
    int | None,
    BeforeValidator(port),
    PlainSerializer(lambda number: "off" if number is None else number),
    Form("PORT", {"anyOf": [{"type": "integer", "minimum": 0, "maximum": MAX_PORT}, _text(_COUNT)]}),
]
Hosts = Annotated[
    tuple[Annotated[str, AfterValidator(host)], ...],
    BeforeValidator(listed),
    AfterValidator(hosts),
    PlainSerializer(_hosts_text),
    Form(
        "ADDRESS",
        {"anyOf": [{"type": "string"}, {**_STRINGS, "minItems": 1, "maxItems": MAX_HOSTS, "uniqueItems": True}]},
    ),
]
Networks = Annotated[
    tuple[Annotated[Network, BeforeValidator(network)], ...],
    BeforeValidator(listed),
    PlainSerializer(_networks_text),
    Form("NETWORK", {"anyOf": [{"type": "string"}, _STRINGS]}),
]
Rate = Annotated[float | None, BeforeValidator(rate), PlainSerializer(rate_text), Form("RATE", _text(_RATE))]
HttpAddress = Annotated[str, AfterValidator(http_address), Form("ADDRESS:PORT", {"type": "string"})]
Names = Annotated[
    tuple[Annotated[str, AfterValidator(host_name)], ...],
    BeforeValidator(listed),
    PlainSerializer(list),
    Form("NAME", {"anyOf": [{"type": "string"}, _STRINGS]}),
]
Mode = Annotated[int, BeforeValidator(mode), PlainSerializer(mode_text), Form("MODE", _text(_MODE, off=False))]
ListenPath = Annotated[
    str, AfterValidator(listen_path), Form("PATH", {"type": "string", "pattern": f"^(?:off|{_LISTEN_PATH})$"})
]
SocketPath = Annotated[str, AfterValidator(socket_path), Form("PATH", {"type": "string"})]
