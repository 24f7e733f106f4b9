"""How many file descriptors a pool needs, and getting leave to have them (RLIMIT_NOFILE, getrlimit(2)).

Knows nothing of what the descriptors are used for.
"""

from __future__ import annotations

import resource

RESERVE = 96
"""What a process holds beside its connections: listeners, event loop, log, admin clients, and the one to refuse with."""


def needed(connections: int) -> int:
    """Return the number of descriptors for that many connections."""
    return connections + RESERVE


def hard_limit() -> int | None:
    """Return the most that may be asked for; `None` means without limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def raise_soft_limit(wanted: int) -> None:
    """Raise the soft limit to `wanted` if it is lower; the hard limit has been checked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
