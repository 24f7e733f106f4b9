"""The forms of values: what each parser accepts, what it refuses, and how its inverse writes it."""

from __future__ import annotations

import datetime as dt
import ipaddress
from typing import TYPE_CHECKING, Any

import pytest

from echod.config import types
from echod.text import shown

if TYPE_CHECKING:
    from collections.abc import Callable

NO_STRINGS: list[object] = [0, 30, 1.5, True, [], {}, dt.date(1979, 5, 27)]


def message(parse: Callable[[Any], object], value: object) -> str:
    """Return the message with which the value is refused."""
    with pytest.raises(ValueError, match=r"^must .+") as caught:
        parse(value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("5m", 300),
        ("2h", 7200),
        ("1d", 86400),
        ("1h30m", 5400),
        ("1h 30m 5s", 5405),
        ("1m1ms", 60.001),
        ("1.5s", 1.5),
        ("0.25h", 900),
        ("366d", types.LONGEST),
        ("off", None),
    ],
)
def test_a_duration_is_a_number_of_seconds(text: str, seconds: float | None) -> None:
    """Units add up; "off" is `None`."""
    assert types.duration(text) == seconds
    assert types.timeout(text) == seconds


@pytest.mark.parametrize(
    "value", ["", "30", "s", "1.s", ".5s", "-1s", "1 s", " 1s", "1sec", "1S", "1h30", "OFF", "٣s", *NO_STRINGS]
)
def test_an_invalid_duration_is_refused_with_examples(value: object) -> None:
    """Above all a number without a unit, which could mean seconds or milliseconds."""
    for parse in (types.duration, types.timeout):
        assert message(parse, value) == (
            f'must be a duration with its unit, e.g. "500ms", "30s", "1h30m", or "off"; got {shown(value)}'
        )


@pytest.mark.parametrize("text", ["367d", "366d1ms", "9" * 20 + "ms"])
def test_a_duration_above_a_year_is_refused(text: str) -> None:
    """It is a typing error, and timers can't be set so far ahead."""
    assert message(types.duration, text).startswith("must be at most 366 days, got ")


@pytest.mark.parametrize("text", ["0s", "0ms", "0h0m", "0.0s"])
def test_only_a_timeout_may_not_be_0(text: str) -> None:
    """A drain of 0 closes connections at once; an idle timeout of 0 would close every connection."""
    assert types.duration(text) == 0
    assert message(types.timeout, text) == f'must be more than 0, or "off"; got "{text}"'


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("10", 10),
        ("-5", -5),
        ("007", 7),
        ("10_000", 10_000),
        ("10k", 10_000),
        ("2M", 2_000_000),
        ("64Ki", 65_536),
        ("1Mi", 1_048_576),
        ("9" * 20, 10**20 - 1),
    ],
)
def test_a_count_is_a_whole_number(text: str, number: int) -> None:
    """There are units for multiples of 1000 and of 1024."""
    assert types.count(text) == number


@pytest.mark.parametrize(
    "text", ["", "ten", "1.5", "1e3", "1_", "_1", "1__0", "+1", " 1", "1 k", "1K", "1G", "٣", "9" * 21]
)
def test_an_invalid_count_is_refused_with_examples(text: str) -> None:
    """A number has at most 20 digits."""
    assert message(types.count, text) == f'must be a whole number, e.g. 1024 or "64Ki", got "{text}"'


@pytest.mark.parametrize("value", [7, True, 1.0, [], {}, None])
def test_a_count_that_is_not_a_string_is_left_to_the_declared_type(value: object) -> None:
    """So that `true` or 1.0 in the file gets the usual message."""
    assert types.count(value) is value


@pytest.mark.parametrize(
    ("value", "names"), [("x", ("x",)), (["x", "y"], ("x", "y")), (("x",), ("x",)), ([], ()), ("", ("",))]
)
def test_one_string_is_a_list_of_one(value: object, names: tuple[str, ...]) -> None:
    """Most people have one address."""
    assert types.listed(value) == names


@pytest.mark.parametrize("value", [1, True, 0.5, {"x": 1}, None])
def test_a_value_that_is_neither_string_nor_list_is_refused(value: object) -> None:
    """The items are validated by their own form."""
    assert message(types.listed, value) == f"must be a string or a list of strings, got {shown(value)}"


