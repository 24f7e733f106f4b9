"""What `ping` says, as text for people: a line for each event, and the summary. The fields are those of `--json`."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from echod.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Fields = Mapping[str, Any]

_FRAME = 1472
"""Bytes of the largest datagram that fits in an Ethernet frame."""
COLUMNS = ("min", "avg", "p50", "p90", "p99", "max")


def header(target: str, servers: Sequence[Fields], sizes: Sequence[int]) -> str:
    """Return the first line: where to, and how much."""
    names = ", ".join(_name(where) for where in servers)
    return printable(f"PING {target} ({names}) {', '.join(map(str, sizes))} bytes") + "\n"


def line(event: str, fields: Fields) -> str:
    """Return the line for an event."""
    return printable(_FORMS[event](fields)) + "\n"


def summary(fields: Fields) -> str:
    """Return the lines at the end. The first one is that of a monitoring plugin, with its performance data."""
    return "".join(f"{printable(text)}\n" for text in _summary(fields))


def interim(fields: Fields) -> str:
    """Return the line for QUIT: how it goes."""
    echo = fields["echo"]
    return f"{fields['echoed']}/{fields['sent']} echoed, {_percent(fields)} lost, " + (
        f"min/avg/max = {'/'.join(f'{echo[name] * 1e3:.3f}' for name in ('min', 'avg', 'max'))} ms"
        if fields["echoed"]
        else "no echo yet"
    )


def _echo(fields: Fields) -> str:
    words = [f"{fields['size']} bytes from {server(fields)}: seq={fields['seq']} time={_ms(fields['time'])}"]
    tcp = fields.get("tcp")
    if tcp:
        words.append(f"rtt={_ms(tcp['rtt'])}")
        if fields["retrans"]:
            words.append(f"retrans={fields['retrans']}")
    words += [f"{name}={_ms(fields[name])}" for name in ("connect", "tls") if name in fields]
    return " ".join(words)


def _lost(fields: Fields) -> str:
    text = f"no echo from {server(fields)}: seq={fields['seq']} {fields['error']}"
    if fields.get("acknowledged"):
        return f"{text}; its kernel has acknowledged all bytes, so the program there does not answer"
    if "acknowledged" in fields:
        return f"{text}; not all bytes are acknowledged, retrans={fields['retrans']}: look at the network"
    return text


def _wrong(fields: Fields) -> str:
    return f"wrong echo from {server(fields)}: seq={fields['seq']} {fields['error']}"


def _late(fields: Fields) -> str:
    return f"late echo from {server(fields)}: seq={fields['seq']} time={_ms(fields['time'])}"


def _duplicate(fields: Fields) -> str:
    return f"second echo from {server(fields)}: seq={fields['seq']} time={_ms(fields['time'])}"


def _disconnected(fields: Fields) -> str:
    return f"connection to {server(fields)} has ended after {fields['age']:.1f} s: {fields['error']}"


_FORMS = {
    "ping.echo": _echo,
    "ping.lost": _lost,
    "ping.wrong": _wrong,
    "ping.late": _late,
    "ping.duplicate": _duplicate,
    "ping.disconnected": _disconnected,
}


def _summary(fields: Fields) -> Iterator[str]:
    yield f"{fields['state']} - {_verdict(fields)} | {_performance_data(fields)}"
    counts = f"{fields['sent']} sent, {fields['echoed']} echoed, {fields['lost']} lost, {fields['wrong']} wrong"
    yield f"{counts}, in {fields['duration']:.1f} s to {fields['target']}"
    for name in ("late", "duplicates", "reordered", "ended"):
        if fields[name]:
            yield _EXTRA[name].format(fields[name])
    measured = [name for name in ("connect", "tls", "echo") if fields[name]["count"]]
    if measured:
        yield f"{'ms':<8}" + "".join(f"{name:>10}" for name in COLUMNS)
    for name in measured:
        yield f"{name:<8}" + "".join(f"{fields[name][column] * 1e3:>10.3f}" for column in COLUMNS)
    yield from _network(fields)
    yield from _parts("bytes", "size", fields["sizes"])
    yield from _parts("server", "server", fields["servers"])
    is_udp = fields["target"].startswith("udp:")
    if fields["black_hole"]:
        text = "larger packets are lost on the way (MTU)"
        if is_udp:
            text += ", or the server drops such datagrams (echod: above udp.max_size)"
        yield f"nothing came back of {fields['black_hole']} bytes or more, but of less: {text}"
    elif is_udp and fields["lost"] == fields["sent"] > 0 and fields["sizes"][0]["size"] > _FRAME:
        yield f"try at most {_FRAME} bytes: the path or the server may drop larger datagrams (echod: above udp.max_size)"


_EXTRA = {
    "late": "{} of the lost came back too late",
    "duplicates": "{} came back twice",
    "reordered": "{} came back after a later one",
    "ended": "connections that the server or the network has ended: {}",
}


def _verdict(fields: Fields) -> str:
    text = f"{fields['echoed']} of {fields['sent']} echoed, {_percent(fields)} lost"
    if fields["wrong"]:
        text += f", {fields['wrong']} wrong"
    if fields["echoed"]:
        text += f", rtt {_ms(fields['echo']['avg'])}"
    if fields["limit"]:
        text += f" ({fields['limit']})"
    reasons = "; ".join(fields[f"first_{outcome}"] for outcome in ("wrong", "lost") if fields[outcome])
    return f"{text}: {reasons}" if reasons else text


def _performance_data(fields: Fields) -> str:
    """Return what monitoring plugins add for graphs: name=value, warning, critical, least, most."""
    warn, crit = (fields[name] or {} for name in ("warn", "crit"))
    words = []
    if fields["echoed"]:
        words.append(f"rtt={fields['echo']['avg']:.6f}s;{_number(warn, 'rtt')};{_number(crit, 'rtt')};0")
    words.append(f"loss={fields['loss']:g}%;{_number(warn, 'loss')};{_number(crit, 'loss')};0;100")
    words.append(f"wrong={fields['wrong']};;;0")
    words += [f"{name}={fields[name]['avg']:.6f}s;;;0" for name in ("connect", "tls") if fields[name]["count"]]
    return " ".join(words)


def _number(limit: Fields, name: str) -> str:
    """Return a limit as plugins write numbers: without an exponent."""
    return "" if limit.get(name) is None else f"{Decimal(str(limit[name])).normalize():f}"


def _network(fields: Fields) -> Iterator[str]:
    tcp = fields["tcp"]
    if tcp:
        again = "1 retransmit" if fields["retrans"] == 1 else f"{fields['retrans']} retransmits"
        yield f"kernel   rtt {_ms(tcp['rtt'])}, the least {_ms(tcp['minrtt'])}, {again}"
    if fields["echoed"] > 1:
        yield f"jitter   {_ms(fields['jitter'])}"


def _parts(head: str, key: str, rows: list[Fields]) -> Iterator[str]:
    """Yield a table of the parts of the messages, if there is more than one part."""
    if len(rows) < 2:  # noqa: PLR2004
        return
    names = [server(row) if key == "server" else str(row[key]) for row in rows]
    width = max(map(len, (head, *names)))
    yield f"{head:>{width}}" + "".join(f"{name:>8}" for name in ("sent", "echoed", "lost", "wrong")) + f"{'avg ms':>10}"
    for name, row in zip(names, rows, strict=True):
        counts = "".join(f"{row[name]:>8}" for name in ("sent", "echoed", "lost", "wrong"))
        average = f"{row['avg'] * 1e3:>10.3f}" if row["echoed"] else f"{'-':>10}"
        yield f"{name:>{width}}{counts}{average}"


def server(fields: Fields) -> str:
    """Return the server of an event."""
    return _name(fields["server"])


def _name(where: Fields) -> str:
    """Return an address with its port, or the path of a Unix socket."""
    if "path" in where:
        return str(where["path"])
    address, port = where["address"], where["port"]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _percent(fields: Fields) -> str:
    return f"{fields['loss']:.3g} %"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"
