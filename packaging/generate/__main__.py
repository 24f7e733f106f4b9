"""`python -m generate reference` writes the files that are committed, `python -m generate build` those that are not.

Paths are below the current folder, which has to be the top of the source tree.
"""

from __future__ import annotations

import sys
from pathlib import Path

from generate import files

if __name__ == "__main__":
    files.write(Path(), sys.argv[1])
