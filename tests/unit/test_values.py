from __future__ import annotations

import datetime as dt
import ipaddress
from typing import TYPE_CHECKING, Any

import pytest

from echod import values

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
        ("366d", values.LONGEST),
        ("off", None),
    ],
)
def test_a_duration_is_a_number_of_seconds(text: str, seconds: float | None) -> None:
    """Units add up; "off" is no number."""
    assert values.duration(text) == seconds
    assert values.timeout(text) == seconds


@pytest.mark.parametrize(
    "value", ["", "30", "s", "1.s", ".5s", "-1s", "1 s", " 1s", "1sec", "1S", "1h30", "OFF", "٣s", *NO_STRINGS]
)
def test_what_is_no_duration_is_refused_with_examples(value: object) -> None:
    """A number without unit above all: seconds and milliseconds are both usual."""
    for parse in (values.duration, values.timeout):
        assert message(parse, value) == (
            f'must be a duration with its unit, e.g. "500ms", "30s", "1h30m", or "off"; got {values.shown(value)}'
        )


@pytest.mark.parametrize("text", ["367d", "366d1ms", "9" * 400 + "ms"])
def test_a_duration_above_a_year_is_refused(text: str) -> None:
    """Timers take no such time, nor does anyone wait for it."""
    assert message(values.duration, text).startswith("must be at most 366 days, got ")


@pytest.mark.parametrize("text", ["0s", "0ms", "0h0m", "0.0s"])
def test_only_a_timeout_may_not_be_0(text: str) -> None:
    """To drain for no time has a meaning; an idle timeout of 0 would end every connection."""
    assert values.duration(text) == 0
    assert message(values.timeout, text) == f'must be more than 0, or "off"; got "{text}"'


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
    assert values.count(text) == number


@pytest.mark.parametrize(
    "text", ["", "ten", "1.5", "1e3", "1_", "_1", "1__0", "+1", " 1", "1 k", "1K", "1G", "٣", "9" * 21]
)
def test_text_that_is_no_count_is_refused_with_examples(text: str) -> None:
    """Up to 20 digits: nothing on this earth is counted with more."""
    assert message(values.count, text) == f'must be a whole number, e.g. 1024 or "64Ki", got "{text}"'


@pytest.mark.parametrize("value", [7, True, 1.0, [], {}, None])
def test_a_count_that_is_no_text_is_left_to_the_declared_type(value: object) -> None:
    """So that `true` or 1.0 in the file is refused like everywhere else."""
    assert values.count(value) is value


@pytest.mark.parametrize(
    ("value", "names"), [("x", ("x",)), (["x", "y"], ("x", "y")), (("x",), ("x",)), ([], ()), ("", ("",))]
)
def test_one_string_is_a_list_of_one(value: object, names: tuple[str, ...]) -> None:
    """Most people have one address."""
    assert values.listed(value) == names


@pytest.mark.parametrize("value", [1, True, [1], ["x", 1], {"x": 1}])
@pytest.mark.parametrize("parse", [values.listed, values.hosts, values.networks])
def test_what_holds_no_strings_is_no_list(parse: Callable[[object], object], value: object) -> None:
    """Whatever the list is of."""
    assert message(parse, value) == f"must be a string or a list of strings, got {values.shown(value)}"


@pytest.mark.parametrize(
    "value",
    ["*", "127.0.0.1", "::1", "fe80::1%eth0", ["0.0.0.0", "::"], ["::ffff:127.0.0.1", "127.0.0.1"]],  # noqa: S104 - nothing is bound
)
def test_hosts_are_addresses_as_written(value: str | list[str]) -> None:
    """All of them, or one, or several."""
    assert values.hosts(value) == ((value,) if isinstance(value, str) else tuple(value))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([], 'must name an address, or "*" for all'),
        (["*", "::1"], 'must be "*" alone, or addresses: "*" already means every address'),
        (["*", "*"], 'must be "*" alone, or addresses: "*" already means every address'),
        ("localhost", 'must be "*" or IP addresses, e.g. "127.0.0.1" or "::1"; got "localhost"'),
        (["::1", "[::1]"], 'must be "*" or IP addresses, e.g. "127.0.0.1" or "::1"; got "[::1]"'),
        ("10.0.0.0/8", 'must be "*" or IP addresses, e.g. "127.0.0.1" or "::1"; got "10.0.0.0/8"'),
        ("127.0.0.01", 'must be "*" or IP addresses, e.g. "127.0.0.1" or "::1"; got "127.0.0.01"'),
        ("", 'must be "*" or IP addresses, e.g. "127.0.0.1" or "::1"; got ""'),
        (["::1", "0:0::1"], 'must name each address once, got "0:0::1" twice'),
    ],
)
def test_what_is_no_list_of_addresses_is_refused(value: object, problem: str) -> None:
    """Names are no addresses: nothing is resolved."""
    assert message(values.hosts, value) == problem


