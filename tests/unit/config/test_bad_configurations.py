"""What an operator sees for an invalid configuration: one table, through `echod check`."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

import pytest

from echod import cli, limits
from echod.config import load as config
from tests.support.in_process import without_privileges

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


class Bad(NamedTuple):
    """A configuration and the lines it is refused with, with FILE for the path; a `re.Pattern` matches a line."""

    text: str | bytes | Callable[[Path], None]
    lines: list[str | re.Pattern[str]]
    code: int = os.EX_CONFIG
    flags: tuple[str, ...] = ()
    variables: Mapping[str, str] = {}


def wrong(text: str, *lines: str) -> Bad:
    """Return a file's text and the lines it is refused with."""
    return Bad(text, list(lines))


def flag(name: str, text: str, *problems: str) -> Bad:
    """Return an empty file with a flag, and what its value is refused with."""
    return Bad("", [f"--{name}: {name}: {problem}" for problem in problems], flags=(f"--{name}={text}",))


def variable(name: str, text: str, *problems: str) -> Bad:
    """Return an empty file with a variable, and what its value is refused with."""
    section, key = name.upper().split(".")
    called = f"ECHOD_{section}__{key}"
    return Bad("", [f"{called}: {name}: {problem}" for problem in problems], variables={called: text})


def _directory(file: Path) -> None:
    file.mkdir()


def _dangling(file: Path) -> None:
    file.symlink_to("nowhere")


def _circle(file: Path) -> None:
    file.symlink_to(file)


def _unreadable(file: Path) -> None:
    file.write_text("")
    file.chmod(0)


def _missing(_: Path) -> None:
    pass


HINT = "; strings need quotes, true and false are lowercase"
STATEMENT = "Expected newline or end of document after a statement"
SECTIONS = "known: [listen], [tls], [udp], [pool], [timeouts], [access], [log], [admin]"
HOST = 'must be "*" or IP addresses, e.g. "127.0.0.1" or "::1"; got'
NETWORK = 'must be a network, e.g. "10.0.0.0/8" or "2001:db8::/32"; got'
DURATION = 'must be a duration with its unit, e.g. "500ms", "30s", "1h30m", or "off"; got'
RATE = 'must be a rate above 0 with its unit, e.g. "500/s" or "30/m", or "off"; got'
NUMBER = 'must be a whole number, e.g. 1024 or "64Ki", got'
HTTP_ADDRESS = (
    'must be an address with its port, e.g. "127.0.0.1:9107", "[::1]:9107" or "*:9107" for every address, or "off"; got'
)
LEVEL = 'must be "debug" or "info" or "warning" or "error", got'
SOCKET = 'must be a path that begins with "/", or "auto" or "off"; got'
LISTEN_PATH = 'must be a path that begins with "/", "@" and a name, or "off"; got'
MODE = 'must be a mode of octal digits in quotes, e.g. "0660"; got'

