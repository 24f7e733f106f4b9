"""Mutation testing: does some test fail for each small change of the core? `make mutate`; see docs/mutation.md.

mutmut makes the changes and tries each against those in-process tests (`[tool.mutmut]` in pyproject.toml) that run the
function which is changed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ENOUGH = 90
"""Percent of the mutants that have to be found."""
COPY = Path("mutants")
"""Where mutmut has the changed modules, its results, and a copy of the tests."""
MUTMUT = str(Path(sys.executable).with_name("mutmut"))


def asked(*words: str) -> str:
    """Return what mutmut answers."""
    return subprocess.run([MUTMUT, *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def module(mutant: str) -> str:
    """Return the module: "server/pool" for "echod.server.pool.x_peer__mutmut_1"."""
    return "/".join(mutant.split(".")[1:-1])


def main() -> int:
    """Try every mutant, print those that no test has found, and how many these are; 1 if they are too many."""
    shutil.rmtree(COPY, ignore_errors=True)  # mutmut would not try again what it has tried before, with other tests
    subprocess.run([MUTMUT, "run", *sys.argv[1:]], check=True)
    status = dict(line.strip().split(": ") for line in asked("results", "--all", "true").splitlines())
    survivors = [mutant for mutant in sorted(status) if status[mutant] not in ("killed", "timeout")]
    for mutant in survivors:
        print(asked("show", mutant))
    made, left = Counter(map(module, status)), Counter(map(module, survivors))
    print("| module | mutants | survivors | found |\n|---|---|---|---|")
    for name, number in sorted(made.items()):
        print(f"| `{name}.py` | {number} | {left[name]} | {100 * (1 - left[name] / number):.1f} % |")
    found = 100 * (1 - len(survivors) / len(status))
    print(f"| all | {len(status)} | {len(survivors)} | {found:.1f} % |")
    return int(found < ENOUGH)


if __name__ == "__main__":
    sys.exit(main())