@pytest.mark.parametrize(
    "zone", ["a" * 64, "a" * 16, "a\0", "a b", "\udcff"], ids=["64", "16", "NUL", "space", "no UTF-8"]
)
def test_the_zone_of_an_address_has_to_be_the_name_of_an_interface(zone: str) -> None:
    """What no interface can be called would come back as an error of the resolver's, or as none at all."""
    assert message(values.hosts, f"fe80::1%{zone}").startswith('must be "*" or IP addresses')


@pytest.mark.parametrize(
    ("value", "networks"),
    [
        ([], []),
        ("10.0.0.0/8", ["10.0.0.0/8"]),
        (["192.0.2.7", "::1"], ["192.0.2.7/32", "::1/128"]),
        (("2001:db8::/32", "0.0.0.0/0"), ["2001:db8::/32", "0.0.0.0/0"]),
        ("10.0.0.0/255.0.0.0", ["10.0.0.0/8"]),
    ],
)
def test_networks_are_networks(value: object, networks: list[str]) -> None:
    """An address alone is a network of one."""
    assert values.networks(value) == tuple(ipaddress.ip_network(network) for network in networks)


@pytest.mark.parametrize("name", ["example.org", "10.0.0.0/33", "10.0.0.0/8/8", "10.*", ""])
def test_what_is_no_network_is_refused_with_examples(name: str) -> None:
    """The whole rule is refused: none of it is in force."""
    assert message(values.networks, ["10.0.0.0/8", name]) == (
        f'must be networks, e.g. "10.0.0.0/8" or "2001:db8::/32"; got "{name}"'
    )


@pytest.mark.parametrize(("name", "network"), [("10.1.2.3/8", "10.0.0.0/8"), ("2001:db8::1/32", "2001:db8::/32")])
def test_an_address_with_a_prefix_is_refused_with_its_network(name: str, network: str) -> None:
    """Either was meant, and only its author knows which."""
    assert message(values.networks, name) == f'must be networks; "{name}" is an address within "{network}"'


@pytest.mark.parametrize(
    ("text", "per_second"), [("500/s", 500), ("0.5/s", 0.5), ("30/m", 0.5), ("7200/h", 2), ("off", None)]
)
def test_a_rate_is_a_number_per_second(text: str, per_second: float | None) -> None:
    """Whatever the unit; "off" is no number."""
    assert values.rate(text) == per_second


@pytest.mark.parametrize(
    "value", ["", "500", "/s", "500/", "500/ms", "500/d", "-1/s", "0/s", "0.0/m", "1/s ", *NO_STRINGS]
)
def test_what_is_no_rate_is_refused_with_examples(value: object) -> None:
    """Also 0: nobody could connect."""
    assert message(values.rate, value) == (
        f'must be a rate above 0, e.g. "500/s" or "30/m", or "off"; got {values.shown(value)}'
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", '"x"'),
        ('"\n\\', r'"\"\n\\"'),
        ("é", '"é"'),
        ("\x9b\U000e0001", r'"\u009b\U000e0001"'),
        (True, "true"),
        (0, "0"),
        (0.5, "0.5"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        (float("nan"), "nan"),
        ([], "[]"),
        ((), "[]"),
        ([1], "a list"),
        (("x",), "a list"),
        ({}, "a table"),
        (dt.date(1979, 5, 27), "1979-05-27"),
        (dt.datetime(1979, 5, 27, 7, 32, tzinfo=dt.UTC), "1979-05-27 07:32:00+00:00"),
    ],
)
def test_a_value_is_shown_as_the_file_has_it(value: object, text: str) -> None:
    """Whoever reads a message finds in the file what it names."""
    assert values.shown(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [("x" * 58, f'"{"x" * 58}"'), ("x" * 59, f'"{"x" * 56}...'), ("x" * 10**6, f'"{"x" * 56}...')]
)
def test_a_long_value_is_cut_to_60_characters(value: str, text: str) -> None:
    """A message is a line."""
    assert values.shown(value) == text
    assert len(text) == 60


def test_an_integer_of_any_size_is_shown() -> None:
    """TOML writes it in hexadecimal; Python does not write it in decimal above 4,300 digits."""
    assert len(values.shown(16**5000)) <= 60


@pytest.mark.parametrize("char", ["\udcff", "\x7f", "\x9b"], ids=["a byte that is no UTF-8", "DEL", "CSI"])
def test_what_no_terminal_should_get_is_escaped(char: str) -> None:
    """A value can come from anywhere; the message goes to a terminal or the journal."""
    shown = values.shown(f"a{char}b")
    assert char not in shown
    assert shown.encode()
    assert shown.startswith('"a\\')
