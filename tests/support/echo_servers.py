"""Echo services that misbehave, each in one way, for the tests of the client. They serve in threads of the test."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

from tests.support.harness import LOCAL, reset
from tests.support.idle_clock import CROWD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Behaviour = Callable[[socket.socket], None]

_READ = 1 << 18


class _Client(socket.socket):
    """A client's connection. Who reads from it rests until something is there."""

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        CROWD.wait_for(self)
        return super().recv(size, flags)


@contextlib.contextmanager
def serving(behave: Behaviour, listener: socket.socket | None = None) -> Iterator[int]:
    """Let each connection behave like this; yield the port."""
    listener = listener or socket.create_server((LOCAL, 0))
    threads: list[threading.Thread] = []
    clients: list[socket.socket] = []

    def start(target: Callable[..., None], *arguments: socket.socket) -> threading.Thread:
        def run() -> None:
            try:
                target(*arguments)
            finally:
                CROWD.leave()

        thread = threading.Thread(target=run)
        CROWD.join()
        thread.start()
        return thread

    def accept() -> None:
        with contextlib.suppress(OSError):  # shut down
            while True:
                CROWD.wait_for(listener)
                client = _Client(fileno=listener.accept()[0].detach())
                if (
                    client.family != socket.AF_UNIX
                ):  # an echo that Nagle's algorithm holds back waits for a timer of the kernel
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients.append(client)
                threads.append(start(serve, client))

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            behave(client)

    accepting = start(accept)
    try:
        name = listener.getsockname()
        yield name[1] if isinstance(name, tuple) else 0
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        listener.close()
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            while thread.is_alive():
                CROWD.end_sleep()
                thread.join(0.01)


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """Listen, and never accept: the kernel establishes connections all the same."""
    with socket.create_server((LOCAL, 0)) as listener:
        yield listener.getsockname()[1]


@contextlib.contextmanager
def datagrams(
    answers: Callable[[bytes], Iterable[bytes]],
    family: socket.AddressFamily = socket.AF_INET,
    sources: set[Any] | None = None,
) -> Iterator[int]:
    """Send what this makes of each datagram; yield the port. `sources` gets the addresses of those who ask."""
    host = LOCAL if family == socket.AF_INET else "::1"
    with socket.socket(family, socket.SOCK_DGRAM) as sock, socket.socket(family, socket.SOCK_DGRAM) as stopper:
        sock.bind((host, 0))
        stopper.bind((host, 0))

        def serve() -> None:
            while True:
                CROWD.wait_for(sock)
                data, address = sock.recvfrom(1 << 16)
                if address == stopper.getsockname():
                    CROWD.leave()
                    return
                if sources is not None:
                    sources.add(address)
                for answer in answers(data):
                    sock.sendto(answer, address)

        thread = threading.Thread(target=serve)
        CROWD.join()
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            stopper.sendto(b"", sock.getsockname())
            while thread.is_alive():
                CROWD.end_sleep()
                thread.join(0.01)


def changed(change: Callable[[bytes], bytes]) -> Behaviour:
    """Send back what this makes of each read."""

    def behave(client: socket.socket) -> None:
        while data := client.recv(_READ):
            client.sendall(change(data))

    return behave


right = changed(lambda data: data)


def flipped(offset: int) -> Behaviour:
    """Change one byte of each read."""
    return changed(lambda data: data[:offset] + bytes([data[offset] ^ 0xFF]) + data[offset + 1 :])


def delayed(seconds: float) -> Behaviour:
    """Send each read back after this time."""

    def wait(data: bytes) -> bytes:
        CROWD.sleep(seconds)
        return data

    return changed(wait)


def ending(after: int, *, answer: Callable[[bytes], bytes], by_reset: bool = False) -> Behaviour:
    """Echo so many reads rightly, answer the next one like this, and end the connection."""

    def behave(client: socket.socket) -> None:
        for _ in range(after):
            client.sendall(client.recv(_READ))
        data = client.recv(_READ)
        client.sendall(answer(data))
        if by_reset:
            reset(client)

    return behave


def silent(client: socket.socket) -> None:
    """Read, and never answer."""
    while client.recv(_READ):
        pass


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """Let the first connection behave like the first one, and so on; the last one is for all others."""
    left = list(behaviours)

    def behave(client: socket.socket) -> None:
        (left.pop(0) if len(left) > 1 else left[0])(client)

    return behave
