"""What all command lines share: the parser's errors, and the way from an exception to an exit code."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, NoReturn

from echod import stdio
from echod.errors import Refusal
from echod.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable


class Parser(argparse.ArgumentParser):
    """Writes help as a command's answer, and raises `Refusal` for wrong usage."""

    wrong_usage = os.EX_USAGE

    def _print_message(self, message: str, file: object = None) -> None:  # noqa: ARG002 - argparse always passes standard output
        stdio.answer(message)

    def error(self, message: str) -> NoReturn:
        """Raise `Refusal` with the exit code for wrong usage."""
        raise Refusal(f"{self.prog}: {message} (see {self.prog} --help)", exit_code=self.wrong_usage)


def exit_code(act: Callable[[], int]) -> int:
    """Return the exit code of a command, or that of its failure, which is then reported on standard error."""
    try:
        return act()
    except Refusal as refusal:
        stdio.report(*map(printable, refusal.lines))
        return refusal.exit_code
    except Exception:  # noqa: BLE001 - a bug: no input of a user leads here
        import traceback  # noqa: PLC0415 - takes milliseconds, and only a bug needs it

        stdio.report("echod: internal error, please report it:", traceback.format_exc())
        return os.EX_SOFTWARE