TABLE: dict[str, Bad] = {
    # Not TOML
    "no value": wrong("[pool]\nsize =\n", "FILE:2: Invalid value (column 7)"),
    "no value at the end": wrong("[pool]\nsize =", "FILE:2: Invalid value (at the end of the file)"),
    "only a word": wrong("pool", "FILE:1: Expected '=' after a key in a key/value pair (at the end of the file)"),
    "no key": wrong("= 1", "FILE:1: Invalid statement (column 1)"),
    "an empty header": wrong("[]", "FILE:1: Invalid initial character for a key part (column 2)"),
    "a header without end": wrong(
        "[pool\nsize = 1", "FILE:1: Expected ']' at the end of a table declaration (column 6)"
    ),
    "a header and a pair on one line": wrong("[pool] size = 1", f"FILE:1: {STATEMENT} (column 8)"),
    "a bare word for a string": wrong("[listen]\nhost = localhost", f"FILE:2: Invalid value{HINT} (column 8)"),
    "a bare address": wrong("[listen]\nhost = 127.0.0.1", f"FILE:2: {STATEMENT}{HINT} (column 13)"),
    "a bare address in a list": wrong("[listen]\nhost = [::1]", f"FILE:2: Invalid value{HINT} (column 9)"),
    "a bare duration": wrong("[timeouts]\nidle = 5m", f"FILE:2: {STATEMENT}{HINT} (column 9)"),
    "a bare off": wrong("[timeouts]\nidle = off", f"FILE:2: Invalid value{HINT} (column 8)"),
    "True": wrong("[listen]\nreuse_port = True", f"FILE:2: Invalid value{HINT} (column 14)"),
    "two equals signs": wrong("[pool]\nsize == 1", "FILE:2: Invalid value (column 7)"),
    "a semicolon": wrong("[pool]\nsize = 1;", f"FILE:2: {STATEMENT} (column 9)"),
    "two pairs on one line": wrong("[pool]\nsize = 1 when_full = 'wait'", f"FILE:2: {STATEMENT} (column 10)"),
    "YAML": wrong("pool:\n  size: 10\n", "FILE:1: Expected '=' after a key in a key/value pair (column 5)"),
    "JSON": wrong('{"pool": {"size": 1}}', "FILE:1: Invalid statement (column 1)"),
    "blocks": wrong("pool {\n  size 1;\n}\n", "FILE:1: Expected '=' after a key in a key/value pair (column 6)"),
    "a string without end": wrong("[log]\nlevel = 'info", 'FILE:2: Expected "\'" (at the end of the file)'),
    "a wrong escape": wrong('[admin]\nsocket = "C:\\pipe"', "FILE:2: Unescaped '\\' in a string (column 15)"),
    "a list without end": wrong('[access]\nallow = ["10.0.0.0/8",\n', "FILE:3: Invalid value (at the end of the file)"),
    "two commas": wrong('[access]\nallow = ["::1",, "::2"]', "FILE:2: Invalid value (column 16)"),
    "an inline table over two lines": wrong(
        "pool = {\nsize = 1}", "FILE:1: Invalid initial character for a key part (column 9)"
    ),
    "a key twice": wrong("[pool]\nsize = 1\nsize = 2\n", "FILE:3: The key is defined twice (column 9)"),
    "a section twice": wrong(
        "[pool]\nsize = 1\n[log]\n[pool]\n",
        "FILE:4: [pool] is defined twice; put all its keys under the first one (column 6)",
    ),
    "a section after its dotted key": wrong(
        "pool.size = 1\n[pool]\n", "FILE:2: [pool] is defined twice; put all its keys under the first one (column 6)"
    ),
    "a leading zero": wrong("[listen]\nport = 0777", f"FILE:2: {STATEMENT}; a number has no leading zeros (column 9)"),
    "a NUL byte": wrong("[pool]\n\0", "FILE:2: Invalid statement (column 1)"),
    "a NUL byte in a string": wrong("[log]\nlevel = 'in\0fo'", "FILE:2: Found invalid character '\\x00' (column 12)"),
    "only NUL bytes": Bad(bytes(4096), ["FILE:1: Invalid statement (column 1)"]),
    "a digit of another script": wrong("[pool]\nsize = ٣", "FILE:2: Invalid value (column 8)"),
    # Not text, or far too large
    "Latin 1": Bad(b"# caf\xe9\n", ["FILE:1: not UTF-8: byte 0xe9"]),
    "UTF-16": Bad("[pool]\nsize = 1\n".encode("utf-16"), ["FILE:1: not UTF-8: byte 0xff"]),
    "UTF-16 without a mark": Bad(
        "[pool]\n".encode("utf-16-le"), ["FILE:1: Invalid initial character for a key part (column 2)"]
    ),
    "a surrogate": Bad(b"a = '\xed\xa0\x80'", ["FILE:1: not UTF-8: byte 0xed"]),
    "gzip": Bad(b"\x1f\x8b\x08\x00\x00", ["FILE:1: not UTF-8: byte 0x8b"]),
    "10 MB of junk": Bad(os.urandom(1 << 20) * 10, ["FILE: larger than 1048576 bytes: not a configuration of echod"]),
    "a byte more than there may be": Bad(
        b"#" * ((1 << 20) + 1), ["FILE: larger than 1048576 bytes: not a configuration of echod"]
    ),
    # Nested too deeply
    "lists in lists": wrong(f"a = {'[' * 100_000}{']' * 100_000}", "FILE: nested too deeply"),
    "tables in tables": wrong(f"a = {'{a=' * 100_000}1{'}' * 100_000}", "FILE: nested too deeply"),
    "tables in tables below a setting": wrong(
        f"[pool]\nsize = {'{a=' * 20}1{'}' * 20}", "FILE:2: pool.size: must be a whole number, got a table"
    ),
    # Unknown keys
    "an unknown section": wrong("[zzz]", f"FILE:1: zzz: unknown section; {SECTIONS}"),
    "a section with a slip": wrong("[timeout]\nidle = 1", "FILE:1: timeout: unknown section; did you mean [timeouts]?"),
    "a section in capitals": wrong("[POOL]", "FILE:1: POOL: unknown section; did you mean [pool]?"),
    "an unknown key": wrong("[pool]\nzzz = 1", "FILE:2: pool.zzz: unknown key; known: pool.size, pool.when_full"),
    "a key with a slip": wrong("[pool]\nsise = 1", "FILE:2: pool.sise: unknown key; did you mean pool.size?"),
    "a key with a hyphen": wrong(
        "[pool]\nwhen-full = 'wait'", "FILE:2: pool.when-full: unknown key; did you mean pool.when_full?"
    ),
    "a key without its section": wrong(
        "port = 7", "FILE:1: port: unknown key; did you mean listen.port or tls.port or udp.port?"
    ),
    "a key in another section": wrong(
        "[listen]\nper_source = 7", "FILE:2: listen.per_source: unknown key; did you mean access.per_source?"
    ),
    "an unknown table in a section": wrong(
        "[listen.tls]\ncert = 'x'",
        (
            "FILE:1: listen.tls: unknown key; known: listen.host, listen.port, listen.backlog, listen.reuse_port,"
            " listen.receive_buffer, listen.free_bind, listen.unix, listen.unix_mode"
        ),
    ),
    "a buffer in words": wrong(
        "[listen]\nreceive_buffer = 'big'",
        'FILE:2: listen.receive_buffer: must be a size, e.g. "32Ki", or "auto"; got "big"',
    ),
    "a buffer that is too small": wrong(
        "[listen]\nreceive_buffer = 4095",
        'FILE:2: listen.receive_buffer: must be from "4Ki" to "1024Mi", or "auto"; got 4095',
    ),
    "a buffer that is too large": wrong(
        "[listen]\nreceive_buffer = '1025Mi'",
        'FILE:2: listen.receive_buffer: must be from "4Ki" to "1024Mi", or "auto"; got "1025Mi"',
    ),
    "a setting as a table": wrong("[pool.size]\nmin = 1", "FILE:1: pool.size: must be a whole number, got a table"),
    "a key that is no word": wrong('"a\\u001b[31m" = 1', f'FILE:1: "a\\u001b[31m": unknown key; {SECTIONS}'),
    "10,000 unknown keys": Bad(
        "".join(f"k{number}=1\n" for number in range(10_000))[: 1 << 20].rpartition("\n")[0],
        [
            *(f"FILE:{number + 1}: k{number}: unknown key; {SECTIONS}" for number in range(100)),
            re.compile(r"and \d{4} more"),
        ],
    ),
    # Types
    "a section that is a number": wrong("pool = 3", "FILE:1: pool: must be a table, got 3"),
    "a section that is a list": wrong("[[pool]]\nsize = 3", "FILE:1: pool: must be a table, got a list"),
    "a string for a number": wrong("[pool]\nsize = 'ten'", f'FILE:2: pool.size: {NUMBER} "ten"'),
    "a fraction for a number": wrong("[pool]\nsize = 1.0", "FILE:2: pool.size: must be a whole number, got 1.0"),
    "a list for a number": wrong("[pool]\nsize = [1]", "FILE:2: pool.size: must be a whole number, got a list"),
    "a date for a number": wrong(
        "[log]\nqueue = 1979-05-27", "FILE:2: log.queue: must be a whole number, got 1979-05-27"
    ),
    "nan for a number": wrong("[log]\nqueue = nan", "FILE:2: log.queue: must be a whole number, got nan"),
    "true for a number": wrong("[listen]\nport = true", "FILE:2: listen.port: must be a whole number, got true"),
    "1 for true": wrong("[listen]\nreuse_port = 1", "FILE:2: listen.reuse_port: must be true or false, got 1"),
    "a string for true": wrong(
        "[listen]\nreuse_port = 'true'", 'FILE:2: listen.reuse_port: must be true or false, got "true"'
    ),
    "a number for a level": wrong("[log]\nlevel = 3", f"FILE:2: log.level: {LEVEL} 3"),
    "a number for an address": wrong(
        "[listen]\nhost = 1", "FILE:2: listen.host: must be a string or a list of strings, got 1"
    ),
    "a table for networks": wrong(
        "[access]\nallow = {}", "FILE:2: access.allow: must be a string or a list of strings, got a table"
    ),
    "a number for an HTTP address": wrong("[admin]\nhttp = 9107", "FILE:2: admin.http: must be a string, got 9107"),
    # Bounds
    "no workers": wrong("[pool]\nsize = 0", "FILE:2: pool.size: must be at least 1, got 0"),
    "too many workers": wrong("[pool]\nsize = '2M'", "FILE:2: pool.size: must be at most 1000000, got 2000000"),
    "a port that there is not": wrong(
        "[listen]\nport = 65536", "FILE:2: listen.port: must be at most 65535, got 65536"
    ),
    "a negative port": wrong("[listen]\nport = -1", "FILE:2: listen.port: must be at least 0, got -1"),
    "a backlog of more than an int": wrong(
        "[listen]\nbacklog = 2147483648", "FILE:2: listen.backlog: must be at most 2147483647, got 2147483648"
    ),
    "a queue of nothing": wrong("[log]\nqueue = 0", "FILE:2: log.queue: must be at least 1, got 0"),
    "a negative number of connections": wrong(
        "[access]\nper_source = -1", "FILE:2: access.per_source: must be at least 0, got -1"
    ),
    "a huge number": wrong(
        f"[pool]\nsize = {10**40}", f"FILE:2: pool.size: must be at most 1000000, got {hex(10**40)}"
    ),
    "a hexadecimal number of thousands of digits": wrong(
        f"[pool]\nsize = 0x{'f' * 5000}", f"FILE:2: pool.size: must be at most 1000000, got 0x{'f' * 55}..."
    ),
    "a number of thousands of digits": wrong(f"[pool]\nsize = {'1' * 5000}", "FILE: a number has thousands of digits"),
    "a string of a million digits": wrong(
        f"[pool]\nsize = '{'1' * 1_000_000}'", f'FILE:2: pool.size: {NUMBER} "{"1" * 56}...'
    ),
    # Forms
    "a duration without unit": wrong("[timeouts]\nidle = '30'", f'FILE:2: timeouts.idle: {DURATION} "30"'),
    "a duration that is a number": wrong("[timeouts]\nidle = 30", f"FILE:2: timeouts.idle: {DURATION} 30"),
    "a duration in another unit": wrong("[timeouts]\nidle = '5min'", f'FILE:2: timeouts.idle: {DURATION} "5min"'),
    "a duration in capitals": wrong("[timeouts]\nidle = '5M'", f'FILE:2: timeouts.idle: {DURATION} "5M"'),
    "a negative duration": wrong("[timeouts]\nidle = '-5s'", f'FILE:2: timeouts.idle: {DURATION} "-5s"'),
    "a duration of years": wrong(
        "[timeouts]\ndrain = '400d'", 'FILE:2: timeouts.drain: must be at most 366 days, got "400d"'
    ),
    "a timeout of nothing": wrong(
        "[timeouts]\nwrite = '0s'", 'FILE:2: timeouts.write: must be more than 0, or "off"; got "0s"'
    ),
    "a rate without unit": wrong("[access]\naccept_rate = '500'", f'FILE:2: access.accept_rate: {RATE} "500"'),
    "a rate of nothing": wrong("[access]\naccept_rate = '0/s'", f'FILE:2: access.accept_rate: {RATE} "0/s"'),
    "a rate without end": wrong(
        "[access]\naccept_rate = '2000000000/s'",
        'FILE:2: access.accept_rate: must be at most "1000000000/s", or "off" for no limit; got "2000000000/s"',
    ),
    "a number in another unit": wrong("[log]\nqueue = '64KB'", f'FILE:2: log.queue: {NUMBER} "64KB"'),
    "a level in capitals": wrong("[log]\nlevel = 'INFO'", f'FILE:2: log.level: {LEVEL} "INFO"; did you mean "info"?'),
    "a level with a slip": wrong(
        "[log]\nlevel = 'warn'", f'FILE:2: log.level: {LEVEL} "warn"; did you mean "warning"?'
    ),
    "a level of another program": wrong("[log]\nlevel = 'notice'", f'FILE:2: log.level: {LEVEL} "notice"'),
    "a name for an address": wrong("[listen]\nhost = 'localhost'", f'FILE:2: listen.host: {HOST} "localhost"'),
    "an address with its port": wrong("[listen]\nhost = '127.0.0.1:7'", f'FILE:2: listen.host: {HOST} "127.0.0.1:7"'),
    "an address with a newline": wrong('[listen]\nhost = "::1\\n"', f'FILE:2: listen.host: {HOST} "::1\\n"'),
    "no address": wrong("[listen]\nhost = []", 'FILE:2: listen.host: must name an address, or "*" for all'),
    "a mapped address": wrong(
        "[listen]\nhost = '::ffff:127.0.0.1'",
        'FILE:2: listen.host: must be written as IPv4: "127.0.0.1", got "::ffff:127.0.0.1"',
    ),
    "an address of many": wrong(
        "[listen]\nhost = 'ff02::1'",
        'FILE:2: listen.host: must be an address that clients can connect to, got "ff02::1"',
    ),
    "a link-local address without interface": wrong(
        "[listen]\nhost = 'fe80::1'",
        'FILE:2: listen.host: must name its interface if it is link-local, e.g. "fe80::1%eth0"; got "fe80::1"',
    ),
    "a prefix that is too long": wrong(
        "[access]\ndeny = '10.0.0.0/33'", f'FILE:2: access.deny: {NETWORK} "10.0.0.0/33"'
    ),
    "an address within a network": wrong(
        "[access]\ndeny = '10.1.2.3/8'",
        'FILE:2: access.deny: must be a network; "10.1.2.3/8" is an address within "10.0.0.0/8"',
    ),
    "bad networks among good ones": wrong(
        '[access]\nallow = [\n"::1",\n"x", 1,\n# why\n"10.*"]',
        f'FILE:4: access.allow: {NETWORK} "x"',
        f"FILE:4: access.allow: {NETWORK} 1",
        f'FILE:6: access.allow: {NETWORK} "10.*"',
    ),
    "a relative path": wrong("[admin]\nsocket = 'echod.sock'", f'FILE:2: admin.socket: {SOCKET} "echod.sock"'),
    "a path that is too long": wrong(
        f"[admin]\nsocket = '/{'x' * 107}'", "FILE:2: admin.socket: must be at most 107 bytes long (unix(7)), got 108"
    ),
    "a port of UDP in words": wrong(
        "[udp]\nport = 'echo'", 'FILE:2: udp.port: must be a port, e.g. 7007, or "off"; got "echo"'
    ),
    "a port of UDP that is too high": wrong(
        "[udp]\nport = 65536", 'FILE:2: udp.port: must be a port from 0 to 65535, or "off"; got 65536'
    ),
    "true for a port of UDP": wrong("[udp]\nport = true", "FILE:2: udp.port: must be a whole number, got true"),
    "a rate of 0": wrong("[udp]\nrate = '0/s'", f'FILE:2: udp.rate: {RATE} "0/s"'),
    "a datagram of no size": wrong("[udp]\nmax_size = 0", "FILE:2: udp.max_size: must be at least 1, got 0"),
    "a datagram that IP does not have": wrong(
        "[udp]\nmax_size = '64Ki'", "FILE:2: udp.max_size: must be at most 65527, got 65536"
    ),
    "a relative path to listen on": wrong(
        "[listen]\nunix = 'echo.sock'", f'FILE:2: listen.unix: {LISTEN_PATH} "echo.sock"'
    ),
    "an abstract socket without a name": wrong("[listen]\nunix = '@'", f'FILE:2: listen.unix: {LISTEN_PATH} "@"'),
    "a path to listen on that is too long": wrong(
        f"[listen]\nunix = '/{'x' * 107}'", "FILE:2: listen.unix: must be at most 107 bytes long (unix(7)), got 108"
    ),
    "a decimal mode": wrong("[listen]\nunix_mode = 660", f"FILE:2: listen.unix_mode: {MODE} 660"),
    "a mode with a sticky bit": wrong("[listen]\nunix_mode = '1660'", f'FILE:2: listen.unix_mode: {MODE} "1660"'),
    "a mode in words": wrong("[listen]\nunix_mode = 'rw-rw----'", f'FILE:2: listen.unix_mode: {MODE} "rw-rw----"'),
    "one path for two sockets": wrong(
        "[listen]\nunix = '/run//a.sock'\n[admin]\nsocket = '/run/a.sock'",
        'FILE:2: listen.unix: "/run//a.sock" is also admin.socket: change one of them',
    ),
    "one path for two sockets, by a link": wrong(
        "[listen]\nunix = '/proc/self/root/x/a.sock'\n[admin]\nsocket = '/x/a.sock'",
        'FILE:2: listen.unix: "/proc/self/root/x/a.sock" is also admin.socket: change one of them',
    ),
    "a port alone": wrong("[admin]\nhttp = ':9107'", f'FILE:2: admin.http: {HTTP_ADDRESS} ":9107"'),
    # Values that are impossible together, or on this machine
    "an address twice": wrong(
        "[listen]\nhost = ['::1', '0::1']", 'FILE:2: listen.host: must name each address once, got "0::1" twice'
    ),
    "an address beside all of them": wrong(
        "[listen]\nhost = ['0.0.0.0', '127.0.0.1']",
        'FILE:2: listen.host: must name "0.0.0.0" alone of IPv4: it already means every address',
    ),
    "a star beside an address": wrong(
        "[listen]\nhost = ['*', '::1']",
        'FILE:2: listen.host: must be "*" alone, or addresses: "*" already means every address',
    ),
    "everyone denied": wrong(
        "[access]\ndeny = ['::/0', '0.0.0.0/0']", "FILE:2: access.deny: covers every address: nobody could connect"
    ),
    "all that is allowed denied": wrong(
        "[access]\nallow = '10.0.0.0/24'\ndeny = '10.0.0.0/8'",
        "FILE:3: access.deny: covers all of access.allow: nobody could connect",
    ),
    "an interface that there is not": wrong(
        "[listen]\nhost = 'fe80::1%99999999'", 'FILE:2: listen.host: this machine has no interface "99999999"'
    ),
    "a pool above the hard limit, and more": wrong(
        "[pool]\nsize = 100_000\n[access]\ndeny = ['::/0', '0.0.0.0/0']",
        (
            "FILE:2: pool.size: 100000 workers need 100160 file descriptors, the hard limit is 4096:"
            " raise it (LimitNOFILE=, ulimit -Hn) or make the pool smaller"
        ),
        "FILE:4: access.deny: covers every address: nobody could connect",
    ),
    # Flags and variables
    "a flag that is no number": flag("pool.size", "ten", f'{NUMBER} "ten"'),
    "an empty flag": flag("listen.port", "", f'{NUMBER} ""'),
    "a flag with an empty item": flag("listen.host", "::1,", f'{HOST} ""'),
    "a flag with a list that is no JSON": flag("access.allow", "[::1]", f'{NETWORK} "[::1]"'),
    "a flag with a list of numbers": flag("listen.host", "[1]", "must be a string, got 1"),
    "a flag that says yes": flag("listen.reuse_port", "yes", 'must be true or false, got "yes"'),
    "a flag that is no UTF-8": flag("log.level", "\udcff", 'must be valid Unicode, got "\\udcff"'),
    "a flag with a terminal's commands": flag("log.level", "\x1b[2J", f'{LEVEL} "\\u001b[2J"'),
    "a flag of a million digits": flag("listen.port", "7" * 100_000, f'{NUMBER} "{"7" * 56}...'),
    "a variable out of bounds": variable("listen.port", "-1", "must be at least 0, got -1"),
    "a variable with a slip": variable(
        "pool.when_full", "wiat", 'must be "reject" or "wait", got "wiat"; did you mean "wait"?'
    ),
    "a variable that is no UTF-8": variable("access.deny", "\udce9", f'{NETWORK} "\\udce9"'),
    "a mistake that a flag hides": Bad(
        "[pool]\nsize = 0", ["FILE:2: pool.size: must be at least 1, got 0"], flags=("--pool.size", "5")
    ),
    "a mistake in each source": Bad(
        "[pool]\nsize = 0\n[log]\nlevl = 1",
        [
            "--listen.port: listen.port: must be at most 65535, got 70000",
            'ECHOD_LOG__FORMAT: log.format: must be "auto" or "json" or "console", got "xml"',
            "FILE:2: pool.size: must be at least 1, got 0",
            "FILE:4: log.levl: unknown key; did you mean log.level?",
        ],
        flags=("-p", "70000"),
        variables={"ECHOD_LOG__FORMAT": "xml"},
    ),
    # Files
    "a missing file": Bad(_missing, ["FILE: can't be read: No such file or directory"], os.EX_NOINPUT),
    "a directory": Bad(_directory, ["FILE: can't be read: Is a directory"], os.EX_NOINPUT),
    "a dangling link": Bad(_dangling, ["FILE: can't be read: No such file or directory"], os.EX_NOINPUT),
    "a link to itself": Bad(_circle, ["FILE: can't be read: Too many levels of symbolic links"], os.EX_NOINPUT),
    "a file without permission": Bad(
        _unreadable, [re.compile(r"FILE: can't be read: Permission denied \(as user \S+, uid \d+\)")], os.EX_NOINPUT
    ),
    "a missing file beside a bad flag": Bad(
        _missing, ["FILE: can't be read: No such file or directory"], os.EX_NOINPUT, flags=("-n", "0")
    ),
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path on a machine without configuration, where a process may have 4096 descriptors."""
    for name in os.environ:
        if name.startswith("ECHOD_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "etc" / "echod.toml")
    monkeypatch.setattr(limits, "hard_limit", lambda: 4096)
    return tmp_path / "echod.toml"


def test_no_row_got_lost() -> None:
    """Whoever removes rows has to change this number."""
    assert len(TABLE) >= 125


@pytest.mark.parametrize("bad", TABLE.values(), ids=TABLE)
def test_an_invalid_configuration_is_refused(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    file: Path,
    bad: Bad,
) -> None:
    """With an exit code, and a line for each problem that begins with its origin; no traceback, nothing on stdout."""
    if callable(bad.text):
        bad.text(file)
    else:
        file.write_bytes(bad.text if isinstance(bad.text, bytes) else bad.text.encode())
    for name, text in bad.variables.items():
        monkeypatch.setenv(name, text)
    with without_privileges():
        code = cli.run(["check", "-c", str(file), *bad.flags])
    out, errors = capsys.readouterr()
    assert (code, out) == (bad.code, "")
    assert "Traceback" not in errors
    lines = errors.replace(str(file), "FILE").splitlines()
    for line in lines:
        assert re.match(r"FILE:(\d+:)? |--[a-z_.]+: |ECHOD_[A-Z_]+: |and \d+ more$", line), line
        assert line.isprintable()
        assert len(line) <= 250
    assert len(lines) == len(bad.lines), lines
    pairs = zip(lines, bad.lines, strict=True)
    assert lines == [line if isinstance(want, re.Pattern) and want.fullmatch(line) else want for line, want in pairs]
