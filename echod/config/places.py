"""The form of the path of a PEM file, as in `types`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from echod.config.types import Form
from echod.text import shown


def pem_file(text: str) -> str:
    """Accept an absolute path, or nothing. A daemon has no folder that a relative one could be in."""
    if text and (not text.startswith("/") or not text.isprintable()):
        raise ValueError(f'must be a path that begins with "/", got {shown(text)}')
    return text


PemFile = Annotated[str, AfterValidator(pem_file), Form("FILE", {"type": "string", "pattern": "^(?:/.*)?$"})]
