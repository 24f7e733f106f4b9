"""TCP listeners: real sockets, with socket calls that fail where this machine would not."""

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
from echod.server import tcp
from echod.server.endpoint import AddressMissing, Endpoint
from echod.server.kernel import has_waiting, saved_syn
from tests.support.fakes import has_ipv6, has_mptcp
from tests.support.harness import free_port, until
from tests.support.rig import endpoints, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from echod.server.endpoint import Listener

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
    free_bind: bool = False,
    beside: Sequence[Listener] = (),
) -> Iterator[list[Listener]]:
    with ExitStack() as stack:
        wanted = endpoints(*hosts, port=port)
        listeners = tcp.bind(wanted, backlog=backlog, reuse_port=reuse_port, free_bind=free_bind, beside=beside)
        for listener in listeners:
            stack.enter_context(closing(listener.sock))
        yield listeners


def port_of(listener: Listener) -> int:
    return int(listener.sock.getsockname()[1])


def shared(listener: Listener) -> bool:
    """Return whether other sockets may bind its address and port."""
    return bool(listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def refusal(hosts: Sequence[str], port: int = 0, *, beside: Sequence[Listener] = ()) -> Refusal:
    """Return the refusal of these, which is one line and leaves no descriptor open."""
    before = descriptors()
    with pytest.raises(Refusal) as caught:
        tcp.bind(endpoints(*hosts, port=port), backlog=16, reuse_port=False, beside=beside)
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
    """Return what replaces socket calls: `kernel(bind=…)`, each a function of the socket and the arguments."""

    def go(**calls: Callable[..., Any]) -> None:
        methods = {("__init__" if name == "create" else name): call for name, call in calls.items()}
        monkeypatch.setattr(socket, "socket", type("OtherSocket", (socket.socket,), methods))

    return go


# What is wanted


def test_the_settings_want_an_endpoint_for_each_host() -> None:
    """All of them have one port."""
    wanted = settings(listen__host=["127.0.0.1", "::1"], listen__port=7)
    assert tcp.endpoints(wanted) == [Endpoint("tcp", "127.0.0.1", 7), Endpoint("tcp", "::1", 7)]


# Binding


@needs_ipv6
def test_the_url_of_a_link_local_address_has_its_interface(kernel: Callable[..., None]) -> None:
    """The kernel tells the address alone. Loopback has no such address, so this one is bound to another."""

    def bind(self: Any, address: tuple[str, int]) -> None:
        super(type(self), self).bind(("::1", address[1]))

    kernel(bind=bind)
    with listening(["fe80::1%lo"]) as (listener,):
        assert listener.url == f"tcp://[fe80::1%lo]:{port_of(listener)}"


def test_a_listener_accepts_on_its_address() -> None:
    """It does not accept on other addresses of this machine."""
    with listening(["127.0.0.1"]) as (listener,):
        port = port_of(listener)
        assert listener.sock.getsockname() == ("127.0.0.1", port)
        assert listener.endpoint == Endpoint("tcp", "127.0.0.1", port)
        assert listener.url == f"tcp://127.0.0.1:{port}"
        assert (listener.backlog, listener.inherited) == (16, False)
        assert answers("127.0.0.1", port)
        assert not answers("127.0.0.2", port)


@needs_ipv6
def test_all_hosts_share_a_port() -> None:
    """With port 0 the kernel chooses one port for all of them."""
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
    """This does not depend on the sysctl net.ipv6.bindv6only."""
    with listening(["*"]) as (listener,):
        port = port_of(listener)
        assert (listener.endpoint, listener.url) == (Endpoint("tcp", "*", port), f"tcp://[::]:{port}")
        assert answers("127.0.0.1", port)
        assert answers("::1", port)


@needs_ipv6
def test_the_ipv6_wildcard_leaves_ipv4_to_others() -> None:
    """The host "::" is IPv6 alone, so "0.0.0.0" may be listed beside it."""
    with listening(["::"], free_port()) as (listener,):
        assert not answers("127.0.0.1", port_of(listener))
        assert answers("::1", port_of(listener))
    with listening(["::", "0.0.0.0"], free_port()) as listeners:  # noqa: S104 - for a moment
        assert len({port_of(listener) for listener in listeners}) == 1


@pytest.mark.parametrize("missing", [errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT], ids=errno.errorcode.get)
def test_without_ipv6_in_the_kernel_a_star_is_ipv4(kernel: Callable[..., None], missing: int) -> None:
    """A kernel that was started with ipv6.disable=1 makes no IPv6 socket."""

    def create(self: Any, family: int = -1, *arguments: Any, **named: Any) -> None:
        if family == socket.AF_INET6:
            raise OSError(missing, os.strerror(missing))
        super(type(self), self).__init__(family, *arguments, **named)

    kernel(create=create)
    with listening(["*"]) as (listener,):
        assert listener.url == f"tcp://0.0.0.0:{port_of(listener)}"


@needs_ipv6
def test_without_an_ipv6_address_a_star_is_ipv4(kernel: Callable[..., None]) -> None:
    """With the sysctl net.ipv6.conf.all.disable_ipv6, the socket is made, and then bind fails."""

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
    """A client may have gone before it is accepted, and then accept would wait for the next one."""
    with listening(["127.0.0.1"]) as (listener,):
        assert not os.get_blocking(listener.sock.fileno())


def test_accepted_connections_keep_alive() -> None:
    """They inherit SO_KEEPALIVE, so a peer that has vanished is found."""
    with listening(["127.0.0.1"]) as (listener,), socket.create_connection(listener.sock.getsockname()):
        accepted, _ = listener.sock.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_a_system_that_refuses_options_is_served_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that is set, a listener needs SO_REUSEADDR alone; SO_REUSEPORT is not touched unless it is wanted."""
    real = socket.socket.setsockopt

    def refuse(self: socket.socket, level: int, name: int, value: Any) -> None:
        if name != socket.SO_REUSEADDR:
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        real(self, level, name, value)

    monkeypatch.setattr(socket.socket, "setsockopt", refuse)
    with listening(["127.0.0.1"]) as (listener,), socket.create_connection(listener.sock.getsockname()):
        listener.sock.accept()[0].close()
        with pytest.raises(Refusal, match="can't listen: Protocol not available"):  # it can't share the port
            tcp.bind(endpoints("0.0.0.0", port=port_of(listener)), backlog=1, reuse_port=False, beside=[listener])  # noqa: S104
    with pytest.raises(Refusal, match="can't listen: Protocol not available"):
        tcp.bind(endpoints("127.0.0.1"), backlog=1, reuse_port=True)


@pytest.mark.parametrize("backlog", [1, 7])
def test_the_backlog_is_what_was_asked_for(backlog: int) -> None:
    """Of a listening socket, tcpi_sacked is the greatest length of its queue (tcp_get_info() in Linux)."""
    with listening(["127.0.0.1"], backlog=backlog) as (listener,):
        information = listener.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        assert struct.unpack_from("=I", information, 28) == (backlog,)


def accepted_buffer(listener: Listener) -> int:
    """Return the size of the receive buffer of a connection that it accepts."""
    with socket.create_connection(listener.sock.getsockname()), listener.sock.accept()[0] as sock:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def test_connections_inherit_the_receive_buffer() -> None:
    """From the first one on: it is set before the socket listens."""
    (listener,) = tcp.bind(endpoints("127.0.0.1"), backlog=16, reuse_port=False, receive_buffer=8192)
    with closing(listener.sock):
        assert accepted_buffer(listener) == 2 * 8192


@pytest.mark.parametrize("inherited", [False, True])
def test_the_syns_of_clients_are_kept(inherited: bool) -> None:  # noqa: FBT001
    """From the first one on, or from the moment at which a socket is adopted."""
    with ExitStack() as stack:
        if inherited:
            theirs = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            sock = stack.enter_context(handed_over(theirs))
            tcp.adopt(sock)
        else:
            (listener,) = stack.enter_context(listening(["127.0.0.1"]))
            sock = listener.sock
        stack.enter_context(socket.create_connection(sock.getsockname()))
        until(lambda: has_waiting(sock))
        assert saved_syn(stack.enter_context(sock.accept()[0]))


def test_a_receive_buffer_can_be_changed_while_it_listens() -> None:
    """For connections to come; also of a socket that was handed over."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
        sock.listen()
        listener = tcp.adopt(sock)
        assert listener
        sock.setblocking(True)
        before = accepted_buffer(listener)
        for size, expected in (("8Ki", 16384), ("16Ki", 32768)):
            tcp.tune(listener, settings(listen__receive_buffer=size))
            assert accepted_buffer(listener) == expected
    assert before > 32768


def test_a_port_is_free_again_at_once() -> None:
    """A restart does not wait for connections of the last run that are in TIME_WAIT."""
    with listening(["127.0.0.1"]) as (listener,):
        port = port_of(listener)
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = listener.sock.accept()
            accepted.close()  # before the client, so this end is in TIME_WAIT
            assert client.recv(1) == b""
    with listening(["127.0.0.1"], port) as (listener,):
        assert port_of(listener) == port


def test_several_processes_share_a_port_if_all_of_them_have_reuse_port() -> None:
    """A process without it is refused."""
    with listening(["127.0.0.1"], reuse_port=True) as (listener,):
        port = port_of(listener)
        with listening(["127.0.0.1"], port, reuse_port=True) as (other,):
            assert port_of(other) == port
        assert refusal(["127.0.0.1"], port).exit_code == os.EX_UNAVAILABLE


def test_an_address_in_use_is_refused() -> None:
    """The message names the address, and the exit code is 69."""
    with listening(["127.0.0.1"]) as (listener,):
        refused = refusal(["127.0.0.1"], port_of(listener))
        assert refused.lines == (f"echod: {listener.url}: address in use: choose another port (listen.port, -p)",)
        assert refused.exit_code == os.EX_UNAVAILABLE


@needs_ipv6
@pytest.mark.parametrize(
    ("kind", "setting"), [("tls", "tls.port"), ("udp", "udp.port"), ("http", "admin.http")], ids=str
)
def test_the_port_of_another_kind_has_a_setting_of_its_own(kind: str, setting: str) -> None:
    """The line names it."""
    endpoint = Endpoint(kind, "127.0.0.1", 0)
    with listening(["127.0.0.1"]) as (taken,), pytest.raises(Refusal) as caught:
        tcp.bind([endpoint._replace(port=port_of(taken))], backlog=1, reuse_port=False)
    assert caught.value.lines[0].endswith(f": address in use: choose another port ({setting})")


def test_a_star_is_refused_if_only_ipv6_is_in_use() -> None:
    """IPv4 alone would be only half of what the settings want."""
    with listening(["::1"]) as (listener,):
        port = port_of(listener)
        assert refusal(["*"], port).lines == (
            f"echod: tcp://*:{port}: address in use: choose another port (listen.port, -p)",
        )


def test_an_address_taken_between_bind_and_listen_is_refused(kernel: Callable[..., None]) -> None:
    """Two sockets with SO_REUSEADDR can both be bound to it; the first one that listens has it."""
    with socket.socket() as rival:
        rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        rival.bind(("127.0.0.1", 0))

        def too_late(self: Any, backlog: int) -> None:
            rival.listen()
            super(type(self), self).listen(backlog)

        kernel(listen=too_late)
        port = rival.getsockname()[1]
        assert refusal(["127.0.0.1"], port).lines == (
            f"echod: tcp://127.0.0.1:{port}: address in use: choose another port (listen.port, -p)",
        )


@pytest.mark.parametrize("host", [UNASSIGNED, "fe80::1%nowhere", "fe80::1%99999999", "fe80::1%lo"])
def test_an_address_that_is_not_of_this_machine_is_missing(host: str) -> None:
    """Its interface may be. It may come later, so it is told apart from what no time can mend, and named."""
    for refused in (refusal([host], 7007), refusal(["127.0.0.1", host])):
        assert isinstance(refused, AddressMissing)
        assert refused.host == host
    refused = refusal([host], 7007)
    assert refused.lines == (f"echod: {Endpoint('tcp', host, 7007)}: can't listen: Cannot assign requested address",)
    assert refused.exit_code == os.EX_UNAVAILABLE


def test_an_address_that_can_never_be_bound_is_refused() -> None:
    """The line has the system's own reason."""
    refused = refusal(["fe80::1%0"], 7007)
    assert refused.lines == ("echod: tcp://[fe80::1%0]:7007: can't listen: Invalid argument",)
    assert not isinstance(refused, AddressMissing)
    assert refused.exit_code == os.EX_UNAVAILABLE


@pytest.mark.parametrize("host", [UNASSIGNED, pytest.param("2001:db8::1", marks=needs_ipv6)])
def test_with_free_bind_an_address_need_not_be_of_this_machine(host: str) -> None:
    """Nobody can connect to it until it is. Addresses that are here are bound as ever."""
    with listening([host, "127.0.0.1"], free_bind=True) as (listener, here):
        assert listener.sock.getsockname()[0] == host
        assert answers("127.0.0.1", port_of(here))


def test_without_free_bind_in_the_kernel_the_address_is_missing(kernel: Callable[..., None]) -> None:
    """And is tried again and again, as without the setting."""

    def refuse(self: Any, level: int, option: int, value: int) -> None:
        if (level, option) == (socket.IPPROTO_IP, 15):
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        super(type(self), self).setsockopt(level, option, value)

    kernel(setsockopt=refuse)
    with pytest.raises(AddressMissing), listening([UNASSIGNED], free_bind=True):
        pass


def test_a_name_is_not_looked_up() -> None:
    """A start must not wait for a name server. The settings accept no names in the first place."""
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
    """The exit code is 77. The error is made up, as root or a user in a container may bind any port."""

    def deny(_self: Any, _address: Any) -> None:
        raise PermissionError(denied, os.strerror(denied))

    kernel(bind=deny)
    refused = refusal([host], port)
    assert refused.lines == (f"echod: tcp://{host}:{port}: no permission: {hint}",)
    assert refused.exit_code == os.EX_NOPERM


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "*"])
def test_sockets_that_this_process_may_not_make_are_a_fault_of_the_configuration(
    kernel: Callable[..., None], host: str
) -> None:
    """The exit code is 78: to try again each second would change nothing."""

    def none(_self: Any, *_arguments: Any, **_named: Any) -> None:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    kernel(create=none)
    refused = refusal([host], 7007)
    why = "no such sockets here: the kernel has none, or RestrictAddressFamilies= in the unit forbids them"
    assert refused.lines == (f"echod: {Endpoint('tcp', host, 7007)}: can't listen: {why}",)
    assert refused.exit_code == os.EX_CONFIG


