"""What the tests of the real process share."""

from __future__ import annotations

import functools
import resource
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, settings

from tests.support.harness import Echod

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


# How long an example takes says nothing of echod, and a lot of what else the machine does.
settings.register_profile("patient", deadline=None)
settings.register_profile("mutation", deadline=None, database=None, phases=[Phase.explicit, Phase.generate])
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def _descriptors() -> None:
    """Thousands of clients are as many descriptors; the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


@pytest.fixture
def echod(tmp_path: Path) -> Callable[..., Echod]:
    """Return what starts a daemon; see `Echod`."""
    return functools.partial(Echod, directory=tmp_path)
