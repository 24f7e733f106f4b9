"""The settings: each is declared here once, with type, default, bounds, help, and whether a reload may change it.

Everything else follows from the declaration: validation, flags, `ECHOD_…` variables, error messages, what a reload
accepts, and all that `make reference` writes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from echod.config.places import PemFile
from echod.config.types import (
    MAX_PORT,
    Buffer,
    Count,
    Duration,
    Form,
    Hosts,
    HttpAddress,
    ListenPath,
    Mode,
    Names,
    Networks,
    Port,
    Rate,
    SocketPath,
    Timeout,
)
from echod.text import literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

ENV_PREFIX = "ECHOD_"
ENV_FILE = "ECHOD_CONFIG"
"""The variable that holds the path of the file."""
ENV_INSTANCE = "ECHOD_INSTANCE"
"""The variable that names this process among several; the unit template sets it, and log lines have it."""

Verify = Literal["none", "optional", "required"]
WhenFull = Literal["reject", "wait"]
Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]
Lifecycle = Literal["all", "closed", "used", "none"]

LEVELS = get_args(Level)
"""The most verbose first."""
VERIFIES = get_args(Verify)
"""The one that admits the most clients first."""

MAX_WORKERS = 1_000_000
MAX_DATAGRAM = 65_527  # bytes: of UDP over IPv6 (RFC 768, RFC 8200, 4.5); over IPv4, 20 less
MAX_QUEUE = 100_000_000


def _setting(default: Any, description: str, *, live: bool = True, **bounds: Any) -> Any:  # noqa: ANN401 - as Field has it
    """Declare a setting. `live`: a reload may change it. The bounds are `ge` and `le`."""
    return Field(default, description=description, json_schema_extra={"live": live}, **bounds)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Listen(_Section):
    """Where connections are accepted."""

    host: Hosts = _setting(
        ("*",),
        'Addresses to listen on: "*" for all of IPv4 and IPv6, one numeric address, or a list of up to 16.',
    )
    port: Count = _setting(7007, "TCP port; 0 takes any free port, which the log names.", ge=0, le=MAX_PORT)
    backlog: Count = _setting(
        1024,
        "The most connections that the kernel queues until they are accepted, capped at net.core.somaxconn.",
        live=False,
        ge=1,
        le=2**31 - 1,
    )
    reuse_port: bool = _setting(
        default=False,
        description="Lets several echod processes listen on the same port; the kernel spreads connections over them.",
        live=False,
    )
    receive_buffer: Buffer = _setting(
        None,
        'The kernel\'s receive buffer of new connections, e.g. "32Ki", which bounds their memory; "auto" lets it grow.',
    )
    free_bind: bool = _setting(
        default=False,
        description="Also listens on addresses that this machine does not have yet, such as that of a standby.",
    )
    unix: ListenPath = _setting("off", 'Unix stream socket to listen on as well: a path, "@name" (abstract), or "off".')
    unix_mode: Mode = _setting(
        0o660, "File mode of listen.unix. A client needs permission to write to the file to connect."
    )


class Tls(_Section):
    """TLS on a port of its own. A reload reads the files again, also if no setting has changed."""

    port: Port = _setting(
        None,
        'TCP port for TLS, on the addresses of listen.host; 0 takes any free port, and "off" serves no TLS.',
    )
    certificate: PemFile = _setting("", "PEM file with the certificate and the chain to its authority.")
    key: PemFile = _setting("", "PEM file with the private key; if empty, it is in the file of tls.certificate.")
    client_ca: PemFile = _setting("", "PEM file with the authorities that sign the certificates of clients.")
    verify: Verify = _setting(
        "none",
        'Certificates of clients: "none" asks for none, "optional" checks one that the client has, "required" insists on it.',
    )


class Udp(_Section):
    """The echo over UDP, on the addresses of listen.host. What is more than a rate, or too large, is dropped."""

    port: Port = _setting(None, 'UDP port; 0 takes any free port, which the log names; "off" serves no UDP.')
    rate: Rate = _setting(
        100.0, "The most datagrams per second from one IPv4 address or one IPv6 /64 network, with bursts of one second."
    )
    total_rate: Rate = _setting(10_000.0, "The most datagrams per second over all sources, with bursts of one second.")
    max_size: Count = _setting(1472, "The most bytes in a datagram that is echoed.", ge=1, le=MAX_DATAGRAM)


class PoolSection(_Section):
    """How many connections are served at one time."""

    size: Count = _setting(
        1024,
        "Workers, all created at start: the most connections at one time, over all listeners.",
        ge=1,
        le=MAX_WORKERS,
    )
    when_full: WhenFull = _setting(
        "reject",
        'When all workers are busy, "reject" closes a new connection at once, and "wait" leaves it in the backlog.',
    )


class Timeouts(_Section):
    """When connections are closed: a duration such as "500ms", "30s", "5m" or "1h30m", or "off" for never."""

    idle: Timeout = _setting(300.0, "Closes a connection on which no byte has moved in either direction for this long.")
    write: Timeout = _setting(30.0, "Closes a connection whose client has taken none of the echo for this long.")
    lifetime: Timeout = _setting(None, "Closes a connection that has lasted for this long, however busy it is.")
    handshake: Timeout = _setting(
        5.0, "Closes a connection whose PROXY header (access.proxies) and TLS handshake together take longer than this."
    )
    lame_duck: Timeout = _setting(
        None,
        "How long a daemon that is to stop still accepts, but is not ready, so that load balancers turn to others.",
    )
    drain: Duration = _setting(
        10.0, 'How long open connections may continue when the daemon stops; "off" waits until all have ended.'
    )


class Access(_Section):
    """Who may connect. Any other client is closed as soon as it is accepted. A reload closes no open connection."""

    allow: Networks = _setting(
        (), 'Networks that may connect, e.g. ["10.0.0.0/8", "2001:db8::/32"]; an empty list allows everyone.'
    )
    deny: Networks = _setting((), "Networks that may not connect, even if access.allow contains them.")
    per_source: Count = _setting(
        0,
        "The most connections at one time from one IPv4 address or one IPv6 /64 network; 0 sets no limit.",
        ge=0,
        le=MAX_WORKERS,
    )
    accept_rate: Rate = _setting(
        None,
        'The most new connections per second over all sources, e.g. "500/s", with bursts of one second; "off" sets no limit.',
    )
    proxies: Networks = _setting(
        (),
        "Networks of load balancers: their connections must begin with a PROXY header, v1 or v2, which names the client.",
    )


class Log(_Section):
    """What is logged on standard output."""

    level: Level = _setting("info", "The least severe level that is logged.")
    format: Format = _setting(
        "auto",
        '"json" writes one object a line, "console" text for people; "auto" is console on a terminal, else json.',
    )
    connections: Lifecycle = _setting(
        "all",
        'Which of connection.opened and connection.closed are logged: "all"; "closed", the latter only; "used", the latter'
        ' only of clients that have sent a byte; or "none".',
    )
    queue: Count = _setting(
        65536,
        "The most lines kept in memory while the output is slow; any more are dropped and counted.",
        ge=1,
        le=MAX_QUEUE,
    )


class Admin(_Section):
    """How the running daemon is queried and controlled."""

    socket: SocketPath = _setting(
        "auto",
        'Unix socket for status, connections, kill and reload: a path, "off", or "auto" for admin.sock in'
        " $RUNTIME_DIRECTORY, else in $XDG_RUNTIME_DIR/echod.",
        live=False,
    )
    http: HttpAddress = _setting(
        "off",
        "Address of a read-only HTTP server for a status page, /metrics, /livez, /readyz and /status,"
        ' e.g. "127.0.0.1:9107", "*:9107" for every address, or "off".',
        live=False,
    )
    names: Names = _setting(
        (),
        "Host names by which admin.http may be asked besides this machine's own and localhost,"
        ' e.g. ["echod.example.net"].',
        live=False,
    )


class Settings(BaseSettings):
    """All settings. Immutable: a reload builds a new object."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", validate_default=False)

    listen: Listen = Listen()
    tls: Tls = Tls()
    udp: Udp = Udp()
    pool: PoolSection = PoolSection()
    timeouts: Timeouts = Timeouts()
    access: Access = Access()
    log: Log = Log()
    admin: Admin = Admin()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings passes all of them
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use the sources that are passed to the constructor, in the order of precedence."""
        return tuple(init_settings.init_kwargs["sources"])  # type: ignore[attr-defined] # it is an InitSettingsSource


class Setting(NamedTuple):
    """A declared setting."""

    section: str
    key: str
    field: FieldInfo
    live: bool

    @property
    def name(self) -> str:
        """The dotted name, which is also the flag's."""
        return f"{self.section}.{self.key}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"{ENV_PREFIX}{self.section}__{self.key}".upper()

    @property
    def default(self) -> str:
        """The default as TOML writes it."""
        return literal(Settings.model_construct().model_dump(mode="json")[self.section][self.key])

    @property
    def form(self) -> Form:
        """How the value is written."""
        for entry in self.field.metadata:
            if isinstance(entry, Form):
                return entry
        if self.field.annotation is bool:
            return Form("BOOL", {"type": "boolean"})
        choices = get_args(self.field.annotation)
        return Form("|".join(choices), {"enum": list(choices)})

    @property
    def bounds(self) -> dict[str, int]:
        """The lower and the upper bound, by JSON Schema's names."""
        limits = (("minimum", "ge"), ("maximum", "le"))
        return {
            name: getattr(entry, limit)
            for entry in self.field.metadata
            for name, limit in limits
            if hasattr(entry, limit)
        }

    def of(self, settings: Settings) -> Any:  # noqa: ANN401 - any setting's value
        """Return its value in these settings."""
        return getattr(getattr(settings, self.section), self.key)

    def from_text(self, text: str) -> object:
        """Return the TOML value for the text of a flag or a variable. Invalid text is returned as it is, for validation.

        The items of a list are separated by commas, or written in JSON. An empty list is "[]": an empty text more likely
        comes from a variable that was not set.
        """
        if self.field.annotation is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        if get_origin(self.field.annotation) is tuple:
            try:
                return json.loads(text) if text.startswith("[") else [item.strip() for item in text.split(",")]
            except (ValueError, RecursionError):
                return text
        return text


def declared() -> Iterator[Setting]:
    """Yield every setting, in the order of the file."""
    for section, field in Settings.model_fields.items():
        for key, setting in field.annotation.model_fields.items():  # type: ignore[union-attr] # each is a _Section
            yield Setting(section, key, setting, live=setting.json_schema_extra["live"])
