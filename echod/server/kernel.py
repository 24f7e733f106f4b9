"""Queries and sets socket state in the kernel (tcp(7), poll(2)).

The layouts are those of <linux/tcp.h>, which only ever grows at its end. An emulator, an odd container or an old kernel may
refuse any of these questions. The answer is then `None`: it is for people to look at, and nothing else depends on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import termios
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import _socket

_INFO = struct.Struct("=B15xI4xI16xI4xI4xI4xII4xI4xI8xI40xII8xQQQQ8xQQ")
"""struct tcp_info: the fields of `Info`, in its order."""
_UNMEASURED = 0xFFFFFFFF
"""The tcpi_min_rtt of a connection of which no round trip has been measured."""
_QUEUED = struct.Struct("=24xI")
_BACKLOG = struct.Struct("=28xI")
_SO_PROTOCOL = 38  # <asm-generic/socket.h>; in the socket module since Python 3.15
_CLOSE_WAIT = 8  # <netinet/tcp.h>: the peer's FIN has arrived
_SO_BUF_LOCK = 72  # <asm-generic/socket.h>
_JIFFY = 0.01
"""Seconds by which the kernel's times may be too long: it counts in ticks, of 10 ms at the most (CONFIG_HZ)."""
_TCP_SAVE_SYN, _TCP_SAVED_SYN = 27, 28  # <linux/tcp.h>
_LONGEST_SYN = 256
"""Bytes of the two headers of a SYN: 120 at the most with IPv4, and 100 with IPv6 without extension headers."""
_INT = struct.Struct("=i")
_SO_MEMINFO = 55  # <asm-generic/socket.h>, since Linux 4.12
_MEMINFO = struct.Struct("=32xI")
"""<linux/sock_diag.h>: the last of nine counters, SK_MEMINFO_DROPS. It is that of SO_RXQ_OVFL, without a message each time."""
_CREDENTIALS = struct.Struct("=iII")
"""struct ucred: pid, uid, gid."""
_CHUNK = 1 << 18
_RESET_ON_CLOSE = struct.pack("=ii", 1, 0)  # struct linger


class Info(NamedTuple):
    """Part of struct tcp_info, in the kernel's units: `_us` is microseconds. Other units are computed only when asked for."""

    state: int
    snd_mss: int
    unacked: int
    last_data_sent: int  # milliseconds ago
    last_data_recv: int  # likewise
    path_mtu: int
    rtt_us: int
    rttvar_us: int
    snd_cwnd: int
    reordering: int
    retrans: int
    """Segments sent again, over the life of the connection."""
    notsent_bytes: int
    min_rtt_us: int
    delivery_rate: int
    busy_us: int
    rwnd_limited_us: int
    sndbuf_limited_us: int
    bytes_sent: int  # those that were sent again too
    bytes_retrans: int

    @property
    def peer_finished(self) -> bool:
        """Whether the peer's FIN has arrived."""
        return self.state == _CLOSE_WAIT

    @property
    def rtt(self) -> float:
        """The smoothed round-trip time in seconds."""
        return self.rtt_us / 1e6

    @property
    def written(self) -> int:
        """Bytes that the program has put into the socket, whether or not they were sent."""
        return self.bytes_sent - self.bytes_retrans + self.notsent_bytes

    @property
    def quiet(self) -> float:
        """Seconds since data was last received or sent, or a few milliseconds less."""
        return max(0.0, min(self.last_data_sent, self.last_data_recv) / 1e3 - _JIFFY)

    @property
    def is_empty(self) -> bool:
        """Whether the peer has acknowledged all that was written."""
        return not self.unacked and not self.notsent_bytes

    def fields(self) -> dict[str, Any]:
        """Return it as log lines and answers have it, under the names of ss(8). Times are in seconds.

        `busy` is the time in which there was something to send or to be acknowledged. In parts of it, the peer's receive
        window kept more from being sent (`rwnd_limited`), or the send buffer did (`sndbuf_limited`).
        """
        return {
            "rtt": self.rtt_us / 1e6,
            "rttvar": self.rttvar_us / 1e6,
            "minrtt": None if self.min_rtt_us == _UNMEASURED else self.min_rtt_us / 1e6,
            "retrans": self.retrans,
            "mss": self.snd_mss,
            "pmtu": self.path_mtu,
            "cwnd": self.snd_cwnd,
            "reordering": self.reordering,
            "delivery_rate": self.delivery_rate,
            "busy": self.busy_us / 1e6,
            "rwnd_limited": self.rwnd_limited_us / 1e6,
            "sndbuf_limited": self.sndbuf_limited_us / 1e6,
        }


