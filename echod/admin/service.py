"""The admin service: answers about the running daemon, on a Unix socket and, read-only, on `admin.http`."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from echod import unix
from echod.admin.http import HttpServer
from echod.admin.routes import Routes
from echod.admin.status import Meter
from echod.config import admin_socket
from echod.config.types import split_http_address
from echod.errors import Refusal
from echod.server import tcp
from echod.server.endpoint import AddressMissing, Endpoint

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from echod.admin.status import Running
    from echod.config import settings
    from echod.log import Log
    from echod.server.endpoint import Listener
    from echod.unix import UnixSocket


class Admin:
    """Both servers, as far as they are on. Raises `Refusal` if one can't listen; then there is none."""

    def __init__(self, loop: asyncio.AbstractEventLoop, running: Running, settings: settings.Admin) -> None:
        self._loop = loop
        self._log = log = running.log
        self._measuring: asyncio.Task[None] | None = None
        self._servers: list[HttpServer] = []
        self._socket = _open_socket(log, settings.socket)
        self._trouble = ""  # why the socket can't be made anew, as the log has it
        self._http = settings.http
        self._http_trouble = ""  # why it can't be bound now, as the log has it
        with contextlib.ExitStack() as undo:
            if self._socket:
                undo.callback(self._socket.sock.close)
                undo.callback(self._socket.close)  # first, as in our own
            try:
                listeners = _bind(running, settings.http)
            except AddressMissing as missing:
                self._note_http_trouble(missing)
                listeners = []
            undo.pop_all()
        self._meter = Meter(running.server)
        self._routes = Routes(running, self._meter, settings.names)
        if self._socket:
            self._local = HttpServer(loop, log, self._socket.sock, self._routes.local)
            self._servers.append(self._local)
            log.info("admin.started", listener=self._socket.url)
        self._serve_http(listeners)

    def _serve_http(self, listeners: Sequence[Listener]) -> None:
        for listener in listeners:
            self._servers.append(HttpServer(self._loop, self._log, listener.sock, self._routes.remote))
            self._log.info("admin.started", listener=listener.url)

    def check(self) -> None:
        """Take the counts from which rates are computed, and make a socket anew that is gone. Called every now and then."""
        if self._meter.is_due:
            self._measuring = self._loop.create_task(self._meter.measure())
        self._keep_socket()
        if self._http_trouble:
            self._retry_http()

    def _retry_http(self) -> None:
        """Listen on `admin.http` if its address has come by now."""
        try:
            listeners = _listeners(self._http)
        except Refusal as refusal:
            self._note_http_trouble(refusal)
        else:
            self._http_trouble = ""
            self._serve_http(listeners)

    def _note_http_trouble(self, refusal: Refusal) -> None:
        trouble = f"admin.http: {refusal.lines[0].removeprefix('echod: ')}; it is tried again each second"
        if trouble != self._http_trouble:
            self._http_trouble = trouble
            self._log.warning("config.warning", message=trouble)

    def reopen(self) -> None:
        """Make the socket anew if it is not where it was, or say why that can't be done."""
        self._trouble = ""
        self._keep_socket()

    def _keep_socket(self) -> None:
        """Listen at the path again if the socket is not there: a clean-up of /run or the end of a session has removed it."""
        if not self._socket or self._socket.is_there:
            return
        try:
            self._socket = self._socket.again()
        except Refusal as refusal:
            trouble = f"{refusal.lines[0].removeprefix('echod: ')}; the daemon's own socket is gone"
            if trouble != self._trouble:
                self._trouble = trouble
                self._log.warning("config.warning", message=trouble)
            return
        self._local.move(self._socket.sock)
        self._log.info("admin.started", listener=self._socket.url)

    async def close(self) -> None:
        """Stop answering."""
        if self._socket:
            self._socket.close()  # first: as long as we listen, no other daemon takes the path
            self._socket = None  # a check that comes meanwhile does not make it anew
        if self._measuring:
            self._measuring.cancel()
        for server in self._servers:
            await server.close()


def _open_socket(log: Log, setting: str) -> UnixSocket | None:
    path = admin_socket.of_daemon(setting, os.environ)
    if path is None:
        return None
    try:
        return unix.UnixSocket(path, "admin.socket", make_directory=setting == "auto")
    except Refusal as refusal:
        if setting != "auto":
            raise
        # With "auto" this path was not asked for: a second daemon of the same user goes on without a socket.
        trouble = refusal.lines[0].removeprefix("echod: ")
        log.warning("config.warning", message=f"{trouble}; the daemon goes on without an admin socket")
        return None


def _listeners(setting: str) -> list[Listener]:
    host, port = split_http_address(setting)
    endpoints = [Endpoint("http", host, port)] if host else []
    return tcp.bind(endpoints, backlog=unix.BACKLOG, reuse_port=False)


def _bind(running: Running, setting: str) -> list[Listener]:
    try:
        return _listeners(setting)
    except AddressMissing:  # `Admin` tries it again
        raise
    except Refusal as refusal:
        lines = [line.replace("echod: ", "echod: admin.http: ", 1) for line in refusal.lines]
        if running.server.listeners.inherited:
            # Clients are waiting in a socket of systemd. If the start failed, they would hang, and nobody would see why. The
            # sandbox of systemd/socket-activated.conf has no network at all.
            running.log.warning("config.warning", message=f"{lines[0].removeprefix('echod: ')}: it is not served")
            return []
        raise Refusal(*lines, exit_code=refusal.exit_code) from None
