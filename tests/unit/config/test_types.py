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
    """Return what the value is refused with."""
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
    """Units add up; "off" is no number."""
    assert types.duration(text) == seconds
    assert types.timeout(text) == seconds


@pytest.mark.parametrize(
    "value", ["", "30", "s", "1.s", ".5s", "-1s", "1 s", " 1s", "1sec", "1S", "1h30", "OFF", "٣s", *NO_STRINGS]
)
def test_what_is_no_duration_is_refused_with_examples(value: object) -> None:
    """A number without unit above all: seconds and milliseconds are both usual."""
    for parse in (types.duration, types.timeout):
        assert message(parse, value) == (
            f'must be a duration with its unit, e.g. "500ms", "30s", "1h30m", or "off"; got {shown(value)}'
        )


@pytest.mark.parametrize("text", ["367d", "366d1ms", "9" * 20 + "ms"])
def test_a_duration_above_a_year_is_refused(text: str) -> None:
    """Timers take no such time, nor does anyone wait for it."""
    assert message(types.duration, text).startswith("must be at most 366 days, got ")


@pytest.mark.parametrize("text", ["0s", "0ms", "0h0m", "0.0s"])
def test_only_a_timeout_may_not_be_0(text: str) -> None:
    """To drain for no time has a meaning; an idle timeout of 0 would end every connection."""
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
    """Multiples of 1000 and of 1024 have units of their own."""
    assert types.count(text) == number


@pytest.mark.parametrize(
    "text", ["", "ten", "1.5", "1e3", "1_", "_1", "1__0", "+1", " 1", "1 k", "1K", "1G", "٣", "9" * 21]
)
def test_text_that_is_no_count_is_refused_with_examples(text: str) -> None:
    """Up to 20 digits: nothing on this earth is counted with more."""
    assert message(types.count, text) == f'must be a whole number, e.g. 1024 or "64Ki", got "{text}"'


@pytest.mark.parametrize("value", [7, True, 1.0, [], {}, None])
def test_a_count_that_is_no_text_is_left_to_the_declared_type(value: object) -> None:
    """So that `true` or 1.0 in the file is refused like everywhere else."""
    assert types.count(value) is value


@pytest.mark.parametrize(
    ("value", "names"), [("x", ("x",)), (["x", "y"], ("x", "y")), (("x",), ("x",)), ([], ()), ("", ("",))]
)
def test_one_string_is_a_list_of_one(value: object, names: tuple[str, ...]) -> None:
    """Most people have one address."""
    assert types.listed(value) == names


@pytest.mark.parametrize("value", [1, True, 0.5, {"x": 1}, None])
def test_what_holds_nothing_is_no_list(value: object) -> None:
    """What the items have to be, the form of the item says."""
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
def test_a_host_is_an_address_as_written(name: str) -> None:
    """The kernel takes it, and messages show it, as its author wrote it."""
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
def test_what_is_no_address_is_no_host(name: str) -> None:
    """Names are no addresses: nothing is resolved."""
    assert message(types.host, name) == (f'must be "*" or IP addresses, e.g. "127.0.0.1" or "::1"; got {shown(name)}')


@pytest.mark.parametrize(
    "zone", ["a" * 64, "a" * 16, "a\0", "a b", "\udcff"], ids=["64", "16", "NUL", "space", "no UTF-8"]
)
def test_the_zone_of_an_address_has_to_be_the_name_of_an_interface(zone: str) -> None:
    """What no interface can be called would come back as an error of the resolver's, or as none at all."""
    assert message(types.host, f"fe80::1%{zone}").startswith('must be "*" or IP addresses')


@pytest.mark.parametrize("name", ["fe80::1", "febf:ffff::1"])
def test_a_link_local_address_needs_its_interface(name: str) -> None:
    """Every interface has that network: alone, the address says nothing."""
    assert message(types.host, name) == (
        f'must name its interface if it is link-local, e.g. "{name}%eth0"; got "{name}"'
    )


@pytest.mark.parametrize("name", ["fec0::1", "fe7f::1", "169.254.0.1"])
def test_only_link_local_addresses_of_ipv6_need_an_interface(name: str) -> None:
    """In IPv4, the routing table knows."""
    assert types.host(name) == name


