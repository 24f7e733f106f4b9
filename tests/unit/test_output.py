"""What the log does with a pipe, a file and a stream to the journal."""

from __future__ import annotations

import errno
import os
import select
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from echod import output as module
from echod.output import Output

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE = b"x" * 999 + b"\n"
PIPE_BUF = select.PIPE_BUF


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[Path, Output]]:
    """A file as a shell opens it for `>`."""
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    yield path, Output(fd)
    os.close(fd)


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A descriptor that is taken for standard error."""
    fd = os.open(os.devnull, os.O_WRONLY)
    monkeypatch.setattr(module, "_STDERR", fd)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("data", "start", "size"),
    [
        (LINE * 3, 0, 3000),
        (LINE * 10, 0, 4000),
        (LINE * 10, 4000, 4000),
        (LINE * 10, 9000, 1000),
        (b"x" * (PIPE_BUF - 1) + b"\n" + LINE, 0, PIPE_BUF),
        (b"x" * PIPE_BUF + b"\n" + LINE, 0, PIPE_BUF + 1),
        (b"x" * PIPE_BUF, 0, PIPE_BUF),
    ],
)
def test_a_pipe_gets_whole_lines_that_fit_into_one_write(
    pipe: tuple[int, int], data: bytes, start: int, size: int
) -> None:
    """Of PIPE_BUF bytes, which other writers can't tear. A line that is longer is written alone."""
    reader, writer = pipe
    assert Output(writer).write(data, start) == size
    assert os.read(reader, 1 << 16) == data[start : start + size]


def test_a_file_is_appended_to(file: tuple[Path, Output]) -> None:
    """After it was emptied, the next line is its first: there is no hole."""
    path, output = file
    assert output.write(LINE * 10, 1000) == 9000
    os.truncate(path, 0)
    output.write(b"next\n", 0)
    assert path.read_bytes() == b"next\n"


def test_another_file_of_that_name_gets_the_next_lines(file: tuple[Path, Output], tmp_path: Path) -> None:
    """That is what logrotate(8) makes after it has renamed ours."""
    path, output = file
    output.follow()
    output.write(b"one\n", 0)
    path.rename(tmp_path / "log.1")
    path.touch()
    output.follow()
    output.write(b"two\n", 0)
    assert (tmp_path / "log.1").read_bytes() == b"one\n"
    assert path.read_bytes() == b"two\n"


@pytest.mark.parametrize("same", [True, False])
def test_standard_error_follows_if_it_is_the_same_file(file: tuple[Path, Output], stderr: int, *, same: bool) -> None:
    """As in `echod run >> log 2>&1`."""
    path, output = file
    if same:
        os.dup2(output.fd, stderr)
    path.unlink()
    path.touch()
    output.follow()
    os.write(stderr, b"a traceback\n")
    assert path.read_bytes() == (b"a traceback\n" if same else b"")


def test_a_file_without_its_name_is_kept(file: tuple[Path, Output]) -> None:
    """What can't be opened in its place is named, as long as that lasts."""
    path, output = file
    path.unlink()
    output.follow()
    assert output.error == "ENOENT"
    assert output.write(b"nobody finds this\n", 0) == 18
    path.symlink_to("/dev/null")
    output.follow()
    assert output.error == "ELOOP"
    path.unlink()
    path.touch()
    output.follow()
    assert output.error is None


def test_a_fifo_in_place_of_the_file_is_not_waited_for(file: tuple[Path, Output]) -> None:
    """Opening it waits for a reader, and all lines with that."""
    path, output = file
    path.unlink()
    os.mkfifo(path)
    output.follow()
    assert output.error == "ENXIO"
    assert output.write(b"nobody finds this\n", 0) == 18


def test_a_file_that_never_had_a_name_has_none_to_lose(tmp_path: Path) -> None:
    """It was removed before, or lies where this process can't see it."""
    path = tmp_path / "log"
    with path.open("w") as stream:
        path.unlink()
        path.touch()
        output = Output(stream.fileno())
        output.follow()
        output.write(b"x\n", 0)
        assert (path.read_bytes(), output.error) == (b"", None)


def test_a_hidden_file_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file that has the name at the start, as in another root directory, is not ours."""
    (tmp_path / "other").touch()
    monkeypatch.setattr(Path, "readlink", lambda _: tmp_path / "other")
    with (tmp_path / "log").open("w") as stream:
        output = Output(stream.fileno())
        output.follow()
        output.write(b"x\n", 0)
    assert (tmp_path / "other").read_bytes() == b""


BROKEN = BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_stream_to_the_journal_is_replaced(stderr: int) -> None:
    """On standard error too; the old one is closed."""
    old, ours = socket.socketpair()
    again, new = socket.socketpair()
    with old, ours, again:
        os.dup2(ours.fileno(), stderr)
        output = Output(ours.fileno(), new.detach)
        assert output.mend(BROKEN)
        output.write(b"line\n", 0)
        os.write(stderr, b"error\n")
        assert again.recv(100) == b"line\nerror\n"
        assert old.recv(100) == b""


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), BROKEN])
def test_nothing_else_is_replaced(pipe: tuple[int, int], error: OSError) -> None:
    """Neither a pipe, nor a stream that has failed otherwise."""
    assert not Output(pipe[1], None if error is BROKEN else lambda: pytest.fail("opened")).mend(error)


def test_a_journal_that_is_stopped_stays_so(pipe: tuple[int, int]) -> None:
    """There is another attempt later."""

    def refused() -> int:
        raise ConnectionRefusedError

    assert not Output(pipe[1], refused).mend(BROKEN)


@pytest.mark.parametrize(("number", "name"), [(errno.ENOSPC, "ENOSPC"), (9999, "9999")])
def test_an_error_is_named(number: int, name: str) -> None:
    """By the number if it has no name."""
    assert module.name_of(OSError(number, "no")) == name
