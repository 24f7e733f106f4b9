"""Which daemons a command speaks of, and how several are asked."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from echod.client import instances
from echod.client.admin_client import AdminClient
from echod.client.instances import MAIN, Instances
from echod.config.admin_socket import Candidates
from echod.errors import Refusal
from tests.support.canned_daemon import Canned
from tests.support.harness import DEADLINE
from tests.support.in_process import without_privileges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[[str], Canned]]:
    """Let a daemon listen in a directory below, "" for the one itself."""
    with contextlib.ExitStack() as stack:

        def begin(name: str) -> Canned:
            (tmp_path / name).mkdir(exist_ok=True)
            return stack.enter_context(Canned(tmp_path / name / "admin.sock"))

        yield begin


def place(*directories: Path) -> Candidates:
    """Return what is to be tried if these are the directories of services."""
    return Candidates([directory / "admin.sock" for directory in directories], None, directories)


def leave_stale(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def names(found: Instances) -> tuple[list[str], bool]:
    return list(found.daemons), found.several


# Which


def test_a_daemon_without_instances_is_alone(tmp_path: Path, listen: Callable[[str], Canned]) -> None:
    """It is connected to once only: for the request."""
    daemon = listen("")
    daemon.answer(200, 7)
    found = instances.find(place(tmp_path))
    assert names(found) == ([MAIN], False)
    assert found.only.request("GET", "/status") == (200, 7)
    assert daemon.requests == ["GET /status"]


def test_instances_are_found_by_their_directories(tmp_path: Path, listen: Callable[[str], Canned]) -> None:
    """Those that listen; a socket that a dead one has left is skipped, and a directory without one."""
    for name in ("2", "10", "1"):
        listen(name)
    leave_stale(tmp_path / "3" / "admin.sock")
    (tmp_path / "4").mkdir()
    assert names(instances.find(place(tmp_path))) == (["1", "2", "10"], True)


def test_a_daemon_beside_instances_has_a_name(tmp_path: Path, listen: Callable[[str], Canned]) -> None:
    """It comes first."""
    listen("1")
    listen("")
    assert names(instances.find(place(tmp_path))) == ([MAIN, "1"], True)


def test_one_instance_is_told_apart_too(tmp_path: Path, listen: Callable[[str], Canned]) -> None:
    """While the other one restarts, answers keep their form."""
    listen("1")
    leave_stale(tmp_path / "2" / "admin.sock")
    assert names(instances.find(place(tmp_path))) == (["1"], True)


def test_a_daemon_beside_dead_instances_is_alone(tmp_path: Path, listen: Callable[[str], Canned]) -> None:
    """Their directories do not matter."""
    leave_stale(tmp_path / "1" / "admin.sock")
    listen("")
    assert names(instances.find(place(tmp_path))) == ([MAIN], False)


def test_the_first_place_with_a_daemon_counts(tmp_path: Path, listen: Callable[[str], Canned]) -> None:
    """As with a single one: the user's come before those of the system."""
    for name in ("user", "user/1", "system", "system/2"):
        (tmp_path / name).mkdir()
    user, system = tmp_path / "user", tmp_path / "system"
    listen("system/2")
    assert names(instances.find(place(user, system))) == (["2"], True)
    listen("user/1")
    assert names(instances.find(place(user, system))) == (["1"], True)


def test_without_any_the_paths_of_a_single_daemon_are_named(tmp_path: Path) -> None:
    """As if there had never been an instance."""
    leave_stale(tmp_path / "1" / "admin.sock")
    with pytest.raises(Refusal, match=f"no daemon answers at unix:{tmp_path}/admin.sock$") as caught:
        instances.find(place(tmp_path)).only.request("GET", "/status")
    assert caught.value.exit_code == os.EX_UNAVAILABLE