def test_all_hosts_are_bound_or_none() -> None:
    """If the last one can't be bound, the first one is free again for others."""
    port = free_port()
    with listening(["127.0.0.2"], port) as (taken,):
        assert refusal(["127.0.0.1", "127.0.0.2"], port).lines == (
            f"echod: {taken.url}: address in use: choose another port (listen.port, -p)",
        )
        with socket.socket() as other:
            other.bind(("127.0.0.1", port))
            other.listen()


def test_with_port_0_another_port_is_tried_if_a_later_host_has_it_in_use(kernel: Callable[..., None]) -> None:
    """The kernel chooses a port that is free on the first host."""
    with ExitStack() as stack:
        tried: list[int] = []
        rivals = [stack.enter_context(socket.socket()) for _ in range(2)]

        def crowded(self: Any, address: tuple[str, int]) -> None:
            if address[0] == "127.0.0.2" and rivals:
                rivals[-1].bind(address)  # fails if another program has it: then that is the rival
                rivals.pop().listen()
                tried.append(address[1])
            super(type(self), self).bind(address)

        kernel(bind=crowded)
        with listening(["127.0.0.1", "127.0.0.2"]) as listeners:
            (port,) = {port_of(listener) for listener in listeners}
            assert len(tried) == 2
            assert port not in tried