@pytest.mark.parametrize("name", ["::ffff:192.0.2.1", "::ffff:c000:201", "0:0:0:0:0:FFFF:192.0.2.1"])
def test_a_mapped_address_is_to_be_written_as_ipv4(name: str) -> None:
    """An IPv6 socket of echod takes IPv6 only, and could not be bound to it."""
    assert message(types.host, name) == f'must be written as IPv4: "192.0.2.1", got "{name}"'


def test_several_in_one_string_are_told_to_be_a_list() -> None:
    """In a flag, a comma does separate them."""
    for parse in (types.host, types.network):
        assert message(parse, "10.0.0.1, 10.0.0.2").endswith('; write several as a list: ["...", "..."]')


@pytest.mark.parametrize("name", ["::1%lo", "2001:db8::1%eth0", "ff02::1%eth0"])
def test_only_a_link_local_address_names_its_interface(name: str) -> None:
    """Elsewhere it would be a second name of the same address."""
    assert message(types.host, name) == f'must not name an interface if it is not link-local, got "{name}"'


@pytest.mark.parametrize("name", ["224.0.0.1", "239.255.255.255", "255.255.255.255", "ff02::1"])
def test_nobody_can_connect_to_many(name: str) -> None:
    """TCP has one peer; the kernel would take some of them and accept nothing."""
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
def test_hosts_that_do_not_collide_stand_beside_each_other(names: tuple[str, ...]) -> None:
    """Each version of IP for itself, each interface for itself."""
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
    """The second could not be bound beside the first."""
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
def test_a_network_is_a_network(text: str, network: str) -> None:
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
    """As which clients appear (RFC 4291, 2.5.5.2): a rule for the other form would never be met."""
    assert types.network(text) == ipaddress.IPv4Network(network)


@pytest.mark.parametrize("text", ["::/95", "::ffff:0:0:0/96", "::fffe:0:0/96"])
def test_a_network_beside_the_mapped_ones_stays_ipv6(text: str) -> None:
    """Only what lies within ::ffff:0:0/96 is IPv4."""
    assert types.network(text) == ipaddress.IPv6Network(text)


@pytest.mark.parametrize(
    "value", ["example.org", "10.0.0.0/33", "10.0.0.0/8/8", "10.0.0.0/", "10.*", "fe80::%eth0/64", "fe80::1%1", ""]
)
def test_what_is_no_network_is_refused_with_examples(value: object) -> None:
    """A zone is no part of one: clients are told apart by address."""
    assert message(types.network, value) == (
        f'must be a network, e.g. "10.0.0.0/8" or "2001:db8::/32"; got {shown(value)}'
    )


@pytest.mark.parametrize("value", NO_STRINGS)
def test_a_network_is_never_a_number(value: object) -> None:
    """The library would take 1 for 0.0.0.1."""
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
def test_an_address_with_a_prefix_is_refused_with_its_network(text: str, network: str) -> None:
    """Either was meant, and only its author knows which."""
    problem = message(types.network, text)
    given, _, within = problem.rpartition(" is an address within ")
    assert given == f'must be a network; "{text}"'
    assert ipaddress.ip_network(within.strip('"')) == ipaddress.ip_network(network)


@pytest.mark.parametrize(
    ("text", "per_second"),
    [("500/s", 500), ("0.5/s", 0.5), ("30/m", 0.5), ("7200/h", 2), ("1000000000/s", types.FASTEST), ("off", None)],
)
def test_a_rate_is_a_number_per_second(text: str, per_second: float | None) -> None:
    """Whatever the unit; "off" is no number."""
    assert types.rate(text) == per_second


@pytest.mark.parametrize(
    "value", ["", "500", "/s", "500/", "500/ms", "500/d", "-1/s", "0/s", "0.0/m", "1/s ", *NO_STRINGS]
)
def test_what_is_no_rate_is_refused_with_examples(value: object) -> None:
    """Also 0: nobody could connect."""
    assert message(types.rate, value) == (
        f'must be a rate above 0 with its unit, e.g. "500/s" or "30/m", or "off"; got {shown(value)}'
    )