@pytest.mark.parametrize(
    "name",
    [
        "*",
        "127.0.0.1",
        "0.0.0.0",  # noqa: S104 - nothing is bound
        "::",
        "::1",
        "2001:DB8::1",
        "fe80::1%eth0",
        "fe80::1%a-name_of.15ch",
    ],
)
def test_a_host_is_kept_as_written(name: str) -> None:
    """The kernel accepts it, and messages show it, in this spelling."""
    assert types.host(name) == name
    assert types.hosts((name,)) == (name,)


@pytest.mark.parametrize(
    "name",
    [
        "localhost",
        "[::1]",
        "10.0.0.0/8",
        "127.0.0.01",
        "127.1",
        "2130706433",
        "127.0.0.1:80",
        "127.0.0.1%eth0",
        "::1%",
        " ::1",
        "**",
        "",
    ],
)
def test_a_host_that_is_not_an_address_is_refused(name: str) -> None:
    """Names are not resolved."""
    assert message(types.host, name) == (f'must be "*" or IP addresses, e.g. "127.0.0.1" or "::1"; got {shown(name)}')


@pytest.mark.parametrize(
    "zone", ["a" * 64, "a" * 16, "a\0", "a b", "\udcff"], ids=["64", "16", "NUL", "space", "no UTF-8"]
)
def test_the_zone_of_an_address_is_the_name_of_an_interface(zone: str) -> None:
    """Other text would give an error of the resolver, or none at all."""
    assert message(types.host, f"fe80::1%{zone}").startswith('must be "*" or IP addresses')


@pytest.mark.parametrize("name", ["fe80::1", "febf:ffff::1"])
def test_a_link_local_address_needs_its_interface(name: str) -> None:
    """Every interface has that network."""
    assert message(types.host, name) == (
        f'must name its interface if it is link-local, e.g. "{name}%eth0"; got "{name}"'
    )


@pytest.mark.parametrize("name", ["fec0::1", "fe7f::1", "169.254.0.1"])
def test_only_link_local_addresses_of_ipv6_need_an_interface(name: str) -> None:
    """In IPv4, the routing table decides."""
    assert types.host(name) == name


@pytest.mark.parametrize("name", ["::ffff:192.0.2.1", "::ffff:c000:201", "0:0:0:0:0:FFFF:192.0.2.1"])
def test_a_mapped_address_is_refused_with_its_ipv4_form(name: str) -> None:
    """An IPv6 socket of echod is for IPv6 only, and can't be bound to it."""
    assert message(types.host, name) == f'must be written as IPv4: "192.0.2.1", got "{name}"'


def test_several_in_one_string_give_a_hint() -> None:
    """Only in flags and variables, a comma separates the items of a list."""
    for parse in (types.host, types.network):
        assert message(parse, "10.0.0.1, 10.0.0.2").endswith('; write several as a list: ["...", "..."]')


@pytest.mark.parametrize("name", ["::1%lo", "2001:db8::1%eth0", "ff02::1%eth0"])
def test_only_a_link_local_address_may_name_its_interface(name: str) -> None:
    """Otherwise one address could be given twice."""
    assert message(types.host, name) == f'must not name an interface if it is not link-local, got "{name}"'


@pytest.mark.parametrize("name", ["224.0.0.1", "239.255.255.255", "255.255.255.255", "ff02::1"])
def test_a_host_that_nobody_can_connect_to_is_refused(name: str) -> None:
    """The kernel would bind some of them, and accept nothing."""
    assert message(types.host, name) == f'must be an address that clients can connect to, got "{name}"'


