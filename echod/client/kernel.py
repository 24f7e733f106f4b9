"""What this machine's kernel knows of a connection (TCP_INFO, tcp(7)): the network alone, without the program at the other end.

The layout is that of <linux/tcp.h>.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, NamedTuple

_INFO = struct.Struct("=24xI40xII24xI40xII")


class Tcp(NamedTuple):
    """Part of struct tcp_info, times in seconds."""

    rtt: float
    """The smoothed time from a segment to its acknowledgement; a delayed one (RFC 1122, 4.2.3.2) makes it longer."""
    rttvar: float
    minrtt: float
    """The least one of the last five minutes: the network's, without the delay of an acknowledgement."""
    retrans: int
    """Segments sent again."""
    is_acknowledged: bool
    """Whether the other kernel has all that we have written."""

    def fields(self) -> dict[str, Any]:
        """Return it under the names of ss(8)."""
        return {"rtt": self.rtt, "rttvar": self.rttvar, "minrtt": self.minrtt, "retrans": self.retrans}


def tcp(sock: socket.socket) -> Tcp | None:
    """Read it; `None` where the kernel doesn't tell, as for a Unix socket."""
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
        unacked, rtt, rttvar, retrans, unsent, minrtt = _INFO.unpack(raw)
    except (OSError, struct.error):  # refused, closed, or too short
        return None
    return Tcp(rtt / 1e6, rttvar / 1e6, minrtt / 1e6, retrans, not unacked and not unsent)