def test_with_port_0_eight_ports_are_tried(kernel: Callable[..., None]) -> None:
    """An error that does not depend on the port is then refused."""
    tried = []

    def count(self: Any, address: tuple[str, int]) -> None:
        tried.append(address[0])
        super(type(self), self).bind(address)

    kernel(bind=count)
    assert "Cannot assign requested address" in str(refusal(["127.0.0.1", UNASSIGNED]))
    assert tried == ["127.0.0.1", UNASSIGNED] * 8


def test_nothing_is_tried_again_unless_another_port_could_help(kernel: Callable[..., None]) -> None:
    """It can't help with a single host, or with a port that the settings name."""
    tried = []

    def count(self: Any, address: tuple[str, int]) -> None:
        tried.append(address[0])
        super(type(self), self).bind(address)

    with listening(["127.0.0.2"], free_port()) as (taken,):
        kernel(bind=count)
        refusal([UNASSIGNED])
        refusal(["127.0.0.1", "127.0.0.2"], port_of(taken))
    assert tried == [UNASSIGNED, "127.0.0.1", "127.0.0.2"]


def test_without_endpoints_nothing_is_bound() -> None:
    """A reload that adds none binds none, and changes nothing on the listeners beside."""
    with listening(["127.0.0.1"], reuse_port=True) as beside:
        assert tcp.bind([], backlog=16, reuse_port=False, beside=beside) == []
        assert shared(beside[0])


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
def test_an_address_may_overlap_with_those_of_the_listeners_beside_it(before: str, after: str) -> None:
    """They are closed afterwards, so the address can change without a moment in which clients are refused."""
    with listening([before], free_port()) as (old,):
        assert refusal([after], old.endpoint.port).exit_code == os.EX_UNAVAILABLE
        with listening([after], old.endpoint.port, beside=[old]) as (new,):
            assert new.endpoint.port == old.endpoint.port
            old.sock.close()
            assert answers("::1" if after == "::1" else "127.0.0.1", new.endpoint.port)