@pytest.mark.parametrize(
    "names",
    [
        ("0.0.0.0", "::"),  # noqa: S104 - nothing is bound
        ("0.0.0.0", "::1"),  # noqa: S104
        ("127.0.0.1", "::"),
        ("127.0.0.1", "::1", "127.0.0.2"),
        ("fe80::1%eth0", "fe80::1%eth1"),
    ],
)
def test_hosts_that_do_not_collide_are_accepted(names: tuple[str, ...]) -> None:
    """Each version of IP and each interface is separate."""
    assert types.hosts(names) == names


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ((), 'must name an address, or "*" for all'),
        (("*", "::1"), 'must be "*" alone, or addresses: "*" already means every address'),
        (("::1", "*"), 'must be "*" alone, or addresses: "*" already means every address'),
        (("*", "*"), 'must be "*" alone, or addresses: "*" already means every address'),
        (tuple(f"127.0.0.{n}" for n in range(17)), "must be at most 16 addresses, got 17"),
        (("::1", "127.0.0.1", "0:0::1"), 'must name each address once, got "0:0::1" twice'),
        (
            ("0.0.0.0", "127.0.0.1"),  # noqa: S104 - nothing is bound
            'must name "0.0.0.0" alone of IPv4: it already means every address',
        ),
        (
            ("127.0.0.1", "::1", "0.0.0.0"),  # noqa: S104
            'must name "0.0.0.0" alone of IPv4: it already means every address',
        ),
        (("::1", "0::0"), 'must name "0::0" alone of IPv6: it already means every address'),
    ],
)
def test_hosts_that_collide_are_refused(names: tuple[str, ...], problem: str) -> None:
    """The second could not be bound."""
    assert message(types.hosts, names) == problem


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::/0", "::/0"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("::1", "::1/128"),
    ],
)
def test_a_network_is_an_address_with_a_prefix(text: str, network: str) -> None:
    """An address alone is a network of one."""
    assert types.network(text) == ipaddress.ip_network(network)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:0:0/97", "0.0.0.0/1"),
    ],
)
def test_a_network_of_mapped_addresses_is_one_of_ipv4(text: str, network: str) -> None:
    """Clients have IPv4 addresses (RFC 4291, 2.5.5.2), so that the mapped form would never match."""
    assert types.network(text) == ipaddress.IPv4Network(network)


@pytest.mark.parametrize("text", ["::/95", "::ffff:0:0:0/96", "::fffe:0:0/96"])
def test_a_network_beside_the_mapped_ones_stays_ipv6(text: str) -> None:
    """Only networks within ::ffff:0:0/96 are IPv4."""
    assert types.network(text) == ipaddress.IPv6Network(text)


@pytest.mark.parametrize(
    "value", ["example.org", "10.0.0.0/33", "10.0.0.0/8/8", "10.0.0.0/", "10.*", "fe80::%eth0/64", "fe80::1%1", ""]
)
def test_an_invalid_network_is_refused_with_examples(value: object) -> None:
    """Also one with a zone."""
    assert message(types.network, value) == (
        f'must be a network, e.g. "10.0.0.0/8" or "2001:db8::/32"; got {shown(value)}'
    )


@pytest.mark.parametrize("value", NO_STRINGS)
def test_a_network_is_not_a_number(value: object) -> None:
    """ipaddress would accept 1 as 0.0.0.1."""
    assert message(types.network, value) == (
        f'must be a network, e.g. "10.0.0.0/8" or "2001:db8::/32"; got {shown(value)}'
    )


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("10.1.2.3/255.0.0.0", "10.0.0.0/8"),
        ("2001:db8::1/32", "2001:db8::/32"),
        ("::ffff:10.0.0.1/104", "::ffff:a00:0/104"),
    ],
)
def test_an_address_within_a_network_is_refused_with_the_network(text: str, network: str) -> None:
    """The address or the network may be meant."""
    problem = message(types.network, text)
    given, _, within = problem.rpartition(" is an address within ")
    assert given == f'must be a network; "{text}"'
    assert ipaddress.ip_network(within.strip('"')) == ipaddress.ip_network(network)


@pytest.mark.parametrize(
    ("text", "per_second"),
    [("500/s", 500), ("0.5/s", 0.5), ("30/m", 0.5), ("7200/h", 2), ("1000000000/s", types.FASTEST), ("off", None)],
)
def test_a_rate_is_a_number_per_second(text: str, per_second: float | None) -> None:
    """Whatever the unit; "off" is `None`."""
    assert types.rate(text) == per_second


@pytest.mark.parametrize(
    "value", ["", "500", "/s", "500/", "500/ms", "500/d", "-1/s", "0/s", "0.0/m", "1/s ", *NO_STRINGS]
)
def test_an_invalid_rate_is_refused_with_examples(value: object) -> None:
    """Also 0, with which nobody could connect."""
    assert message(types.rate, value) == (
        f'must be a rate above 0 with its unit, e.g. "500/s" or "30/m", or "off"; got {shown(value)}'
    )


@pytest.mark.parametrize("text", ["1000000001/s", "60000000001/m", "9" * 20 + "/h"])
def test_a_rate_that_limits_nothing_is_refused(text: str) -> None:
    """It is a typing error; "off" means no limit."""
    assert message(types.rate, text) == (f'must be at most "1000000000/s", or "off" for no limit; got {shown(text)}')


