"""What the kernel knows of a TCP connection: TCP_INFO, the send queue, and how to end it with a reset (tcp(7)).

Knows nothing of workers. The layouts are those of <linux/tcp.h>, which only ever grows at its end.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import termios
from typing import NamedTuple

_INFO = struct.Struct("=B67xI28xI40xI52xQQ")
"""struct tcp_info: tcpi_state, tcpi_rtt, tcpi_total_retrans, tcpi_notsent_bytes, tcpi_bytes_sent, tcpi_bytes_retrans."""
_QUEUED = struct.Struct("=24xI")
_BACKLOG = struct.Struct("=28xI")
_CLOSE_WAIT = 8  # <netinet/tcp.h>: the peer's FIN has arrived
_INT = struct.Struct("=i")
_RESET_ON_CLOSE = struct.pack("=ii", 1, 0)  # struct linger


class Info(NamedTuple):
    """Part of struct tcp_info."""

    peer_finished: bool
    rtt_us: int
    retransmits: int
    written: int
    """Bytes that the program has put into the socket, whether or not they were sent."""


def info(sock: socket.socket) -> Info:
    """Read TCP_INFO. Raises `OSError` if the socket is closed or no TCP socket, or the kernel older than Linux 4.19."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    if len(raw) < _INFO.size:
        raise OSError(errno.ENOPROTOOPT, "TCP_INFO is too short")
    state, rtt, retransmits, unsent, sent, resent = _INFO.unpack(raw)
    return Info(state == _CLOSE_WAIT, rtt, retransmits, sent - resent + unsent)


def queued(listener: socket.socket) -> int:
    """Return how many connections wait on a listening socket to be accepted; there, TCP_INFO's tcpi_unacked says that."""
    return int(_QUEUED.unpack(listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _QUEUED.size))[0])


def backlog(listener: socket.socket) -> int:
    """Return how many may wait on a listening socket; there, TCP_INFO's tcpi_sacked says that."""
    return int(_BACKLOG.unpack(listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BACKLOG.size))[0])


def unacknowledged(sock: socket.socket) -> int:
    """Return the bytes in the kernel's send queue (SIOCOUTQ): sent or not, the peer has not acknowledged them."""
    return int(_INT.unpack(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(_INT.size)))[0])


def reset_on_close(sock: socket.socket) -> None:
    """Make close(2) send RST and free what the kernel still holds for the peer."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