def info(sock: _socket.socket) -> Info | None:
    """Read TCP_INFO, which has these fields since Linux 4.19. Of an MPTCP connection, it tells of one path only: `None`."""
    if sock.proto == socket.IPPROTO_MPTCP and _is_mptcp(sock):
        return None
    raw = _tcp_info(sock, _INFO)
    return None if raw is None else Info._make(raw)


def _is_mptcp(sock: _socket.socket) -> bool:
    """Say whether the peer talks MPTCP; accept(2) of an MPTCP listener returns a TCP socket for a client that doesn't."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL) == socket.IPPROTO_MPTCP
    except OSError:
        return True


def queued(listener: socket.socket) -> int | None:
    """Return how many connections wait to be accepted; for a listening socket, tcpi_unacked says that."""
    raw = _tcp_info(listener, _QUEUED)
    return None if raw is None else int(raw[0])


def backlog(listener: socket.socket) -> int | None:
    """Return how many connections may wait to be accepted; for a listening socket, tcpi_sacked says that."""
    raw = _tcp_info(listener, _BACKLOG)
    return None if raw is None else int(raw[0])


def _tcp_info(sock: _socket.socket, layout: struct.Struct) -> Any:  # noqa: ANN401 - what the layout says
    if sock.family == socket.AF_UNIX:
        return None
    try:
        return layout.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, layout.size))
    except (OSError, struct.error):  # refused, or too short
        return None


def save_syns(listener: socket.socket) -> None:
    """Let the kernel keep the headers of each SYN from now on, until `saved_syn` or the end of the connection.

    An MPTCP listener refuses that.
    """
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.IPPROTO_TCP, _TCP_SAVE_SYN, 1)


def saved_syn(sock: _socket.socket) -> bytes:
    """Return the IP header and the TCP header of the client's SYN. The kernel then forgets them.

    Empty if it has none: with SYN cookies, and for a client that connected before `save_syns`.
    """
    if sock.family == socket.AF_UNIX:
        return b""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, _TCP_SAVED_SYN, _LONGEST_SYN)
    except OSError:
        return b""


def set_receive_buffer(listener: socket.socket, size: int | None) -> None:
    """Let connections that this listener accepts have a receive buffer of this size, or one that grows as TCP sees fit.

    The kernel doubles the size, for its own books (socket(7)), and caps it at net.core.rmem_max. Before Linux 5.14, a
    size can't be taken back.
    """
    with contextlib.suppress(OSError):
        if size is None:
            listener.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, 0)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def drops(sock: _socket.socket) -> int | None:
    """Return how many datagrams found the queue of this socket full, modulo 2**32 (SO_MEMINFO, SK_MEMINFO_DROPS)."""
    try:
        return int(_MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[0])
    except (OSError, struct.error):  # as in `_tcp_info`
        return None


def has_waiting(listener: socket.socket) -> bool:
    """Say whether a connection waits to be accepted, or a datagram to be read."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))


def unacknowledged(sock: _socket.socket) -> int | None:
    """Return the bytes in the send queue (SIOCOUTQ): sent or not, the peer has not acknowledged them."""
    try:
        return int(_INT.unpack(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(_INT.size)))[0])
    except (OSError, ValueError):  # ValueError: the socket is closed
        return None


def peer_credentials(sock: _socket.socket) -> tuple[int, int] | None:
    """Return the process number and the user of the client of a Unix socket (SO_PEERCRED, unix(7))."""
    try:
        pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    except (OSError, struct.error):  # as in `_tcp_info`
        return None
    return pid, uid


def end_unread(sock: _socket.socket) -> None:
    """End an accepted Unix socket in both directions, so that its client reads EOF, also if it has sent already.

    close(2) with unread input gives the client ECONNRESET instead. After the end it can't send any more, and what it has
    sent is bounded by its send buffer. Raises `OSError` if the client has gone.
    """
    sock.shutdown(socket.SHUT_RDWR)
    while sock.recv(_CHUNK):
        pass


def reset_on_close(sock: _socket.socket) -> None:
    """Make close(2) send RST and free what the kernel still holds for the peer. Where that is refused, it sends FIN."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
