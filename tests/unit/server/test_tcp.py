from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from echod.errors import Refusal
from echod.server.tcp import Listener, bind, url
from tests.support.fakes import has_ipv6
from tests.support.harness import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

UNASSIGNED = "192.0.2.1"
"""An address for documentation (RFC 5737): no machine has it."""


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


@contextmanager
def listening(
    hosts: Sequence[str],
    port: int = 0,
    *,
    backlog: int = 16,
    reuse_port: bool = False,
    beside: Sequence[Listener] = (),
) -> Iterator[list[Listener]]:
    with ExitStack() as stack:
        listeners = bind(hosts, port, backlog=backlog, reuse_port=reuse_port, beside=beside)
        for listener in listeners:
            stack.enter_context(closing(listener.sock))
        yield listeners


def port_of(listener: Listener) -> int:
    return int(listener.sock.getsockname()[1])


def shared(listener: Listener) -> bool:
    """Say whether other sockets may bind what it has."""
    return bool(listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def refusal(hosts: Sequence[str], port: int = 0, *, beside: Sequence[Listener] = ()) -> Refusal:
    """Return what binding is refused with: one line, and no descriptor left behind."""
    before = descriptors()
    with pytest.raises(Refusal) as caught:
        bind(hosts, port, backlog=16, reuse_port=False, beside=beside)
    assert descriptors() == before
    assert len(caught.value.lines) == 1
    return caught.value


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir() if entry.exists()}


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError:
        return False
    return True


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let socket calls go another way on this machine: `kernel(bind=…)`, each given the socket and the arguments."""

    def go(**calls: Callable[..., Any]) -> None:
        methods = {("__init__" if name == "create" else name): call for name, call in calls.items()}
        monkeypatch.setattr(socket, "socket", type("OtherSocket", (socket.socket,), methods))

    return go


def test_a_listener_accepts_on_its_address() -> None:
    """And on no other."""
    with listening(["127.0.0.1"]) as (listener,):
        port = port_of(listener)
        assert listener.sock.getsockname() == ("127.0.0.1", port)
        assert (listener.host, listener.port) == ("127.0.0.1", port)
        assert listener.url == f"tcp://127.0.0.1:{port}"
        assert answers("127.0.0.1", port)
        assert not answers("127.0.0.2", port)


@needs_ipv6
def test_all_hosts_share_a_port() -> None:
    """With port 0 the kernel chooses one for all."""
    with listening(["127.0.0.1", "::1", "127.0.0.2"]) as listeners:
        (port,) = {port_of(listener) for listener in listeners}
        assert [listener.url for listener in listeners] == [
            f"tcp://127.0.0.1:{port}",
            f"tcp://[::1]:{port}",
            f"tcp://127.0.0.2:{port}",
        ]
        assert all(answers(host, port) for host in ("127.0.0.1", "::1", "127.0.0.2"))


@needs_ipv6
def test_a_star_is_one_socket_for_ipv4_and_ipv6() -> None:
    """Whatever net.ipv6.bindv6only says."""
    with listening(["*"]) as (listener,):
        port = port_of(listener)
        assert (listener.host, listener.port, listener.url) == ("*", port, f"tcp://[::]:{port}")
        assert answers("127.0.0.1", port)
        assert answers("::1", port)


@needs_ipv6
def test_the_ipv6_wildcard_leaves_ipv4_to_others() -> None:
    """Whoever writes "::" means IPv6, and may name "0.0.0.0" beside it."""
    with listening(["::"], free_port()) as (listener,):
        assert not answers("127.0.0.1", port_of(listener))
        assert answers("::1", port_of(listener))
    with listening(["::", "0.0.0.0"], free_port()) as listeners:  # noqa: S104 - for a moment
        assert len({port_of(listener) for listener in listeners}) == 1


@pytest.mark.parametrize("missing", [errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT], ids=errno.errorcode.get)
def test_without_ipv6_in_the_kernel_a_star_is_ipv4(kernel: Callable[..., None], missing: int) -> None:
    """As on a kernel that was started with ipv6.disable=1."""

    def create(self: Any, family: int = -1, *arguments: Any, **named: Any) -> None:
        if family == socket.AF_INET6:
            raise OSError(missing, os.strerror(missing))
        super(type(self), self).__init__(family, *arguments, **named)

    kernel(create=create)
    with listening(["*"]) as (listener,):
        assert listener.url == f"tcp://0.0.0.0:{port_of(listener)}"


@needs_ipv6
def test_without_an_ipv6_address_a_star_is_ipv4(kernel: Callable[..., None]) -> None:
    """As with the sysctl net.ipv6.conf.all.disable_ipv6: the socket is made, then bind fails."""

    def no_address(self: Any, address: Any) -> None:
        if self.family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        super(type(self), self).bind(address)

    kernel(bind=no_address)
    before = descriptors()
    with listening(["*"]) as (listener,):
        assert listener.url == f"tcp://0.0.0.0:{port_of(listener)}"
    assert descriptors() == before


def test_a_listener_never_blocks() -> None:
    """A client may be gone before it is accepted."""
    with listening(["127.0.0.1"]) as (listener,):
        assert not os.get_blocking(listener.sock.fileno())


def test_accepted_connections_keep_alive() -> None:
    """They inherit it, and so a peer that vanished is found."""
    with listening(["127.0.0.1"]) as (listener,), socket.create_connection(listener.sock.getsockname()):
        accepted, _ = listener.sock.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


@pytest.mark.parametrize("backlog", [1, 7])
def test_the_backlog_is_what_was_asked_for(backlog: int) -> None:
    """Of a listening socket, tcpi_sacked is the greatest length of its queue (tcp_get_info() in Linux)."""
    with listening(["127.0.0.1"], backlog=backlog) as (listener,):
        information = listener.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        assert struct.unpack_from("=I", information, 28) == (backlog,)


def test_a_port_is_free_again_at_once() -> None:
    """Connections of the last run may be in TIME_WAIT: a restart does not wait for them."""
    with listening(["127.0.0.1"]) as (listener,):
        port = port_of(listener)
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = listener.sock.accept()
            accepted.close()  # first, and so it is this end that waits
            assert client.recv(1) == b""
    with listening(["127.0.0.1"], port) as (listener,):
        assert port_of(listener) == port


def test_several_processes_share_a_port_if_all_of_them_say_so() -> None:
    """One without `reuse_port` is refused."""
    with listening(["127.0.0.1"], reuse_port=True) as (listener,):
        port = port_of(listener)
        with listening(["127.0.0.1"], port, reuse_port=True) as (other,):
            assert port_of(other) == port
        assert refusal(["127.0.0.1"], port).exit_code == os.EX_UNAVAILABLE


def test_an_address_in_use_is_refused() -> None:
    """The message names it; the exit code is 69."""
    with listening(["127.0.0.1"]) as (listener,):
        refused = refusal(["127.0.0.1"], port_of(listener))
        assert refused.lines == (f"echod: {listener.url}: address in use",)
        assert refused.exit_code == os.EX_UNAVAILABLE


@needs_ipv6
def test_a_star_is_refused_if_only_ipv6_is_in_use() -> None:
    """To fall back to IPv4 would be half of what was asked for."""
    with listening(["::1"]) as (listener,):
        port = port_of(listener)
        assert refusal(["*"], port).lines == (f"echod: tcp://*:{port}: address in use",)


def test_an_address_taken_between_bind_and_listen_is_refused(kernel: Callable[..., None]) -> None:
    """Two sockets with SO_REUSEADDR can be bound to it; the first that listens has it."""
    with socket.socket() as rival:
        rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        rival.bind(("127.0.0.1", 0))

        def too_late(self: Any, backlog: int) -> None:
            rival.listen()
            super(type(self), self).listen(backlog)

        kernel(listen=too_late)
        port = rival.getsockname()[1]
        assert refusal(["127.0.0.1"], port).lines == (f"echod: tcp://127.0.0.1:{port}: address in use",)


@pytest.mark.parametrize(
    ("host", "reason"),
    [(UNASSIGNED, "Cannot assign requested address"), ("fe80::1%nowhere", "Name or service not known")],
)
def test_an_address_that_is_not_of_this_machine_is_refused(host: str, reason: str) -> None:
    """With what the system says of it."""
    refused = refusal([host], 7007)
    assert refused.lines == (f"echod: {url(host, 7007)}: can't listen: {reason}",)
    assert refused.exit_code == os.EX_UNAVAILABLE


def test_a_name_is_not_looked_up() -> None:
    """Who asks a name server at start waits for it; settings let no name through in the first place."""
    (line,) = refusal(["localhost"], 7007).lines
    assert line.startswith("echod: tcp://localhost:7007: can't listen: ")


@pytest.mark.parametrize("denied", [errno.EACCES, errno.EPERM], ids=errno.errorcode.get)
@pytest.mark.parametrize("host", ["127.0.0.1", "*"])
@pytest.mark.parametrize(
    ("port", "hint"),
    [
        (7, "port 7 needs CAP_NET_BIND_SERVICE (AmbientCapabilities= in the unit), or take one from 1024 up"),
        (1024, "a security policy of this machine forbids it"),
    ],
)
def test_a_port_without_permission_is_refused_with_the_way_to_get_it(
    kernel: Callable[..., None], denied: int, host: str, port: int, hint: str
) -> None:
    """Root, or an ordinary user in a container, would be let through here. The exit code is 77."""

    def deny(_self: Any, _address: Any) -> None:
        raise PermissionError(denied, os.strerror(denied))

    kernel(bind=deny)
    refused = refusal([host], port)
    assert refused.lines == (f"echod: tcp://{host}:{port}: no permission: {hint}",)
    assert refused.exit_code == os.EX_NOPERM


def test_all_hosts_are_bound_or_none() -> None:
    """If the last one fails, the first is free again for others."""
    with listening(["127.0.0.2"]) as (taken,):
        port = port_of(taken)
        assert refusal(["127.0.0.1", "127.0.0.2"], port).lines == (f"echod: {taken.url}: address in use",)
        with socket.socket() as other:
            other.bind(("127.0.0.1", port))
            other.listen()


def test_with_port_0_another_port_is_tried_if_a_later_host_has_it_in_use(kernel: Callable[..., None]) -> None:
    """The kernel chooses by the first host alone."""
    with ExitStack() as stack:
        tried: list[int] = []
        rivals = [stack.enter_context(socket.socket()) for _ in range(2)]

        def crowded(self: Any, address: tuple[str, int]) -> None:
            if address[0] == "127.0.0.2" and rivals:
                rival = rivals.pop()
                rival.bind(address)
                rival.listen()
                tried.append(address[1])
            super(type(self), self).bind(address)

        kernel(bind=crowded)
        with listening(["127.0.0.1", "127.0.0.2"]) as listeners:
            (port,) = {port_of(listener) for listener in listeners}
            assert len(tried) == 2
            assert port not in tried


def test_with_port_0_trying_ends(kernel: Callable[..., None]) -> None:
    """What no port helps against is refused in the end."""
    tried = []

    def count(self: Any, address: tuple[str, int]) -> None:
        tried.append(address[0])
        super(type(self), self).bind(address)

    kernel(bind=count)
    assert "Cannot assign requested address" in str(refusal(["127.0.0.1", UNASSIGNED]))
    assert tried == ["127.0.0.1", UNASSIGNED] * 8


def test_nothing_is_tried_again_unless_another_port_could_help(kernel: Callable[..., None]) -> None:
    """One host alone can't be in the way of another; a port that was named is the one."""
    tried = []

    def count(self: Any, address: tuple[str, int]) -> None:
        tried.append(address[0])
        super(type(self), self).bind(address)

    with listening(["127.0.0.2"]) as (taken,):
        kernel(bind=count)
        refusal([UNASSIGNED])
        refusal(["127.0.0.1", "127.0.0.2"], port_of(taken))
    assert tried == [UNASSIGNED, "127.0.0.1", "127.0.0.2"]


