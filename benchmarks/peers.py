"""The echo in Python as others write it, and the floor where there is no C compiler.

    python -m benchmarks.peers NAME PORT [reuse_port]
    python -m benchmarks.peers tls PORT CERTIFICATE

`protocol` is asyncio's Protocol on asyncio's own loop, `uvloop` the example of uvloop's own repository: the same on
uvloop, and `tls` that with uvloop's TLS. `streams` are asyncio's streams on uvloop. `floor` is one read and one write on
edge-triggered epoll; it can share its port.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import select
import socket
import ssl
import sys

import uvloop

HOST = "127.0.0.1"
BACKLOG = 1024
BUFFER = 256 * 1024


class Echo(asyncio.Protocol):
    """The least that echoes."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # it serves streams only
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Write back."""
        self.transport.write(data)


async def protocol(port: int, context: ssl.SSLContext | None = None) -> None:
    """Serve with a protocol."""
    server = await asyncio.get_running_loop().create_server(Echo, HOST, port, backlog=BACKLOG, ssl=context)
    await server.serve_forever()


def tls(certificate: str) -> ssl.SSLContext:
    """Return what echod has too: no tickets, which cost a handshake two messages more."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    context.num_tickets = 0
    return context


async def streams(port: int) -> None:
    """Serve with a coroutine for each connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(BUFFER):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, HOST, port, backlog=BACKLOG)
    await server.serve_forever()


def floor(port: int, *, shared: bool) -> None:
    """Serve with nothing but system calls; what the kernel doesn't take at once is waited for, as it is the rest's turn."""
    poll = select.epoll()
    open_now: dict[int, socket.socket] = {}
    rest: dict[int, memoryview] = {}
    with socket.create_server((HOST, port), backlog=BACKLOG, reuse_port=shared) as listener:
        poll.register(listener, select.EPOLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == listener.fileno():
                    sock = listener.accept()[0]
                    sock.setblocking(False)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    open_now[sock.fileno()] = sock
                    poll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
                elif not _serve(open_now[fd], rest):
                    open_now.pop(fd).close()
                    rest.pop(fd, None)


def _serve(sock: socket.socket, rest: dict[int, memoryview]) -> bool:
    """Echo what there is; say whether the connection goes on."""
    fd = sock.fileno()
    data = rest.pop(fd, None)
    try:
        while True:
            if data is None:
                data = memoryview(sock.recv(BUFFER))
                if not data:
                    return False
            data = data[sock.send(data) :] or None
    except BlockingIOError:
        if data:
            rest[fd] = data
        return True
    except OSError:
        return False


def main(name: str, port: int, *more: str) -> None:
    """Serve until killed."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if name == "floor":
        floor(port, shared=bool(more))
    elif name == "protocol":
        asyncio.run(protocol(port))
    elif name == "uvloop":
        uvloop.run(protocol(port))
    elif name == "tls":
        uvloop.run(protocol(port, tls(*more)))
    elif name == "streams":
        uvloop.run(streams(port))
    else:
        sys.exit(f"no such peer: {name}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
