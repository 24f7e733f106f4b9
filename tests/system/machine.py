"""A Debian, booted with systemd as PID 1 in a namespace of its own: entered, driven and connected to from outside.

The root is not written to: what a machine does to it lies in memory, and is gone with it. Its network is its own loopback.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from tests.support.harness import DEADLINE, LOCAL, read_all, send_all, until

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
_BOOT = """\
mount -t tmpfs tmpfs /run &&
exec systemd-nspawn --directory="$0" --volatile=overlay --boot --register=no --keep-unit --private-network \
    --bind-ro="$1":/mnt --hostname=echod-test --console=pipe
"""
_CLONE_NEWNET = 0x40000000
CONFIG = "/etc/echod/echod.toml"


class Machine:
    """A running system. `packages` is a folder that is mounted on /mnt."""

    def __init__(self, root: Path, packages: Path, log: Path) -> None:
        self._log = log
        with log.open("wb") as console:
            self._nspawn = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", _BOOT, str(root), str(packages)],  # noqa: S607
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        self._threads = ThreadPoolExecutor(1)  # one thread, which is in its network
        self.shipped = ""  # the configuration of the package
        self.since = 0.0  # seconds of the clock

    def __enter__(self) -> Self:
        try:
            self.init = until_some(self._child, what="PID 1")
            until(
                lambda: self.run("systemctl is-system-running", check=False) == "running\n",
                what="the boot",
                deadline=5 * DEADLINE,
            )
            self._threads.submit(self.enter_network).result()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()
        self._nspawn.terminate()  # it tells PID 1 to power off
        try:
            self._nspawn.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()

    def _child(self) -> int | None:
        assert self._nspawn.poll() is None, self._log.read_text()
        pid = self._nspawn.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    return int(child)
        return None

    def enter_network(self) -> None:
        """Take this thread, for ever, into its network; sockets stay where they were made."""
        libc = ctypes.CDLL(None, use_errno=True)
        fd = os.open(f"/proc/{self.init}/ns/net", os.O_RDONLY)
        try:
            assert libc.setns(fd, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        finally:
            os.close(fd)

    # The shell of the operator

    def shell(self, command: str, deadline: float = 5 * DEADLINE) -> subprocess.CompletedProcess[str]:
        """Run a command line in there, as root, to its end."""
        return subprocess.run(
            ["nsenter", "--target", str(self.init), "--all", "env", "-i", _PATH, "sh", "-c", f"cd /; {command}"],  # noqa: S607
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=deadline,
            check=False,
        )

    def run(self, command: str, *, check: bool = True) -> str:
        """Run a command line, which has to succeed, and return what it writes."""
        done = self.shell(command)
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """Write a file in there."""
        Path(f"/proc/{self.init}/root{path}").write_text(text)

    def read(self, path: str) -> str:
        """Read a file in there."""
        return Path(f"/proc/{self.init}/root{path}").read_text()

    def configure(self, text: str) -> None:
        """Write the configuration."""
        self.write(CONFIG, text)

    def show(self, unit: str, *names: str) -> list[str]:
        """Return properties of a unit."""
        values = [self.run(f"systemctl show --value --property={name} {unit}").strip() for name in names]
        assert len(values) == len(names)
        return values

    def state(self, unit: str) -> str:
        return self.show(unit, "ActiveState")[0]

    def pid(self, unit: str) -> int:
        """Return the main process, by its number in there; 0 if there is none."""
        return int(self.show(unit, "MainPID")[0])

    def edit(self, unit: str, text: str) -> None:
        """Add to a unit, as `systemctl edit` does."""
        self.run(f"mkdir -p /etc/systemd/system/{unit}.d")
        self.write(f"/etc/systemd/system/{unit}.d/override.conf", text)
        self.run("systemctl daemon-reload")

    # The journal

    def begin(self) -> None:
        """Look from now on at what the journal gets from now on."""
        self.since = float(self.run("date +%s.%N"))

    def journal(self, unit: str, options: str = "") -> list[str]:
        """Return the messages of a unit, as an operator reads them. The journal may be behind: see `wait_for`."""
        self.run("journalctl --sync")
        return self.run(f"journalctl -u {unit} -o cat --since=@{self.since:.6f} {options}").splitlines()

    def events(self, unit: str, event: str = "") -> list[dict[str, Any]]:
        """Return the daemon's lines, all of which have to be JSON: all, or of one event."""
        lines = [json.loads(line) for line in self.journal(unit)]
        return [line for line in lines if event in ("", line["event"])]

    def wait_for(self, unit: str, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until there are so many lines of an event, and return them."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found[:] = self.events(unit, event)
            return len(found) >= count

        until(look, what=f"{count} {event}", interval=0.2, deadline=5 * DEADLINE)
        return found

    # Clients

    def inside(self, function: Callable[[], _T]) -> _T:
        """Call in its network."""
        return self._threads.submit(function).result()

    def connect(self, port: int) -> socket.socket:
        """Return a connected client."""
        return self.inside(lambda: socket.create_connection((LOCAL, port), DEADLINE))

    def echo(self, port: int, data: bytes = b"hi\n") -> bytes:
        """Send and half-close on a connection of its own; return all that came back."""
        return self.inside(lambda: self.echo_here(port, data))

    def echo_here(self, port: int, data: bytes = b"hi\n") -> bytes:
        """Do the same in a thread that is in its network."""
        with socket.create_connection((LOCAL, port), DEADLINE) as sock:
            send_all(sock, data)
            return read_all(sock)

    def answers(self, port: int) -> bool:
        """Whether there is an echo at all."""
        try:
            return self.echo(port) == b"hi\n"
        except OSError:
            return False


_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def until_some(function: Callable[[], _T | None], what: str) -> _T:
    """Wait until there is something, and return it."""
    found: list[_T] = []

    def look() -> bool:
        result = function()
        if result is not None:
            found.append(result)
        return result is not None

    until(look, what=what)
    return found[0]
