"""Runs every bench after another and prints their figures: `make bench`, or one by name: `make bench ARGS=pipeline`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# Screenshots are not figures.
BENCHES = sorted(p.stem for p in HERE.glob("*.py") if p.stem not in ("__init__", "__main__", "screenshots"))


def main() -> int:
    """The number of benches that missed their target."""
    wanted = sys.argv[1:] or BENCHES
    unknown = sorted(set(wanted) - set(BENCHES))
    if unknown:
        print(f"there is no bench {unknown[0]!r}; they are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    missed = 0
    for name in wanted:
        print(f"\n== bench/{name}.py", flush=True)
        missed += subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=False).returncode != 0
    return missed


if __name__ == "__main__":
    sys.exit(main())
