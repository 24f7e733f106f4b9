"""The running daemons of a machine: one, or several instances, which the commands then ask all at the same time.

An instance listens in a directory of its own below that of the service, and has the directory's name. Socket files at which
nobody listens are skipped. An instance that fails to answer doesn't keep the others from being shown: it is reported beside
them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from echod import unix
from echod.client.admin_client import TIMEOUT, AdminClient, unavailable
from echod.config import admin_socket
from echod.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from echod.config.admin_socket import Candidates

_T = TypeVar("_T")
MAIN = "main"
"""The name of a daemon that listens beside the instances, in the directory of the service itself."""


class Instances(NamedTuple):
    """The daemons that a command speaks of, by name."""

    daemons: dict[str, AdminClient]
    several: bool
    """Whether answers have to tell instances apart. It depends on where they listen, and not on how many run now, so that
    programs get answers of the same form while one of two restarts."""

    @property
    def url(self) -> str:
        """The sockets of the last requests."""
        return " or ".join(daemon.url for daemon in self.daemons.values())

    @property
    def only(self) -> AdminClient:
        """The one daemon. Raises `Refusal` with exit code 64 if there are several."""
        if len(self.daemons) > 1:
            line = f"echod: choose one of the instances by --instance: {', '.join(self.daemons)}"
            raise Refusal(line, exit_code=os.EX_USAGE)
        (daemon,) = self.daemons.values()
        return daemon

    def ask(self, question: Callable[[AdminClient], _T]) -> tuple[dict[str, _T], dict[str, Refusal]]:
        """Ask all daemons at the same time; return the answers by name, and the refusals of those that gave none.

        Raises `Refusal` if none gave an answer.
        """
        if not self.several:
            ((name, daemon),) = self.daemons.items()
            return {name: question(daemon)}, {}
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - takes milliseconds, and few machines need it

        answers, failures = {}, {}
        with ThreadPoolExecutor(len(self.daemons)) as threads:
            futures = {name: threads.submit(question, daemon) for name, daemon in self.daemons.items()}
        for name, future in futures.items():
            try:
                answers[name] = future.result()
            except Refusal as refusal:
                failures[name] = self.about(name, refusal)
        if not answers:
            raise combined(failures.values())
        return answers, failures

    def about(self, name: str, refusal: Refusal) -> Refusal:
        """Return the refusal with the instance's name in each line, if there are several."""
        if not self.several:
            return refusal
        lines = [
            f"echod: instance {name}: {line.removeprefix('echod: ')}"
            if line.startswith("echod: ")
            else f"instance {name}: {line}"
            for line in refusal.lines
        ]
        return Refusal(*lines, exit_code=refusal.exit_code)


def combined(refusals: Iterable[Refusal]) -> Refusal:
    """Return one refusal with the lines of all, and the exit code of the first."""
    first, *more = refusals
    return Refusal(*first.lines, *(line for each in more for line in each.lines), exit_code=first.exit_code)


def find(candidates: Candidates, patience: float = TIMEOUT) -> Instances:
    """Return the daemons of the likeliest place that has any. An answer may take `patience` seconds."""
    beside = {
        path: admin_socket.instances(path.parent) if path.parent in candidates.directories else {}
        for path in candidates.paths
    }
    if any(beside.values()):
        for path, instances in beside.items():
            running = _running({MAIN: path, **instances})
            if running.keys() == {MAIN}:
                break
            if running:
                return Instances(
                    {name: AdminClient([each], None, patience) for name, each in running.items()}, several=True
                )
    return Instances({MAIN: AdminClient(candidates.paths, candidates.trouble, patience)}, several=False)


def choose(name: str, directories: Sequence[Path], patience: float = TIMEOUT) -> Instances:
    """Return the instance of this name. Raises `Refusal` with exit code 69 if it does not run."""
    others: list[str] = []
    for directory in directories:
        running = _running({MAIN: directory / admin_socket.NAME, **admin_socket.instances(directory)})
        if name in running:
            return Instances({name: AdminClient([running[name]], None, patience)}, several=False)
        others += running
    raise unavailable(
        f"no instance {name} runs" + (f"; there are: {', '.join(others)}" if others else ", and no other")
    )


def _running(sockets: Mapping[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in sockets.items() if _is_listening(path)}


def _is_listening(path: Path) -> bool:
    try:
        unix.connect(path, timeout=0).close()
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        return False
    except OSError:  # its backlog is full, or this user may not connect: the request says so
        return True
    return True
