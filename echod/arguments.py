"""What the words of the command line mean: settings as flags, and the forms of other arguments."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from echod.client.control import ConnectionId, User
from echod.config import load, render
from echod.config.settings import ENV_FILE, declared
from echod.config.types import network
from echod.text import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from echod.config.settings import Setting
    from echod.networks import Network

_CONNECTION = re.compile(r"(?:([^/]+)/)?([0-9]{1,19})")
_USER = re.compile(r"uid:([0-9]{1,10})")
_SHORT_FLAGS = {"listen.port": ("-p", "--port"), "pool.size": ("-n", "--pool-size")}


def add_settings(parser: argparse.ArgumentParser, declared: Sequence[Setting]) -> None:
    """Add the flags of these settings, and that of the file."""
    if not declared:
        return
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        type=Path,
        help=f"TOML file (default: ${ENV_FILE}, else {load.DEFAULT_FILE})",
    )
    settings = parser.add_argument_group(
        "settings",
        "Each setting is also an environment variable and a key of the file, shown in brackets with the default. A flag"
        " takes precedence over a variable, a variable over the file. Separate the items of a list by commas:"
        " --listen.host 127.0.0.1,::1.",
    )
    for setting in declared:
        described = f"{render.described(setting)} [{setting.variable}] [{setting.key} = {setting.default}]"
        settings.add_argument(
            *_SHORT_FLAGS.get(setting.name, ()),
            f"--{setting.name}",
            dest=setting.name,
            metavar=setting.form.word,
            help=described.replace("%", "%%"),
        )


def flags_of(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the settings that were given as flags."""
    values = vars(arguments)
    return {setting.name: values[setting.name] for setting in declared() if values.get(setting.name) is not None}


def source(text: str) -> Network | User:
    """Return a network or an address, or a user of a Unix socket."""
    found = _USER.fullmatch(text)
    try:
        return User(int(found[1])) if found else network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def connection(text: str) -> ConnectionId:
    """Return the number of a connection, with its instance if that is given."""
    found = _CONNECTION.fullmatch(text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be the number of a connection, got {shown(text)}")
    return ConnectionId(found[1] or "", int(found[2]))


def instance(text: str) -> str:
    """Return the name of an instance."""
    if not text or "/" in text or text in (".", ".."):
        raise argparse.ArgumentTypeError(f"must be the name of an instance, such as 1, got {shown(text)}")
    return text
