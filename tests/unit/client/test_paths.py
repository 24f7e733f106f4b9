"""The form of TARGET, and the order of its addresses."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from echod.client.paths import Address, Target, parse, resolve
from echod.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("text", "target", "url"),
    [
        ("localhost", Target("tcp", "localhost", 7), "tcp://localhost:7"),
        ("10.0.0.1:7007", Target("tcp", "10.0.0.1", 7007), "tcp://10.0.0.1:7007"),
        ("tcp://h:1", Target("tcp", "h", 1), "tcp://h:1"),
        ("[::1]:7007", Target("tcp", "::1", 7007), "tcp://[::1]:7007"),
        ("[::1]", Target("tcp", "::1", 7), "tcp://[::1]:7"),
        ("::1", Target("tcp", "::1", 7), "tcp://[::1]:7"),
        ("fe80::1%eth0", Target("tcp", "fe80::1%eth0", 7), "tcp://[fe80::1%eth0]:7"),
        ("tls://example.com:443", Target("tls", "example.com", 443), "tls://example.com:443"),
        ("udp://[::1]:9", Target("udp", "::1", 9), "udp://[::1]:9"),
        ("unix:/run/echo.sock", Target("unix", "/run/echo.sock"), "unix:/run/echo.sock"),
        ("unix:@echo", Target("unix", "@echo"), "unix:@echo"),
    ],
)
def test_a_target_is_an_address_or_a_url(text: str, target: Target, url: str) -> None:
    """It prints as the URL that the daemon's log has."""
    assert parse(text) == target
    assert str(target) == url
    assert parse(url) == target


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":7",
        "h:",
        "h:0",
        "h:65536",
        "h:x",
        "http://h",
        "a b",
        "[::1",
        "[h]:7",
        "[1.2.3.4]",
        "h/p",
        "u@h",
        "tcp://",
        "unix:",
        "unix:@",
        "unix:relative",
        "unix:/a\x00b",
        "fe80::1:7007",
        "[fe80::1]:7007",
    ],
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must "):
        parse(text)


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what lets the resolver answer with these addresses."""

    def set_answer(*hosts: str) -> None:
        def found(_: str, port: int, family: int, kind: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
            families = {host: socket.AF_INET6 if ":" in host else socket.AF_INET for host in hosts}
            return [(families[host], kind, 6, "", (host, port)) for host in hosts if family in (0, families[host])]

        monkeypatch.setattr(socket, "getaddrinfo", found)

    return set_answer


@pytest.mark.parametrize(
    ("found", "order"),
    [
        (["::1", "::2", "::3", "1.1.1.1", "2.2.2.2"], ["::1", "1.1.1.1", "::2", "2.2.2.2", "::3"]),
        (["1.1.1.1", "2.2.2.2", "::1"], ["1.1.1.1", "::1", "2.2.2.2"]),
        (["1.1.1.1", "::1", "::2"], ["1.1.1.1", "::1", "::2"]),
    ],
)
def test_addresses_of_the_two_families_take_turns(
    answer: Callable[..., None], found: list[str], order: list[str]
) -> None:
    """RFC 8305, 4. The family of the first one begins."""
    answer(*found)
    assert [address.sockaddr[0] for address in resolve(Target("tcp", "h", 7))] == order


def test_only_one_family_if_wanted(answer: Callable[..., None]) -> None:
    answer("::1", "1.1.1.1")
    assert resolve(Target("udp", "h", 7), socket.AF_INET) == [Address(socket.AF_INET, ("1.1.1.1", 7))]


@pytest.mark.parametrize(("host", "code"), [("nohost.invalid", 2), ("a..b", 3)])
def test_a_name_without_an_address_is_one_line(monkeypatch: pytest.MonkeyPatch, host: str, code: int) -> None:
    """Exit code 2, as for no connection; what can't be a name is wrong usage."""

    def fail(name: str, *_: object) -> None:
        name.encode("idna")
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(Refusal) as refused:
        resolve(Target("tcp", host, 7))
    assert (refused.value.exit_code, len(refused.value.lines)) == (code, 1)


def test_a_path_has_the_length_that_the_kernel_takes() -> None:
    assert parse(f"unix:/{'x' * 106}").host == f"/{'x' * 106}"
    with pytest.raises(ValueError, match=r"at most 107 bytes"):
        parse(f"unix:/{'x' * 107}")
