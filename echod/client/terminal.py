"""What the terminal of standard output can show."""

from __future__ import annotations

import os
import sys


def is_capable() -> bool:
    """Say whether standard output is a terminal that knows escape sequences. Emacs and CI jobs have dumb ones, which show them."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
