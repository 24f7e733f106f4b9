"""Any valid settings are rendered as TOML that is read as the same."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from echod.config import load as config
from echod.config import render
from echod.config.settings import Setting, Settings, declared
from echod.errors import Refusal
from tests.property.test_types import (
    durations,
    host_names,
    hosts,
    http_addresses,
    modes,
    networks,
    ports,
    rates,
    socket_paths,
)
from tests.support.certificates import pem_file

_FORMS: dict[str, st.SearchStrategy[Any]] = {
    "ADDRESS": hosts,
    "ADDRESS:PORT": http_addresses,
    "BOOL": st.booleans(),
    "DURATION": durations,
    "MODE": modes,
    "NAME": st.lists(host_names, max_size=4),
    "NETWORK": st.lists(networks, max_size=4),
    "PATH": socket_paths,
    "FILE": st.sampled_from(["", pem_file()]),
    "PORT": ports,
    "RATE": rates,
    "SIZE": st.just("auto") | st.integers(4096, 1 << 30),
}


def values_of(setting: Setting) -> st.SearchStrategy[Any]:
    """Return values that a file may have for the setting; most are valid."""
    if setting.form.word == "NUMBER":
        return st.integers(setting.bounds["minimum"], min(setting.bounds.get("maximum", 2**63), 2**63))
    if "enum" in setting.form.schema:
        return st.sampled_from(setting.form.schema["enum"])
    return _FORMS[setting.form.word]


# A larger pool may need more descriptors than this machine allows.
_DOCUMENTS = st.fixed_dictionaries({}, optional={setting.name: values_of(setting) for setting in declared()}).map(
    lambda document: document if document.get("pool.size", 0) <= 900 else document | {"pool.size": 900}
)


def load(text: str) -> config.Loaded:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_text(text)
        return config.load(Path(file.name), {}, {})


def rendered(found: Settings) -> str:
    return render.toml(found.model_dump(mode="json"), {setting.name: setting.name for setting in declared()})


@settings(max_examples=80)
@given(_DOCUMENTS)
@example({"listen.port": 1, "admin.http": "0.0.0.0:1"})  # both on one port
@example({"listen.port": 1, "tls.port": 1})
def test_rendered_settings_are_read_as_the_same(document: dict[str, Any]) -> None:
    """And rendered the same again."""
    try:
        found = load(
            "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in document.items())
        ).settings
    except Refusal as refusal:
        known = (
            "must ",
            "nobody could connect",
            ": admin.http: port ",
            " is also admin.socket",
            " is also listen.port",
        )
        assert all(any(words in line for words in known) for line in refusal.lines)  # noqa: PT017
        return
    text = rendered(found)
    assert load(text).settings == found
    assert rendered(load(text).settings) == text