def test_without_hosts_nothing_is_bound() -> None:
    """As when a reload adds none."""
    assert bind([], 7, backlog=16, reuse_port=False) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("127.0.0.1", "0.0.0.0"),  # noqa: S104 - for a moment
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104
        pytest.param("127.0.0.1", "*", marks=needs_ipv6),
        pytest.param("*", "::1", marks=needs_ipv6),
        pytest.param("::", "*", marks=needs_ipv6),
    ],
)
def test_an_address_may_overlap_with_those_beside_it(before: str, after: str) -> None:
    """These are about to go: nobody is refused on the way from one to the other."""
    with listening([before], free_port()) as (old,):
        assert refusal([after], old.port).exit_code == os.EX_UNAVAILABLE
        with listening([after], old.port, beside=[old]) as (new,):
            assert new.port == old.port
            old.sock.close()
            assert answers("::1" if after == "::1" else "127.0.0.1", new.port)


def test_after_that_nobody_else_may_share(kernel: Callable[..., None]) -> None:
    """The option is for the moment of the bind alone, and is there then."""
    seen = []

    def look(self: Any, address: Any) -> None:
        seen.append((shared(old), bool(self.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))))
        super(type(self), self).bind(address)

    with listening(["127.0.0.1"], free_port()) as (old,):
        kernel(bind=look)
        with listening(["0.0.0.0"], old.port, beside=[old]) as (new,):  # noqa: S104 - for a moment
            assert seen == [(True, True)]
            assert (shared(old), shared(new)) == (False, False)


