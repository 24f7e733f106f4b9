from __future__ import annotations

import errno
import os
import resource
from typing import TYPE_CHECKING

import pytest

from echod import limits
from echod.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

INFINITY = resource.RLIM_INFINITY


@pytest.fixture
def soft_and_hard() -> Iterator[tuple[int, int]]:
    """Set the soft limit to 256, below the hard one, while the test runs."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    yield 256, before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("connections", [1, 1024, 1_000_000])
def test_a_pool_needs_a_descriptor_for_each_connection_and_some_more(connections: int) -> None:
    """The reserve is the same for every size. Behind proxies, as many connections may wait for their header."""
    assert limits.needed(connections) == connections + limits.RESERVE
    assert limits.needed(connections, proxied=True) == 2 * connections + limits.RESERVE


def test_the_hard_limit_is_that_of_the_process(soft_and_hard: tuple[int, int]) -> None:
    """The soft limit does not matter, because the program may raise it."""
    assert limits.hard_limit() == (None if soft_and_hard[1] == INFINITY else soft_and_hard[1])


def test_no_hard_limit_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root could really remove it."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: {resource.RLIMIT_NOFILE: (256, INFINITY)}[which])
    assert limits.hard_limit() is None


def test_a_lower_soft_limit_is_raised_to_what_is_wanted(soft_and_hard: tuple[int, int]) -> None:
    """It is not raised further, because some programs walk through all descriptors up to the limit."""
    limits.raise_soft_limit(257)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (257, soft_and_hard[1])


@pytest.mark.parametrize("wanted", [1, 255, 256])
def test_a_soft_limit_that_suffices_stays(soft_and_hard: tuple[int, int], wanted: int) -> None:
    """It is never lowered."""
    limits.raise_soft_limit(wanted)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == soft_and_hard


def test_a_sandbox_that_refuses_to_raise_it_is_named(
    soft_and_hard: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both numbers, so that somebody else can raise it."""
    soft, _ = soft_and_hard

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(resource, "setrlimit", refuse)
    limits.raise_soft_limit(soft)
    with pytest.raises(Refusal) as caught:
        limits.raise_soft_limit(soft + 1)
    (line,) = caught.value.lines
    assert line == (
        f"echod: the limit of descriptors can't be raised from {soft} to {soft + 1} (ulimit -n): Operation not permitted"
    )


def test_no_soft_limit_stays_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Infinity is -1, which looks low."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (INFINITY, INFINITY))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: pytest.fail("a limit was set"))
    limits.raise_soft_limit(10**6)


def test_a_sandbox_that_tells_no_limit_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is raised: what the soft limit is, nobody knows."""

    def refuse(_: int) -> tuple[int, int]:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(resource, "getrlimit", refuse)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: pytest.fail("a limit was set"))
    assert limits.hard_limit() is None
    limits.raise_soft_limit(10**6)