def test_instances_that_this_user_may_not_ask_are_found(tmp_path: Path, listen: Callable[[str], Canned]) -> None:
    """The request then says who may."""
    listen("1")
    (tmp_path / "1").chmod(0)
    try:
        with without_privileges():
            found = instances.find(place(tmp_path))
            assert names(found) == (["1"], True)
            with pytest.raises(Refusal, match=r"instance 1: .* no permission") as caught:
                found.ask(lambda daemon: daemon.request("GET", "/status"))
    finally:
        (tmp_path / "1").chmod(0o700)
    assert caught.value.exit_code == os.EX_NOPERM


def test_an_instance_is_chosen_by_its_name(tmp_path: Path, listen: Callable[[str], Canned]) -> None:
    """It is the only one then."""
    for name in ("", "1", "2"):
        listen(name).answer(200, name)
    for name, answer in (("2", "2"), (MAIN, "")):
        found = instances.choose(name, [tmp_path / "none", tmp_path])
        assert names(found) == ([name], False)
        assert found.only.request("GET", "/status") == (200, answer)


def test_the_name_of_no_instance_is_refused(tmp_path: Path, listen: Callable[[str], Canned]) -> None:
    """With the names that there are."""
    with pytest.raises(Refusal) as caught:
        instances.choose("3", [tmp_path])
    assert caught.value.lines == ("echod: no instance 3 runs, and no other",)
    for name in ("2", "1"):
        listen(name)
    with pytest.raises(Refusal) as caught:
        instances.choose("3", [tmp_path])
    assert caught.value.lines == ("echod: no instance 3 runs; there are: 1, 2",)
    assert caught.value.exit_code == os.EX_UNAVAILABLE


def test_a_command_for_one_daemon_refuses_several(tmp_path: Path, listen: Callable[[str], Canned]) -> None:
    """It names them."""
    for name in ("1", "2"):
        listen(name)
    with pytest.raises(Refusal) as caught:
        _ = instances.find(place(tmp_path)).only
    assert caught.value.lines == ("echod: choose one of the instances by --instance: 1, 2",)
    assert caught.value.exit_code == os.EX_USAGE


# Asking


def of(*names: str) -> Instances:
    return Instances({name: AdminClient([]) for name in names}, several=True)


def test_several_are_asked_at_the_same_time() -> None:
    """One that hangs does not add to the time of the others."""
    barrier = threading.Barrier(3, timeout=DEADLINE)
    answers, failures = of("1", "2", "3").ask(lambda _: barrier.wait())
    assert (list(answers), sorted(answers.values()), failures) == (["1", "2", "3"], [0, 1, 2], {})


def test_what_one_refuses_is_told_beside_the_answers_of_others() -> None:
    """Each line names it, whatever it begins with."""
    several = of("1", "2")

    def question(daemon: AdminClient) -> int:
        if daemon is several.daemons["2"]:
            raise Refusal("echod: stops", "f:1: wrong", exit_code=os.EX_CONFIG)
        return 7

    answers, failures = several.ask(question)
    assert answers == {"1": 7}
    assert failures["2"].lines == ("echod: instance 2: stops", "instance 2: f:1: wrong")
    assert failures["2"].exit_code == os.EX_CONFIG


def test_if_all_refuse_there_is_no_answer() -> None:
    """The exit code is that of the first."""
    several = of("1", "2")
    codes = dict(zip(several.daemons.values(), (os.EX_CONFIG, os.EX_UNAVAILABLE), strict=True))

    def question(daemon: AdminClient) -> None:
        raise Refusal("echod: no", exit_code=codes[daemon])

    with pytest.raises(Refusal) as caught:
        several.ask(question)
    assert caught.value.lines == ("echod: instance 1: no", "echod: instance 2: no")
    assert caught.value.exit_code == os.EX_CONFIG


def test_a_single_daemon_refuses_in_its_own_words() -> None:
    """It has no name for its user."""
    refusal = Refusal("echod: no")

    def question(_: AdminClient) -> None:
        raise refusal

    alone: Any = Instances({MAIN: AdminClient([])}, several=False)
    with pytest.raises(Refusal) as caught:
        alone.ask(question)
    assert caught.value is refusal