@pytest.mark.parametrize(
    "text",
    ["off", "*:9107", "127.0.0.1:9107", "0.0.0.0:0", "[::1]:9107", "[::]:65535", "[2001:DB8::1]:1", "127.0.0.1:00080"],
)
def test_an_http_address_is_an_address_with_its_port(text: str) -> None:
    """With IPv6 in brackets, as in URLs."""
    assert types.http_address(text) == text


def test_an_http_address_is_split_into_address_and_port() -> None:
    """The address without brackets; "off" has neither."""
    assert types.split_http_address("*:9107") == ("*", 9107)
    assert types.split_http_address("127.0.0.1:9107") == ("127.0.0.1", 9107)
    assert types.split_http_address("[::1]:0") == ("::1", 0)
    assert types.split_http_address("off") == ("", 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9107",
        ":9107",
        "*",
        "[*]:9107",
        "**:9107",
        "*:65536",
        "localhost:9107",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:x",
        "127.0.0.1:-1",
        "127.0.0.1:65536",
        "127.0.0.1:100000",
        "127.0.0:80",
        "256.0.0.1:80",
        "::1:9107",
        "[::1]",
        "[::1]9107",
        "[:::1]:80",
        "[fe80::1%eth0]:80",
        "[fe80::1]:80",
        "[::ffff:127.0.0.1]:80",
        "[ff02::1]:80",
        "224.0.0.1:80",
        "255.255.255.255:80",
        "http://127.0.0.1:80",
        "127.0.0.1:80/",
        "127.0.0.1:٣",
        "OFF",
    ],
)
def test_an_invalid_http_address_is_refused_with_examples(text: str) -> None:
    """Above all a port alone: on which address to listen must be explicit. Also an address that no socket can be bound to."""
    assert message(types.http_address, text) == (
        'must be an address with its port, e.g. "127.0.0.1:9107", "[::1]:9107" or "*:9107" for every address, or "off";'
        f" got {shown(text)}"
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("echod", "echod"),
        ("Echod.Default.svc.", "echod.default.svc"),
        ("a_b-c.1", "a_b-c.1"),
        (f"{'x' * 63}.{'.'.join(['y' * 62] * 3)}", f"{'x' * 63}.{'.'.join(['y' * 62] * 3)}"),
    ],
)
def test_a_host_name_is_compared_in_lower_case_without_the_last_dot(text: str, name: str) -> None:
    assert types.host_name(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..b",
        ".a",
        "a:80",
        "*",
        "*.example.net",
        "a b",
        "ä",
        "[::1]",
        "x" * 64,
        ".".join(["y" * 62] * 4) + ".zz",
    ],
)
def test_an_invalid_host_name_is_refused(text: str) -> None:
    """Also one with a wildcard, which would let in names that anyone can make."""
    assert message(types.host_name, text) == (
        f'must be host names without a port, e.g. "echod.example.net"; got {shown(text)}'
    )


def test_host_names_in_one_string_are_refused_with_a_hint() -> None:
    assert message(types.host_name, "a,b").endswith('; write several as a list: ["...", "..."]')


@pytest.mark.parametrize("text", ["auto", "off", "/", "/run/echod.sock", "/run/a b", "/" + "x" * 106, "/x" + "é" * 52])
def test_a_socket_path_is_absolute(text: str) -> None:
    """A relative one would depend on the directory of whoever started the daemon."""
    assert types.socket_path(text) == text


@pytest.mark.parametrize(
    "text", ["", "echod.sock", "./x", "~/x", "on", "AUTO", "@abstract", "/a\nb", "/a\0", "/\udcff"]
)
def test_an_invalid_socket_path_is_refused(text: str) -> None:
    """Also one with characters that can't be typed: messages and commands contain it."""
    assert message(types.socket_path, text) == (
        f'must be a path that begins with "/", or "auto" or "off"; got {shown(text)}'
    )


@pytest.mark.parametrize(("text", "size"), [("/" + "x" * 107, 108), ("/" + "é" * 54, 109)])
def test_a_socket_path_has_to_fit_into_its_address(text: str, size: int) -> None:
    """It is measured in bytes, as in unix(7)."""
    problem = f"must be at most 107 bytes long (unix(7)), got {size}"
    assert message(types.socket_path, text) == problem
    assert message(types.listen_path, text) == problem
    assert message(types.listen_path, f"@{text[1:]}") == problem