def test_addresses_overlap_only_while_binding(kernel: Callable[..., None]) -> None:
    """Afterwards no other program may bind them."""
    seen = []

    def look(self: Any, address: Any) -> None:
        seen.append((shared(old), bool(self.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))))
        super(type(self), self).bind(address)

    with listening(["127.0.0.1"], free_port()) as (old,):
        kernel(bind=look)
        with listening(["0.0.0.0"], old.endpoint.port, beside=[old]) as (new,):  # noqa: S104 - for a moment
            assert seen == [(True, True)]
            assert (shared(old), shared(new)) == (False, False)


def test_with_reuse_port_all_of_them_go_on_sharing() -> None:
    """Other processes of the same user may bind them, which is what the setting is for."""
    with (
        listening(["127.0.0.1"], free_port(), reuse_port=True) as (old,),
        listening(["0.0.0.0"], old.endpoint.port, reuse_port=True, beside=[old]) as (new,),  # noqa: S104 - for a moment
    ):
        assert (shared(old), shared(new)) == (True, True)


def test_a_refusal_leaves_the_listeners_beside_as_they_were() -> None:
    """They go on, and no other program may bind their addresses."""
    with listening(["127.0.0.1"], free_port()) as (old,), listening(["127.0.0.2"], old.endpoint.port) as (taken,):
        assert refusal(["127.0.0.3", "127.0.0.2"], old.endpoint.port, beside=[old]).lines == (
            f"echod: {taken.url}: address in use: choose another port (listen.port, -p)",
        )
        assert not shared(old)
        assert answers("127.0.0.1", old.endpoint.port)
        assert not answers("127.0.0.3", old.endpoint.port)


