"""The types of the Kubernetes API, as PyPI's lightkube-models has them: generated from the API's own specification."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import types
import typing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# The models take these from the client that they are made for. It would bring an HTTP client, and is not needed here.
_schema = types.ModuleType("lightkube.core.schema")
vars(_schema).update(dataclass=dataclasses.dataclass, field=dataclasses.field, DictMixin=object)
sys.modules.setdefault(_schema.__name__, _schema)


def problems(document: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each field of an object that the API does not know, lacks, or has with another type."""
    group, _, version = document["apiVersion"].rpartition("/")
    module = importlib.import_module(f"lightkube.models.{group.partition('.')[0] or 'core'}_{version}")
    yield from _problems(document, getattr(module, document["kind"]), document["kind"])


def _problems(value: Any, wanted: Any, path: str) -> Iterator[str]:
    if typing.get_origin(wanted) is typing.Union:
        found = [list(_problems(value, each, path)) for each in typing.get_args(wanted) if each is not type(None)]
        yield from min(found, key=len)
    elif typing.get_origin(wanted) is list and isinstance(value, list):
        for number, item in enumerate(value):
            yield from _problems(item, typing.get_args(wanted)[0], f"{path}[{number}]")
    elif dataclasses.is_dataclass(wanted) and isinstance(value, dict):
        yield from _problems_of_fields(value, wanted, path)
    elif wanted is not Any and type(value) is not (typing.get_origin(wanted) or wanted):
        yield f"{path}: {value!r} is not {wanted}"


def _problems_of_fields(value: dict[str, Any], wanted: Any, path: str) -> Iterator[str]:
    hints = typing.get_type_hints(wanted)
    fields = {each.metadata.get("json", each.name): each for each in dataclasses.fields(wanted)}
    for key, item in value.items():
        if key in fields:
            yield from _problems(item, hints[fields[key].name], f"{path}.{key}")
        else:
            yield f"{path}.{key}: unknown"
    for key, each in fields.items():
        if each.default is each.default_factory is dataclasses.MISSING and key not in value:
            yield f"{path}.{key}: missing"
