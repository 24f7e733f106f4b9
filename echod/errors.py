"""The exception that ends a command with a message for its user: lines for standard error, and an exit code."""

from __future__ import annotations

import os


class Refusal(Exception):  # noqa: N818 - not an error of the program
    """The program can't do what the user wants.

    `lines` go to standard error, one per problem. `exit_code` is one of sysexits.h, e.g. 66, 69, 77 or 78.
    """

    def __init__(self, *lines: str, exit_code: int = os.EX_CONFIG) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
        self.exit_code = exit_code
