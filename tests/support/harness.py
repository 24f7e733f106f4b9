"""The real process, owned: started on a configuration, read line by line, signalled, stopped."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.support.log_document import check_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

DEADLINE = 20 * float(os.environ.get("TEST_TIME_FACTOR", "1"))
"""Seconds after which a test stops waiting for what should have happened. One unit, to stretch on slow machines."""

ECHOD = [sys.executable, "-m", "echod"]
LOCAL = "127.0.0.1"


def environment(**variables: str) -> dict[str, str]:
    """Return this environment without what is the developer's own echod's, and with `variables`."""
    theirs = ("ECHOD_", "XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY")
    return {name: value for name, value in os.environ.items() if not name.startswith(theirs)} | variables


def command(
    *words: str, env: Mapping[str, str] | None = None, prefix: Sequence[str] = (), pass_fds: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command of echod to its end."""
    return subprocess.run(
        [*prefix, *ECHOD, *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env=environment(**env or {}),
        stdin=subprocess.DEVNULL,
        pass_fds=pass_fds,
    )


class Echod:
    """A running daemon: on leaving the context it is stopped, and has to have stopped well."""

    def __init__(
        self,
        config: str = "",
        *,
        directory: Path,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        stdout: int = subprocess.PIPE,
        port: int = 0,
        prefix: Sequence[str] = (),
        program: Sequence[str] = ECHOD,
        pass_fds: Sequence[int] = (),
        patience: float = DEADLINE,
    ) -> None:
        """By default the port is any free one, on 127.0.0.1; `config` and `flags` come on top of that.

        With a `stdout` of the caller's, the log is not read. With a `port`, the daemon has started when it listens
        there, and not when its log says so. It has to start within `patience` seconds.
        """
        self._patience = patience
        self.file = directory / "echod.toml"
        if config or not self.file.exists():
            self.file.write_text(config)
        self.lines: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self.answers: list[dict[str, Any]] = []  # with which reloads ended
        self._by_event: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._new_line = threading.Condition()
        self._port = port
        variables = {"ECHOD_LISTEN__PORT": str(port), "ECHOD_LISTEN__HOST": LOCAL} if "[listen]" not in config else {}
        written = self.file.read_text() if self.file.is_file() else ""  # not a FIFO that the daemon is to read
        if not any("admin" in each.lower() or "RUNTIME" in each for each in (written, *flags, *(env or {}))):
            variables["ECHOD_ADMIN__SOCKET"] = "off"  # with "auto", each daemon would warn that there is none
        self.process = subprocess.Popen(
            [*prefix, *program, "run", "-c", str(self.file), *flags],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=environment(**variables | dict(env or {})),
            start_new_session=True,
            pass_fds=pass_fds,
        )
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self.process.stdout:
            self.read_log()
        try:
            if self._port:
                until(
                    lambda: self.process.poll() is not None or listens(self._port),
                    what=f"listening on {self._port}",
                    deadline=self._patience,
                )
            else:
                self.wait_for("daemon.started", deadline=self._patience)
        except BaseException as error:
            self.process.kill()
            error.add_note(f"exit code {self.process.wait()}, standard error: {self.errors()}")
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                assert self.stop() == 0, self.errors()
                assert self.errors() == ""
                for line in self.lines:
                    check_line(line)
        finally:
            self.kill()

    # The log

    def read_log(self) -> None:
        """Begin to read standard output."""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def finish_reading(self) -> None:
        """Read to the end of standard output; the process has exited."""
        if self._reader:
            self._reader.join(DEADLINE)

    def _read(self) -> None:
        assert self.process.stdout
        for raw in self.process.stdout:
            with self._new_line:
                line = json.loads(raw)
                self.raw.append(raw)
                self.lines.append(line)
                if line["event"] in ("config.reloaded", "config.rejected"):
                    self.answers.append(line)
                self._by_event[line["event"]].append(line)
                self._new_line.notify_all()
        with self._new_line:
            self._new_line.notify_all()

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of one event so far."""
        with self._new_line:
            return list(self._by_event[event])

    def wait_for(self, event: str, *, count: int = 1, deadline: float = DEADLINE) -> dict[str, Any]:
        """Wait until there are `count` lines of the event; return the last of these."""
        with self._new_line:
            arrived = self._new_line.wait_for(lambda: len(self._by_event[event]) >= count, deadline)
        found = self.events(event)
        assert arrived, f"{len(found)} of {count} {event} after {deadline} s; last lines: {self.raw[-5:]}"
        return found[count - 1]

    def errors(self) -> str:
        """Return standard error; the process has exited."""
        assert self.process.stderr
        return "" if self.process.stderr.closed else self.process.stderr.read().decode()

    # The configuration

    def reload(self, config: str) -> dict[str, Any]:
        """Write the file anew, send HUP, and return the line that answers."""
        with self._new_line:
            number = len(self.answers)
        self.file.write_text(config)
        self.signal(signal.SIGHUP)
        with self._new_line:
            arrived = self._new_line.wait_for(lambda: len(self.answers) > number, DEADLINE)
            assert arrived, f"no answer to HUP after {DEADLINE} s; last lines: {self.raw[-5:]}"
            return self.answers[number]

    # Clients

    @property
    def port(self) -> int:
        if not self._port:
            self._port = int(self.wait_for("listener.started")["listener"].rpartition(":")[2])
        return self._port

    def connect(self, *, receive_buffer: int | None = None, source: str = LOCAL) -> socket.socket:
        """Return a connected socket with a timeout. Another `source` is any address of 127.0.0.0/8."""
        sock = socket.socket(socket.AF_INET)
        try:
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if source != LOCAL:
                sock.bind((source, 0))
            sock.settimeout(DEADLINE)
            sock.connect((LOCAL, self.port))
        except BaseException:
            sock.close()
            raise
        return sock

    def echo(self, data: bytes) -> bytes:
        """Send and half-close on a connection of its own; return all that came back."""
        with self.connect() as sock:
            send_all(sock, data)
            return read_all(sock)

    def closed(self, sock: socket.socket) -> dict[str, Any]:
        """Wait for the end of the connection whose client has this socket, still open; return its line.

        After thousands of connections, ports come again: connect from another source then.
        """
        client = dict(zip(("address", "port"), sock.getsockname(), strict=True))

        def lines() -> list[dict[str, Any]]:
            return [line for line in self._by_event["connection.closed"] if line["client"] == client]

        with self._new_line:
            assert self._new_line.wait_for(lines, DEADLINE), f"not closed after {DEADLINE} s: {self.raw[-5:]}"
            (line,) = lines()
        return line

    # The process

    @contextlib.contextmanager
    def deadline(self) -> Iterator[None]:
        """End what blocks without a deadline of its own, such as reading a pipe: kill the process when it has passed."""
        timer = threading.Timer(DEADLINE, self.process.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    @contextlib.contextmanager
    def suspended(self, *, stop: Callable[[], None] | None = None) -> Iterator[None]:
        """Stop the process meanwhile: what clients do waits in the kernel, and then is there all at once."""
        (stop or functools.partial(self.signal, signal.SIGSTOP))()
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def wait(self) -> int:
        """Return the exit code once the process and its log have ended."""
        code = self.process.wait(DEADLINE)
        self.finish_reading()
        return code

    def kill(self) -> None:
        """End the process if it still runs, and let go of its pipes."""
        self.process.kill()
        self.process.wait()
        self.finish_reading()
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()

    def stop(self) -> int:
        """Terminate, at once if connections are left open, and return the exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            if self.events("daemon.started"):
                self.wait_for("daemon.draining")
                self.signal(signal.SIGTERM)
        return self.wait()

    def memory(self, kind: str = "VmRSS") -> int:
        """Return the resident memory in bytes, or another kind of those in proc(5)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(kind))

    def descriptors(self) -> int:
        """Return the number of open descriptors."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def limit_descriptors(self, soft: int) -> int:
        """Set the soft limit of descriptors of the running process, and return the one it had."""
        before, hard = resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
        return before

    def processor_time(self) -> float:
        """Return the seconds of user and system time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """Return a port that is free on every address.

    It is none of those that the kernel gives to clients (ip(7), ip_local_port_range): one of theirs, on any address,
    would keep a listener on all addresses away.
    """
    while True:
        # Not by `random`: who shuffles tests may have seeded it, in each process alike.
        port = secrets.choice(range(10_000, 32_000))
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """Hold a free port that a listener with SO_REUSEADDR can still bind, and nobody else gets."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((LOCAL, free_port()))
        yield sock.getsockname()[1]


@contextlib.contextmanager
def opened(fifo: Path) -> Iterator[int]:
    """Open for writing once somebody has opened it for reading."""
    fds: list[int] = []

    def try_to_open() -> bool:
        with contextlib.suppress(OSError):  # ENXIO: nobody reads yet
            fds.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(fds)

    until(try_to_open, what="the configuration being read")
    try:
        yield fds[0]
    finally:
        os.close(fds[0])


def listens(port: int) -> bool:
    """Ask the kernel, without connecting, whether somebody listens on this port of 127.0.0.1."""
    return f": 0100007F:{port:04X} 00000000:0000 0A " in Path("/proc/net/tcp").read_text()


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    sock.close()


def send_all(sock: socket.socket, data: bytes) -> None:
    """Send and half-close."""
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def read_all(sock: socket.socket) -> bytes:
    """Read to the end of the stream."""
    chunks = []
    while chunk := sock.recv(1 << 18):
        chunks.append(chunk)
    return b"".join(chunks)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """Read `size` bytes, or less if the stream ends."""
    data = bytearray()
    while len(data) < size and (chunk := sock.recv(min(1 << 18, size - len(data)))):
        data += chunk
    return bytes(data)


def until(
    condition: Callable[[], object], *, deadline: float = DEADLINE, what: str = "condition", interval: float = 0.01
) -> None:
    """Wait for what gives no event of its own, such as the kernel's books; ask each `interval` seconds."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"{what} not met after {deadline} s"
        time.sleep(interval)
