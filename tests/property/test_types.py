"""Any value of each form is written as it is parsed."""

from __future__ import annotations

import ipaddress
import math
from typing import Any

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from echod.config import types

_PORTS = st.integers(0, types.MAX_PORT)
_NUMBER = st.one_of(
    st.integers(0, 10**7).map(str),
    st.tuples(st.integers(0, 10**6), st.text("0123456789", min_size=1, max_size=20)).map(lambda it: f"{it[0]}.{it[1]}"),
)

durations = st.one_of(
    st.just("off"),
    st.lists(st.tuples(_NUMBER, st.sampled_from(["ms", "s", "m", "h", "d"])), min_size=1, max_size=5).map(
        lambda parts: " ".join(f"{number}{unit}" for number, unit in parts)
    ),
    st.floats(0, 10, allow_subnormal=False).map(lambda seconds: f"{seconds:.20f}s"),
)
rates = st.one_of(
    st.just("off"), st.tuples(_NUMBER, st.sampled_from("smh")).map("/".join), st.integers(1, 10**9).map("{}/s".format)
)
networks = st.one_of(
    st.ip_addresses().map(str),
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)).map(lambda it: str(ipaddress.ip_network(it, strict=False))),
    st.tuples(st.ip_addresses(v=6), st.integers(0, 128)).map(lambda it: str(ipaddress.ip_network(it, strict=False))),
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)).map(
        lambda it: f"::ffff:{ipaddress.ip_network(it, strict=False)[0]}/{it[1] + 96}"
    ),
)
hosts = st.one_of(st.just(["*"]), st.lists(st.ip_addresses().map(str), min_size=1, max_size=4))
http_addresses = st.one_of(
    st.just("off"),
    _PORTS.map(lambda port: f"*:{port}"),
    st.tuples(st.ip_addresses(v=4), _PORTS).map(lambda it: f"{it[0]}:{it[1]}"),
    st.tuples(st.ip_addresses(v=6), _PORTS).map(lambda it: f"[{it[0]}]:{it[1]}"),
)
host_names = st.from_regex(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63}){0,2}\.?", fullmatch=True)
socket_paths = st.one_of(
    st.sampled_from(["auto", "off"]),
    st.text(st.characters(exclude_categories=["C", "Z"]), max_size=26).map(lambda text: f"/{text}"),
)
ports = st.one_of(st.just("off"), st.integers(0, 65535), st.sampled_from(["1k", "64Ki", "7_007"]))
modes = st.integers(0, 0o777).map(lambda bits: f"{bits:04o}")
listen_paths = st.one_of(
    st.just("off"),
    st.tuples(
        st.sampled_from("/@"), st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=26)
    ).map("".join),
)

CASES: list[tuple[str, Any, st.SearchStrategy[Any]]] = [
    ("Duration", types.Duration, durations),
    ("Timeout", types.Timeout, durations),
    ("Rate", types.Rate, rates),
    ("Networks", types.Networks, st.one_of(networks, st.lists(networks, max_size=4))),
    ("Hosts", types.Hosts, hosts),
    ("HttpAddress", types.HttpAddress, http_addresses),
    ("Names", types.Names, st.one_of(host_names, st.lists(host_names, max_size=4))),
    ("SocketPath", types.SocketPath, socket_paths),
    ("ListenPath", types.ListenPath, listen_paths),
    ("Mode", types.Mode, modes),
    ("Port", types.Port, ports),
    (
        "Count",
        types.Count,
        st.one_of(
            st.integers(0, 10**15),
            st.tuples(st.integers(-(10**9), 10**9), st.sampled_from(["", "k", "M", "Ki", "Mi"])).map(
                lambda it: f"{it[0]}{it[1]}"
            ),
        ),
    ),
]


@settings(max_examples=200)
@given(st.data(), st.sampled_from(CASES))
def test_every_form_is_written_as_it_is_parsed(
    data: st.DataObject, case: tuple[str, Any, st.SearchStrategy[Any]]
) -> None:
    """The text gives the same value, and the same text again."""
    _, form, texts = case
    adapter = TypeAdapter(form)
    try:
        value = adapter.validate_python(data.draw(texts))
    except ValueError:
        assume(condition=False)
        raise
    written = adapter.dump_python(value, mode="json")
    assert adapter.validate_python(written) == value
    assert adapter.dump_python(adapter.validate_python(written), mode="json") == written


@settings(max_examples=200)
@given(st.floats(1e-20, types.LONGEST))
@example(0.0)
@example(0.0009999999999999998)
@example(math.nextafter(types.LONGEST, 0))
def test_any_number_of_seconds_is_written_as_it_is_parsed(seconds: float) -> None:
    """Without loss of digits, and without an exponent."""
    assert types.duration(types.duration_text(seconds)) == seconds


@settings(max_examples=200)
@given(st.floats(1e-20, types.FASTEST))
@example(1 / 3)
@example(1 / 7200)
def test_any_rate_is_written_as_it_is_parsed(per_second: float) -> None:
    """Also if it is not a whole number in any unit."""
    assert types.rate(types.rate_text(per_second)) == per_second


@settings(max_examples=200)
@given(st.one_of(st.text(max_size=20), st.text("0123456789.:/%smhdkKiM[]*_- abcdef", max_size=20)))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """Each message is one line that begins with "must"."""
    for parse in (
        types.duration,
        types.timeout,
        types.count,
        types.host,
        types.network,
        types.rate,
        types.http_address,
        types.socket_path,
        types.listen_path,
        types.mode,
        types.port,
    ):
        try:
            parse(text)
        except ValueError as error:
            assert str(error).startswith("must ")  # noqa: PT017 - the other outcome is as good
            assert str(error).isprintable()  # noqa: PT017