def test_with_reuse_port_all_of_them_go_on_sharing() -> None:
    """Other processes are to share with them."""
    with (
        listening(["127.0.0.1"], free_port(), reuse_port=True) as (old,),
        listening(["0.0.0.0"], old.port, reuse_port=True, beside=[old]) as (new,),  # noqa: S104 - for a moment
    ):
        assert (shared(old), shared(new)) == (True, True)


def test_a_refusal_leaves_those_beside_it_as_they_were() -> None:
    """They serve on, and share with nobody."""
    with listening(["127.0.0.1"], free_port()) as (old,), listening(["127.0.0.2"], old.port) as (taken,):
        assert refusal(["127.0.0.3", "127.0.0.2"], old.port, beside=[old]).lines == (
            f"echod: {taken.url}: address in use",
        )
        assert not shared(old)
        assert answers("127.0.0.1", old.port)
        assert not answers("127.0.0.3", old.port)


def test_a_listener_on_another_port_is_no_reason_to_share() -> None:
    """Else the port of another daemon with `reuse_port` would be shared with it."""
    with listening(["127.0.0.1"]) as (old,), listening(["127.0.0.1"], reuse_port=True) as (other,):
        assert refusal(["127.0.0.1"], other.port, beside=[old]).lines == (f"echod: {other.url}: address in use",)


@pytest.mark.parametrize(
    ("host", "text"), [("127.0.0.1", "tcp://127.0.0.1:7"), ("::1", "tcp://[::1]:7"), ("::", "tcp://[::]:7")]
)
def test_an_ipv6_address_stands_in_brackets(host: str, text: str) -> None:
    """As in any URL (RFC 3986, 3.2.2)."""
    assert url(host, 7) == text
