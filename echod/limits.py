"""The limit of open file descriptors (RLIMIT_NOFILE, getrlimit(2)), and how many a pool needs."""

from __future__ import annotations

import resource

from echod.errors import Refusal

RESERVE = 160
"""Descriptors that are no connections: listeners, event loop, log, admin clients, and connections on hold."""


def needed(workers: int, *, proxied: bool = False) -> int:
    """Return the number of descriptors for that many workers; if `proxied`, as many connections may wait for their header."""
    return workers * (1 + proxied) + RESERVE


def _soft_and_hard() -> tuple[int, int]:
    """Return the soft limit and the hard one; a sandbox that does not tell them has none, as far as anybody knows."""
    try:
        return resource.getrlimit(resource.RLIMIT_NOFILE)
    except OSError:
        return resource.RLIM_INFINITY, resource.RLIM_INFINITY


def hard_limit() -> int | None:
    """Return the highest limit that this process may set, or `None` if there is none."""
    hard = _soft_and_hard()[1]
    return None if hard == resource.RLIM_INFINITY else hard


def raise_soft_limit(wanted: int) -> None:
    """Raise the soft limit to `wanted` if it is lower. `wanted` must not exceed the hard limit. Raises `Refusal`."""
    soft, hard = _soft_and_hard()
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except OSError as error:  # a sandbox
            line = (
                f"echod: the limit of descriptors can't be raised from {soft} to {wanted} (ulimit -n): {error.strerror}"
            )
            raise Refusal(line) from None
