"""The settings: each declared here once, with type, default, bounds, help, and whether a reload may change it.

Knows nothing of the parts that use them, nor of where values come from. From the declarations come the validation, the
flags, the `ECHOD_…` variables, the error messages, what a reload may change, and all that `reference` writes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from echod.config.types import (
    MAX_PORT,
    Count,
    Duration,
    Form,
    Hosts,
    HttpAddress,
    Networks,
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
"""The variable that names the file."""

WhenFull = Literal["reject", "wait"]
Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]
Lifecycle = Literal["all", "closed", "none"]

LEVELS = get_args(Level)
"""The most talkative first."""

MAX_WORKERS = 1_000_000
MAX_QUEUE = 100_000_000


def _setting(default: Any, description: str, *, live: bool = True, **bounds: Any) -> Any:  # noqa: ANN401 - as Field has it
    """Declare a setting: its default, what it means, whether a reload may change it, and its bounds (`ge`, `le`)."""
    return Field(default, description=description, json_schema_extra={"live": live}, **bounds)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Listen(_Section):
    """Where connections are accepted."""

    host: Hosts = _setting(
        ("*",),
        '"*" for every address, IPv4 and IPv6; or one address; or up to 16, e.g. ["127.0.0.1", "::1"]. Not names.',
    )
    port: Count = _setting(
        7007,
        "TCP port. 0 takes any free one; the log tells which. The echo service's own is 7, which needs CAP_NET_BIND_SERVICE.",
        ge=0,
        le=MAX_PORT,
    )
    backlog: Count = _setting(
        1024,
        "Handshakes that the kernel completes ahead of accept. It caps them at net.core.somaxconn.",
        live=False,
        ge=1,
        le=2**31 - 1,
    )
    reuse_port: bool = _setting(
        default=False,
        description="Several echod processes on one port, one per core: the kernel spreads the connections.",
        live=False,
    )


class PoolSection(_Section):
    """How many connections are served at one time."""

    size: Count = _setting(
        1024,
        "Workers, all made at start: the most connections at one time. Each needs a file descriptor.",
        ge=1,
        le=MAX_WORKERS,
    )
    when_full: WhenFull = _setting(
        "reject",
        'When all workers are busy: "reject" accepts and closes at once; "wait" stops accepting, and the kernel\'s backlog'
        " queues.",
    )


class Timeouts(_Section):
    """When connections are ended: "500ms", "30s", "5m", "1h30m", or "off" for never."""

    idle: Timeout = _setting(300.0, "A connection ends when no byte has moved either way for so long.")
    write: Timeout = _setting(30.0, "A connection ends when the peer has not taken any of its echo for so long.")
    drain: Duration = _setting(
        10.0, 'At stop, how long open connections may finish before they are closed. "off": as long as they like.'
    )


class Access(_Section):
    """Who may connect. Who may not is closed as soon as it is accepted. A reload leaves open connections alone."""

    allow: Networks = _setting((), 'Networks that may connect, e.g. ["10.0.0.0/8", "2001:db8::/32"]; empty: everyone.')
    deny: Networks = _setting((), "Networks that may not connect; wins over allow.")
    per_source: Count = _setting(
        0,
        "Connections at one time from one address; in IPv6, from one /64 network. 0: no limit.",
        ge=0,
        le=MAX_WORKERS,
    )
    accept_rate: Rate = _setting(
        None, 'New connections per second over all sources, e.g. "500/s", with a burst of one second; or "off".'
    )


class Log(_Section):
    """What is logged on standard output."""

    level: Level = _setting("info", "The least severe level that is logged.")
    format: Format = _setting(
        "auto", '"json": one object a line; "console": for people; "auto": console on a terminal, else json.'
    )
    connections: Lifecycle = _setting(
        "all", 'Which lines about connections: "all", "closed" (without connection.opened) or "none".'
    )
    queue: Count = _setting(
        65536,
        "Lines held while the sink is slow; beyond, the newest are dropped and counted (log.dropped).",
        ge=1,
        le=MAX_QUEUE,
    )


class Admin(_Section):
    """How the running daemon is asked."""

    socket: SocketPath = _setting(
        "auto",
        'Unix socket for status, connections, kill and reload: a path, "off", or "auto": admin.sock in'
        " $RUNTIME_DIRECTORY, else in $XDG_RUNTIME_DIR/echod, else none. Of several daemons, each needs its own."
        " `systemctl reload` needs it; without: `systemctl kill -s HUP`.",
        live=False,
    )
    http: HttpAddress = _setting(
        "off",
        'Read-only HTTP for /metrics, /livez, /readyz and /status, e.g. "127.0.0.1:9107"; or "off". To be asked by an address,'
        " localhost, or this machine's host name, with or without a domain.",
        live=False,
    )


class Settings(BaseSettings):
    """All settings. Immutable: a reload builds another one."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", validate_default=False)

    listen: Listen = Listen()
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
        """Take the sources that are handed to the constructor, highest precedence first."""
        return tuple(init_settings.init_kwargs["sources"])  # type: ignore[attr-defined] # it is an InitSettingsSource


class Setting(NamedTuple):
    """One declared setting."""

    section: str
    key: str
    field: FieldInfo
    live: bool

    @property
    def name(self) -> str:
        """The dotted name, also that of the flag."""
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
        """The least and the most, by JSON Schema's names."""
        limits = (("minimum", "ge"), ("maximum", "le"))
        return {
            name: getattr(entry, limit)
            for entry in self.field.metadata
            for name, limit in limits
            if hasattr(entry, limit)
        }

    def of(self, settings: Settings) -> Any:  # noqa: ANN401 - any setting's value
        """Return the value that these settings have."""
        return getattr(getattr(settings, self.section), self.key)

    def from_text(self, text: str) -> object:
        """Return what TOML would have given for a text from a flag or variable; bad text stays, for validation.

        Lists are separated by commas, or in JSON, as pydantic-settings has them; an empty one is "[]": an empty text is
        rather a variable that should have been set.
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
