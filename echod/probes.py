"""The command lines of `ping` and `bench`, the commands that use an echo service.

They need no settings, and start in a third of the time of the other commands: the declaration of the settings is never imported.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import socket
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from echod import command, stdio
from echod.client import bench, bench_lines, paths, ping_lines
from echod.client.datagrams import HEAD
from echod.client.paths import WRONG_USAGE
from echod.client.ping import Options, Ping
from echod.client.tally import CRITICAL, STATES, UNKNOWN, Limit
from echod.errors import Refusal
from echod.limits import hard_limit, needed, raise_soft_limit
from echod.text import printable, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from echod.client.figures import Distribution

LARGEST = 16 << 20
"""Bytes of one message."""
_QUICKEST = 0.0001
_QUICKEST_OF_ALL_USERS = 0.002
"""Seconds between two messages, as in ping(8)."""
_FASTEST = 10_000_000
_ERASE = "\r\x1b[K"  # ECMA-48: EL: erase the line
_LONGEST = 366 * 86400.0
_DECIMAL = re.compile(r"[0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12}")
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_TIME = re.compile(rf"({_DECIMAL.pattern})(ms|s|m|h|)")
_LIMIT = re.compile(rf"{_TIME.pattern},(100|[0-9]{{1,2}}(?:\.[0-9]{{1,6}})?)%")


def main(words: Sequence[str]) -> NoReturn:
    """Run the command that these words begin with, and exit."""
    stdio.guard()
    sys.exit(run(words))


def run(words: Sequence[str]) -> int:
    """Run a command; return the exit code, that of a monitoring plugin. `--help` raises `SystemExit`."""
    return command.exit_code(functools.partial(_run, words))


def _run(words: Sequence[str]) -> int:
    name, *rest = words
    text, add_arguments, act = COMMANDS[name]
    parser = command.Parser(prog=f"echod {name}", description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
    parser.wrong_usage = WRONG_USAGE
    add_arguments(parser)
    return act(parser.parse_args(rest), parser)


def add_ping(parser: argparse.ArgumentParser) -> None:
    """Add what `ping` takes."""
    _add_target(parser)
    parser.add_argument("-c", "--count", metavar="COUNT", type=_whole(1, 10**12), help="stop after this many messages")
    parser.add_argument(
        "-i", "--interval", metavar="SECONDS", type=_time, default=1.0, help="time between two messages (default: 1)"
    )
    parser.add_argument(
        "-s",
        "--size",
        metavar="SIZE[,SIZE...]",
        type=_sizes,
        default=(56,),
        help="bytes of a message (default: 56)"
        "; with several sizes, the messages take turns, each size on its own connection",
    )
    parser.add_argument(
        "-W", "--timeout", metavar="SECONDS", type=_time, default=10.0, help="time to wait for an echo (default: 10)"
    )
    parser.add_argument("-w", "--deadline", metavar="SECONDS", type=_time, help="end after this time")
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print only the summary, as a monitoring plugin does"
    )
    parser.add_argument(
        "--reconnect", action="store_true", help="send each message on a new connection, to each address in turn"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each message, and a summary")
    for option, state in (("--warn", "WARNING, exit code 1"), ("--crit", "CRITICAL, exit code 2")):
        parser.add_argument(
            option,
            metavar="RTT,LOSS%",
            type=_limit,
            help=f"{state}: a higher average time (seconds) or part of lost messages, e.g. 0.1,20%%",
        )


def _add_target(parser: argparse.ArgumentParser) -> None:
    """Add what both commands take."""
    parser.add_argument(
        "target",
        metavar="TARGET",
        type=_target,
        help="HOST[:PORT] (default port: 7), [V6]:PORT, udp://HOST, tls://HOST, unix:/PATH or unix:@NAME",
    )
    family = parser.add_mutually_exclusive_group()
    family.add_argument(
        "-4", dest="family", action="store_const", const=socket.AF_INET, default=socket.AF_UNSPEC, help="only IPv4"
    )
    family.add_argument("-6", dest="family", action="store_const", const=socket.AF_INET6, help="only IPv6")
    # Because of -4 and -6, argparse would take any negative number for an option, and say that its own option has no value.
    parser._has_negative_number_optionals.clear()  # noqa: SLF001
    parser.add_argument("--proxy", choices=("v1", "v2"), help="send a PROXY header of this version first")
    parser.add_argument("--ca", metavar="FILE", help="trust these authorities instead of the system's (tls://)")
    parser.add_argument("--cert", metavar="FILE", help="show this certificate; its key is in the same file (tls://)")
    parser.add_argument("--insecure", action="store_true", help="do not verify the server's certificate (tls://)")


def _route(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> paths.Route:
    """Check the options that belong together, and look up the addresses. Nothing is sent yet."""
    target: paths.Target = arguments.target
    tls = None
    if target.kind == "tls":
        from echod.client import tls as tls_  # noqa: PLC0415 - takes as long as all else at the start

        tls = tls_.context(arguments.ca, arguments.cert, insecure=arguments.insecure)
    elif arguments.ca or arguments.cert or arguments.insecure:
        parser.error("--ca, --cert and --insecure need a target that begins with tls://")
    if arguments.proxy and target.kind == "udp":
        parser.error("--proxy: a PROXY header needs a connection, and udp:// has none")
    return paths.Route(target, paths.resolve(target, arguments.family), tls, arguments.proxy)


def _ping(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if arguments.interval < _QUICKEST:
        parser.error(f"-i: must be at least {_QUICKEST} seconds; `echod bench` sends faster")
    if arguments.interval < _QUICKEST_OF_ALL_USERS and os.geteuid() != 0:
        parser.error(
            f"-i: less than {_QUICKEST_OF_ALL_USERS} seconds needs root, as in ping(8): it may flood a network"
        )
    if arguments.target.kind != "udp" and not min(arguments.size):
        parser.error("-s: must be at least 1 byte: only udp:// can send an empty message")
    say = functools.partial(_say, arguments)
    options = Options(
        arguments.size,
        arguments.interval,
        arguments.timeout,
        arguments.count,
        arguments.deadline,
        arguments.reconnect,
        arguments.warn,
        arguments.crit,
    )
    try:
        route = _route(arguments, parser)
    except Refusal as refusal:
        if arguments.json:
            if refusal.exit_code == CRITICAL:
                Ping(paths.Route(arguments.target, []), options, say).summarize(error=_text(refusal))
        elif arguments.quiet:  # monitoring systems show only what is on standard output
            state = STATES[CRITICAL] if refusal.exit_code == CRITICAL else UNKNOWN
            stdio.answer(printable(f"{state} - {refusal}") + "\n")
        raise
    if not (arguments.json or arguments.quiet):
        stdio.answer(ping_lines.header(str(route.target), [each.fields() for each in route.addresses], arguments.size))
    return Ping(route, options, say).run()


def _text(refusal: Refusal) -> str:
    return str(refusal).removeprefix("echod: ")


def _say(arguments: argparse.Namespace, event: str, fields: dict[str, Any]) -> None:
    if event == "ping.interim":
        stdio.report(ping_lines.interim(fields))
    elif arguments.quiet and event != "ping.summary":
        return
    elif arguments.json:
        stdio.answer(_json_line(event, fields))
    elif event == "ping.summary":
        stdio.answer(ping_lines.summary(fields))
    else:
        stdio.answer(ping_lines.line(event, fields))


def _json_line(event: str, fields: dict[str, Any]) -> str:
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return json.dumps({"timestamp": now, "event": event} | fields, separators=(",", ":"), ensure_ascii=False) + "\n"


def _target(text: str) -> paths.Target:
    try:
        return paths.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _whole(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not re.fullmatch("[0-9]{1,15}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, got {shown(text)}")
        return int(text)

    return number


def _rate(text: str) -> float:
    if not _DECIMAL.fullmatch(text) or not 0 < float(text) <= _FASTEST:
        raise argparse.ArgumentTypeError(
            f"must be messages a second, more than 0 and at most {_FASTEST:,}, got {shown(text)}"
        )
    return float(text)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(_whole(0, LARGEST), text.split(",")))


def _time(text: str) -> float:
    found = _TIME.fullmatch(text)
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < seconds <= _LONGEST:
        raise argparse.ArgumentTypeError(
            f'must be a time in seconds, or with its unit, e.g. 0.2 or "200ms", got {shown(text)}'
        )
    return seconds


def _limit(text: str) -> Limit:
    found = _LIMIT.fullmatch(text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be RTT,LOSS%, such as 0.1,20% or 100ms,20%, got {shown(text)}")
    return Limit(float(found[1]) * _UNITS[found[2]], float(found[3]))


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add what `bench` takes."""
    _add_target(parser)
    parser.add_argument(
        "--rate", metavar="N", type=_rate, help="messages a second over all connections (default: as fast as it goes)"
    )
    parser.add_argument(
        "--connections", metavar="N", type=_whole(1, 60_000), default=10, help="connections (default: 10)"
    )
    parser.add_argument(
        "--duration", metavar="TIME", type=_time, default=10.0, help="how long, e.g. 30s or 5m (default: 10s)"
    )
    parser.add_argument(
        "--size", metavar="N", type=_whole(1, LARGEST), default=64, help="bytes of a message (default: 64)"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument(
        "--yes", action="store_true", help="also load an address that is neither loopback nor of a private network"
    )


def _bench(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if arguments.target.kind == "udp" and arguments.size < HEAD:
        parser.error(f"--size: must be at least {HEAD} over UDP, for the number of the message")
    descriptors, limit = needed(arguments.connections), hard_limit()
    if limit is not None and descriptors > limit:
        parser.error(
            f"--connections: {descriptors} file descriptors are needed, and the hard limit is {limit} (ulimit -Hn)"
        )
    raise_soft_limit(descriptors)
    options = bench.Options(arguments.rate, arguments.connections, arguments.duration, arguments.size)
    progress = _progress if sys.stderr.isatty() else lambda *_: None
    try:
        route = _route(arguments, parser)
        far = [each for each in route.addresses if not paths.is_near(each)]
        if far and not arguments.yes:
            parser.error(f"{far[0].sockaddr[0]} is not a private address: --yes if its owner wants this load")
        code, fields = bench.Bench(route, options, progress).run()
    except Refusal as refusal:
        if arguments.json and refusal.exit_code == CRITICAL:
            nothing = bench.Bench(paths.Route(arguments.target, []), options, progress)
            stdio.answer(_json_line("bench.summary", nothing.report(error=_text(refusal))[1]))
        raise
    finally:
        if progress is _progress:
            sys.stderr.write(_ERASE)
            sys.stderr.flush()
    stdio.answer(_json_line("bench.summary", fields) if arguments.json else bench_lines.report(fields))
    return code


def _progress(echoes: int, seconds: float, latency: Distribution) -> None:
    sys.stderr.write(f"{_ERASE}{bench_lines.progress(echoes, seconds, latency)}")
    sys.stderr.flush()


class Command(NamedTuple):
    """A command: its help text, what adds its arguments to a parser, and what runs it."""

    text: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    act: Callable[[argparse.Namespace, argparse.ArgumentParser], int]


COMMANDS = {
    "ping": Command("send to an echo service and check what comes back", add_ping, _ping),
    "bench": Command("load an echo service at a fixed rate and report latencies", add_bench, _bench),
}