@pytest.mark.parametrize("text", ["off", "/run/echo.sock", "/run/a b", "@name", "@/a b", "@" + "x" * 106])
def test_a_path_to_listen_on_is_absolute_or_abstract(text: str) -> None:
    """Where a file system can't be shared, an abstract name can."""
    assert types.listen_path(text) == text


@pytest.mark.parametrize("text", ["", "auto", "echo.sock", "./x", "/", "@", "@a\nb", "/a\0", "/\udcff"])
def test_an_invalid_path_to_listen_on_is_refused(text: str) -> None:
    """Also one that log lines can't show."""
    assert message(types.listen_path, text) == (
        f'must be a path that begins with "/", "@" and a name, or "off"; got {shown(text)}'
    )


@pytest.mark.parametrize(("value", "number"), [("off", None), (0, 0), (65535, 65535), ("7_007", 7007), ("1k", 1000)])
def test_a_port_is_a_number_or_off(value: object, number: int | None) -> None:
    """As a count is written."""
    assert types.port(value) == number


@pytest.mark.parametrize("value", [-1, 65536, "65536", "-1", "echo", "", "7.0", "OFF"])
def test_an_invalid_port_is_refused(value: object) -> None:
    """With its bounds, or with an example."""
    assert message(types.port, value) in (
        f'must be a port from 0 to 65535, or "off"; got {shown(value)}',
        f'must be a port, e.g. 7007, or "off"; got {shown(value)}',
    )


@pytest.mark.parametrize(("text", "bits"), [("0660", 0o660), ("660", 0o660), ("0000", 0), ("777", 0o777)])
def test_a_mode_is_octal(text: str, bits: int) -> None:
    """As chmod(1) has it."""
    assert types.mode(text) == bits


@pytest.mark.parametrize("value", [660, 0o660, True, "", "0o660", "66", "00660", "1660", "0680", "off", "rw-rw----"])
def test_an_invalid_mode_is_refused_with_an_example(value: object) -> None:
    """Above all a number: TOML's 660 is decimal, and its bits would be other ones."""
    assert message(types.mode, value) == (f'must be a mode of octal digits in quotes, e.g. "0660"; got {shown(value)}')


@pytest.mark.parametrize(
    ("parse", "unit", "kind"),
    [(types.duration, "s", "duration"), (types.rate, "/s", "rate"), (types.count, "", "whole")],
)
def test_a_number_has_at_most_20_digits(parse: Callable[[Any], object], unit: str, kind: str) -> None:
    """And 40 after the point."""
    for digits in ("9" * 21, "9" * 1_000_000, f"0.{'1' * 41}"):
        assert message(parse, digits + unit).startswith(f"must be a {kind}")


# The inverses


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "off"),
        (0, "0s"),
        (0.001, "1ms"),
        (0.5, "500ms"),
        (0.0005, "0.0005s"),
        (1e-7, "0.0000001s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (60, "1m"),
        (61, "1m1s"),
        (5400, "1h30m"),
        (86400, "1d"),
        (86401, "1d1s"),
        (90061.0, "1d1h1m1s"),
        (types.LONGEST, "366d"),
    ],
)
def test_a_duration_is_written_in_its_largest_units(seconds: float | None, text: str) -> None:
    """And is parsed as the same value."""
    assert types.duration_text(seconds) == text
    assert types.duration(text) == seconds


@pytest.mark.parametrize(
    ("per_second", "text"),
    [
        (None, "off"),
        (500, "500/s"),
        (0.5, "30/m"),
        (1.5, "90/m"),
        (1 / 3600, "1/h"),
        (0.0001, "0.0001/s"),
        (types.FASTEST, "1000000000/s"),
    ],
)
def test_a_rate_is_written_as_a_whole_number_if_possible(per_second: float | None, text: str) -> None:
    """In the shortest unit for which it is one; and is parsed as the same value."""
    assert types.rate_text(per_second) == text
    assert types.rate(text) == per_second


def test_each_millisecond_is_parsed_as_the_same_again() -> None:
    """Floating point has hardly any of them exactly."""
    read = [types.duration(f"{number}ms") for number in range(1, 1000)]
    assert [types.duration(types.duration_text(seconds)) for seconds in read] == read


def test_each_millisecond_is_written_in_milliseconds() -> None:
    """As its author wrote it."""
    texts = [f"{number}ms" for number in range(1, 1000)]
    assert [types.duration_text(types.duration(text)) for text in texts] == texts
