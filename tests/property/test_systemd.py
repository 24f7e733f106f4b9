"""The variables that a service manager sets, with any values."""

from __future__ import annotations

import os
from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st

from echod.errors import Refusal
from echod.systemd import Service, is_journal

NUMBERS = st.sampled_from(
    ["0", "1", "2", "3", "-1", "1e3", "²", "٣", "1" * 30, "18446744073709551615", str(os.getpid())]
)
TEXTS = NUMBERS | st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12)
NAMES = [
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "JOURNAL_STREAM",
]
LAST = 4
"""The number of descriptors that exist."""


def set_inheritable(fd: int, inheritable: bool) -> None:  # noqa: FBT001 - as in os
    assert not inheritable
    if fd > LAST:
        raise OSError(9, "Bad file descriptor")


@settings(deadline=None, max_examples=100)
@given(
    st.fixed_dictionaries(
        {}, optional={name: st.just(str(os.getpid())) if name == "LISTEN_PID" else TEXTS for name in NAMES}
    )
)
@example({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1" * 19})
@example({"NOTIFY_SOCKET": "/" + "x" * 200})
@example({"NOTIFY_SOCKET": "@" + "\udcff"})
def test_any_environment_is_a_manager_none_or_refused(environ: dict[str, str]) -> None:
    """No message raises an error, whatever the address; a refusal is one line."""
    with mock.patch.object(os, "set_inheritable", set_inheritable):
        try:
            service = Service(environ)
        except Refusal as refusal:
            (line,) = refusal.lines
            assert line.isprintable()
            return
    service.ready(lambda: "ready")
    service.reloading()
    service.look(lambda: "status")
    service.stopping(lambda: "stopping")
    assert all(fd <= LAST for fd, _ in service.inherited)
    assert is_journal(0, environ) in {True, False}
    assert not {name for name in environ if name.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_"))}
    if service._socket:
        service._socket.close()