def test_only_listeners_on_the_same_port_may_overlap() -> None:
    """Otherwise a daemon without `reuse_port` could share the port of another daemon that has it."""
    with listening(["127.0.0.1"]) as (old,), listening(["127.0.0.1"], reuse_port=True) as (other,):
        assert refusal(["127.0.0.1"], other.endpoint.port, beside=[old]).lines == (
            f"echod: {other.url}: address in use: choose another port (listen.port, -p)",
        )


# Adopting a socket that systemd hands over


def handed_over(sock: socket.socket) -> socket.socket:
    """Return this socket as it is made of a descriptor."""
    return socket.socket(fileno=os.dup(sock.fileno()))


@pytest.mark.parametrize(
    ("family", "address", "url"),
    [
        (socket.AF_INET, "127.0.0.1", "tcp://127.0.0.1:{}"),
        pytest.param(socket.AF_INET6, "::1", "tcp://[::1]:{}", marks=needs_ipv6),
    ],
)
def test_a_listening_socket_is_adopted(family: int, address: str, url: str) -> None:
    """It keeps its address and backlog. It does not block, and finds peers that have vanished."""
    with socket.socket(family) as theirs, handed_over(theirs) as sock:
        theirs.bind((address, 0))
        theirs.listen(7)
        port = theirs.getsockname()[1]
        assert tcp.adopt(sock) == (Endpoint("tcp", address, port), sock, url.format(port), 7, True, None)
        assert not sock.getblocking()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        with pytest.raises(BlockingIOError):
            sock.accept()


@pytest.mark.skipif(not has_mptcp(), reason="no MPTCP here")
def test_a_listening_socket_of_mptcp_is_adopted() -> None:
    """It is a stream of bytes, too, on the same address (RFC 8684); a client without MPTCP gets plain TCP from it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP) as theirs:
        theirs.bind(("127.0.0.1", 0))
        theirs.listen(7)
        port = theirs.getsockname()[1]
        with handed_over(theirs) as sock:
            adopted = tcp.adopt(sock)
            assert adopted
            assert (adopted.endpoint, adopted.inherited) == (Endpoint("tcp", "127.0.0.1", port), True)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert answers("127.0.0.1", port)


def test_an_adopted_socket_has_no_backlog_where_the_kernel_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket is served all the same."""
    monkeypatch.setattr("echod.server.kernel._tcp_info", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as theirs, handed_over(theirs) as sock:
        adopted = tcp.adopt(sock)
        assert adopted
        assert adopted.backlog is None


def test_a_tcp_socket_that_does_not_listen_is_not_adopted() -> None:
    """With Accept=yes, systemd would hand over connections."""
    with (
        socket.socket() as theirs,
        handed_over(theirs) as sock,
        pytest.raises(ValueError, match="does not listen: the socket unit needs Accept=no"),
    ):
        tcp.adopt(sock)


@pytest.mark.parametrize(
    ("family", "kind"), [(socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_UNIX, socket.SOCK_STREAM)]
)
def test_a_socket_of_another_kind_is_left_alone(family: int, kind: int) -> None:
    """It stays open, because a further kind of listener may adopt it."""
    with socket.socket(family, kind) as theirs, handed_over(theirs) as sock:
        assert tcp.adopt(sock) is None
        assert sock.fileno() >= 0
