"""What ends the program with a message for its user: lines for stderr and an exit code.

Knows nothing of where the problem arose; `cli` prints it.
"""

from __future__ import annotations

import os


class Refusal(Exception):  # noqa: N818 - a refusal is no error of the program
    """The program can't do what it was asked.

    `lines` go to stderr, one per problem; `exit_code` is one of sysexits.h (64, 66, 69, 77, 78).
    """

    def __init__(self, *lines: str, exit_code: int = os.EX_CONFIG) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
        self.exit_code = exit_code
