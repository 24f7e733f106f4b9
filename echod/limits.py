"""The limit of open file descriptors (RLIMIT_NOFILE, getrlimit(2)), and how many a pool needs."""

from __future__ import annotations

import resource

from echod.errors import Refusal

RESERVE = 160
"""Descriptors that are no connections: listeners, event loop, log, admin clients, and connections on hold."""


def needed(workers: int, *, proxied: bool = False) -> int:
    """Return the number of descriptors for that many workers; if `proxied`, as many connections may wait for their header."""
    return workers * (1 + proxied) + RESERVE


def hard_limit() -> int | None:
    """Return the highest limit that this process may set, or `None` if there is none."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def raise_soft_limit(wanted: int) -> None:
    """Raise the soft limit to `wanted` if it is lower. `wanted` must not exceed the hard limit. Raises `Refusal`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except OSError as error:  # a sandbox
            line = (
                f"echod: the limit of descriptors can't be raised from {soft} to {wanted} (ulimit -n): {error.strerror}"
            )
            raise Refusal(line) from None