@pytest.mark.parametrize("text", ["1000000001/s", "60000000001/m", "9" * 20 + "/h"])
def test_a_rate_that_limits_nothing_is_refused(text: str) -> None:
    """It is a slip of the keyboard; who wants no limit says so."""
    assert message(types.rate, text) == (f'must be at most "1000000000/s", or "off" for no limit; got {shown(text)}')


@pytest.mark.parametrize(
    "text", ["off", "127.0.0.1:9107", "0.0.0.0:0", "[::1]:9107", "[::]:65535", "[2001:DB8::1]:1", "127.0.0.1:00080"]
)
def test_an_http_address_is_an_address_with_its_port(text: str) -> None:
    """As curl and browsers have it, IPv6 in brackets."""
    assert types.http_address(text) == text


def test_an_http_address_has_two_parts() -> None:
    """For binding, without brackets; "off" has none."""
    assert types.split_http_address("127.0.0.1:9107") == ("127.0.0.1", 9107)
    assert types.split_http_address("[::1]:0") == ("::1", 0)
    assert types.split_http_address("off") == ("", 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9107",
        ":9107",
        "*:9107",
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
        "http://127.0.0.1:80",
        "127.0.0.1:80/",
        "127.0.0.1:٣",
        "OFF",
    ],
)
def test_what_is_no_http_address_is_refused_with_examples(text: str) -> None:
    """Above all a port alone: it is not said who may ask there."""
    assert message(types.http_address, text) == (
        f'must be an address with its port, e.g. "127.0.0.1:9107" or "[::1]:9107", or "off"; got {shown(text)}'
    )


@pytest.mark.parametrize("text", ["auto", "off", "/", "/run/echod.sock", "/run/a b", "/" + "x" * 106, "/x" + "é" * 52])
def test_a_socket_path_is_absolute(text: str) -> None:
    """Relative to what would depend on who started the daemon."""
    assert types.socket_path(text) == text


@pytest.mark.parametrize(
    "text", ["", "echod.sock", "./x", "~/x", "on", "AUTO", "@abstract", "/a\nb", "/a\0", "/\udcff"]
)
def test_what_is_no_socket_path_is_refused(text: str) -> None:
    """Also what nobody could type: it stands in messages and commands."""
    assert message(types.socket_path, text) == (
        f'must be a path that begins with "/", or "auto" or "off"; got {shown(text)}'
    )


@pytest.mark.parametrize(("text", "size"), [("/" + "x" * 107, 108), ("/" + "é" * 54, 109)])
def test_a_socket_path_has_to_fit_into_its_address(text: str, size: int) -> None:
    """Bytes, not letters, as unix(7) counts."""
    assert message(types.socket_path, text) == f"must be at most 107 bytes long (unix(7)), got {size}"


@pytest.mark.parametrize(
    ("parse", "unit", "kind"),
    [(types.duration, "s", "duration"), (types.rate, "/s", "rate"), (types.count, "", "whole")],
)
def test_a_number_has_at_most_20_digits(parse: Callable[[Any], object], unit: str, kind: str) -> None:
    """And 40 after the point: more is no number that anyone means."""
    for digits in ("9" * 21, "9" * 1_000_000, f"0.{'1' * 41}"):
        assert message(parse, digits + unit).startswith(f"must be a {kind}")


# And back


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
    """As a person would, and it is read as the same."""
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
def test_a_rate_is_written_as_a_whole_number_if_it_can_be(per_second: float | None, text: str) -> None:
    """Of the shortest time for which it is one, and it is read as the same."""
    assert types.rate_text(per_second) == text
    assert types.rate(text) == per_second


def test_each_millisecond_is_read_again_as_the_same() -> None:
    """Floating point has hardly any of them exactly."""
    read = [types.duration(f"{number}ms") for number in range(1, 1000)]
    assert [types.duration(types.duration_text(seconds)) for seconds in read] == read


def test_each_millisecond_is_written_as_such() -> None:
    """Whoever wrote 9ms wants to see it again."""
    texts = [f"{number}ms" for number in range(1, 1000)]
    assert [types.duration_text(types.duration(text)) for text in texts] == texts
