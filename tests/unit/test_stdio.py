"""The standard streams at start."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from echod import stdio

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def descriptor(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of a standard stream that a test may close or replace."""
    number: int = request.param
    saved = os.dup(number)
    yield number
    os.dup2(saved, number)
    os.close(saved)


@pytest.mark.parametrize("descriptor", [0, 1, 2], indirect=True)
def test_a_closed_standard_stream_is_opened_on_dev_null(descriptor: int) -> None:
    """Otherwise a socket would get the number, and a client would read the log."""
    os.close(descriptor)
    stdio.guard()
    assert os.path.samestat(os.fstat(descriptor), Path(os.devnull).stat())


@pytest.mark.parametrize("descriptor", [0, 1, 2], indirect=True)
def test_an_open_standard_stream_is_left_alone(tmp_path: Path, descriptor: int) -> None:
    """Whatever it is."""
    target = tmp_path / "stream"
    with target.open("w") as stream:
        os.dup2(stream.fileno(), descriptor)
    before = sys.stdout, sys.stderr
    stdio.guard()
    assert os.path.samestat(os.fstat(descriptor), target.stat())
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("descriptor", [1, 2], indirect=True)
def test_a_stream_that_python_found_closed_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, descriptor: int
) -> None:
    """It is `None` then, and printing to it would fail; text that is not UTF-8 is escaped."""
    name = {1: "stdout", 2: "stderr"}[descriptor]
    target = tmp_path / "stream"
    with target.open("w") as stream:
        os.dup2(stream.fileno(), descriptor)
    with monkeypatch.context() as patch:
        patch.setattr(sys, name, None)
        stdio.guard()
        print("a\udcffb", file=getattr(sys, name), flush=True)
    assert target.read_text() == "a\\udcffb\n"


@pytest.mark.parametrize("descriptor", [2], indirect=True)
@pytest.mark.parametrize(("wait", "room", "written"), [(True, True, True), (False, True, True), (False, False, False)])
def test_a_report_need_not_wait(
    monkeypatch: pytest.MonkeyPatch, descriptor: int, *, wait: bool, room: bool, written: bool
) -> None:
    """At the end of the daemon, standard error may be a pipe that is full and that nobody reads."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.dup2(writer, descriptor)
    os.close(writer)
    size = fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ)
    if not room:
        os.write(descriptor, bytes(size))
    with os.fdopen(descriptor, "w", closefd=False) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        stdio.report("lost", wait=wait)
        assert (b"lost\n" in os.read(reader, 2 * size)) == written
    os.close(reader)
