"""The settings: each declared here once, with type, default, bounds, help, and whether a reload may change it.

Knows nothing of the parts that use them, nor of where values come from. From the declarations come the validation, the
flags, the `ECHOD_…` variables and the error messages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_origin

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from echod.values import Count, Duration, Hosts, Networks, Rate, Timeout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

ENV_PREFIX = "ECHOD_"

WhenFull = Literal["reject", "wait"]
Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]
Lifecycle = Literal["all", "closed", "none"]

MAX_WORKERS = 1_000_000
MAX_QUEUE = 100_000_000


def _setting(default: Any, description: str, *, live: bool = True, **bounds: Any) -> Any:  # noqa: ANN401 - as Field has it
    """Declare a setting; one that is not `live` needs a restart to change."""
    return Field(default, description=description, json_schema_extra={"live": live}, **bounds)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Listen(_Section):
    """Where connections are accepted."""

    host: Hosts = _setting(("*",), '"*" for every address, IPv4 and IPv6; or one address; or a list of them')
    port: Count = _setting(7007, "TCP port; 0 takes any free one (the log tells which)", ge=0, le=65535)
    backlog: Count = _setting(1024, "handshakes the kernel completes ahead of accept", live=False, ge=1, le=2**31 - 1)
    reuse_port: bool = _setting(
        default=False, description="several echod processes on one port, the kernel spreads connections", live=False
    )


class PoolSection(_Section):
    """How many connections are served at one time."""

    size: Count = _setting(1024, "workers, all made at start: the most connections at one time", ge=1, le=MAX_WORKERS)
    when_full: WhenFull = _setting(
        "reject", '"reject" accepts and closes at once; "wait" stops accepting, the kernel\'s backlog queues'
    )


class Timeouts(_Section):
    """When connections are ended."""

    idle: Timeout = _setting(300.0, "no byte either way")
    write: Timeout = _setting(30.0, "the peer does not read its echo")
    drain: Duration = _setting(10.0, 'at stop, how long open connections may finish; "off" waits for all of them')


class Access(_Section):
    """Who may connect."""

    allow: Networks = _setting((), "networks that may connect; none means everyone")
    deny: Networks = _setting((), "networks that may not; wins over allow")
    per_source: Count = _setting(0, "connections at one time from one address (IPv6: one /64); 0 is no limit", ge=0)
    accept_rate: Rate = _setting(None, 'new connections per second over all sources, e.g. "500/s", or "off"')

    @field_validator("allow", "deny", "per_source", "accept_rate")
    @classmethod
    def _refuse(cls, value: object) -> object:
        # A rule that is written down and not applied would let in whom it was to keep out.
        if value:
            raise ValueError("is not supported by this version of echod, and a rule must not be ignored silently")
        return value


class Log(_Section):
    """What is logged on standard output."""

    level: Level = _setting("info", "least severe level that is logged")
    format: Format = _setting("auto", '"auto" is "console" on a terminal, else "json"')
    connections: Lifecycle = _setting("all", "which lifecycle lines of connections")
    queue: Count = _setting(
        65536, "lines held while the sink is slow; then the newest are dropped and counted", ge=1, le=MAX_QUEUE
    )


class Admin(_Section):
    """How the running daemon is asked."""

    socket: str = _setting("auto", 'path of the Unix socket, "auto" or "off"', live=False)
    http: str = _setting("off", 'read-only HTTP on "ADDRESS:PORT", or "off"', live=False)


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

    @property
    def name(self) -> str:
        """The dotted name, also that of the flag."""
        return f"{self.section}.{self.key}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"{ENV_PREFIX}{self.section}__{self.key}".upper()

    def from_text(self, text: str) -> object:
        """Return what TOML would have given for a text from a flag or variable; bad text stays, for validation."""
        if self.field.annotation is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        if get_origin(self.field.annotation) is tuple:
            return [item.strip() for item in text.split(",")] if text else []
        return text


def declared() -> Iterator[Setting]:
    """Yield every setting, in the order of the file."""
    for section, field in Settings.model_fields.items():
        for key, setting in field.annotation.model_fields.items():  # type: ignore[union-attr] # each is a _Section
            yield Setting(section, key, setting)
