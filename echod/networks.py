"""IP networks, and sets of addresses given as networks."""

from __future__ import annotations

import ipaddress
import socket
from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

EVERYONE: tuple[Network, ...] = (ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("::/0"))
"""Networks that hold every address."""


class Ranges:
    """A set of addresses, given as networks. A look-up takes O(log n)."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._by_version: dict[int, tuple[list[int], list[int]]] = {4: ([], []), 6: ([], [])}
        for each in sorted(networks, key=lambda network: int(network.network_address)):
            starts, ends = self._by_version[each.version]
            start, end = int(each.network_address), int(each.broadcast_address)
            if ends and start <= ends[-1] + 1:  # overlaps or touches the range before it
                ends[-1] = max(ends[-1], end)
            else:
                starts.append(start)
                ends.append(end)

    def __contains__(self, address: str) -> bool:
        """Return whether this numeric address is in the set. It must not be IPv4-mapped; a zone does not count."""
        version, family = (6, socket.AF_INET6) if ":" in address else (4, socket.AF_INET)
        number = int.from_bytes(socket.inet_pton(family, address.partition("%")[0]))
        return self._holds(version, number, number)

    def covers(self, network: Network) -> bool:
        """Return whether every address of the network is in the set."""
        return self._holds(network.version, int(network.network_address), int(network.broadcast_address))

    def covers_all(self, networks: Iterable[Network]) -> bool:
        """Return whether every address of all these networks is in the set."""
        return all(map(self.covers, networks))

    def _holds(self, version: int, start: int, end: int) -> bool:
        starts, ends = self._by_version[version]
        index = bisect_right(starts, start) - 1
        return index >= 0 and end <= ends[index]
