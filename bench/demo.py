"""How soon the demo is filled, how soon it is back, and how far apart its two model versions are.

    python bench/demo.py

Starts `cmerwatch demo` twice on one new data folder and reads `/v1/cmer`. What pip needs before comes on top:
`time make demo` in a bare clone has it all.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cmerwatch.cmer import Rate  # noqa: E402

COMMAND = [str(Path(sys.executable).with_name("cmerwatch")), "demo", "--json", "--no-browser", "--port", "0"]
SECOND_START_SECONDS, RATIO = 15.0, 3.0
GOOD, REGRESSED = "2026.11.1", "2026.11.2"


@contextlib.contextmanager
def demo(folder: str) -> Iterator[tuple[dict[str, Any], float]]:
    """The running demo's line and the seconds it took to say it; stopped with SIGTERM, which must end it with 0."""
    started = time.perf_counter()
    child = subprocess.Popen([*COMMAND, "--data-dir", folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    ready = json.loads(child.stdout.readline())
    try:
        yield ready, time.perf_counter() - started
    finally:
        child.terminate()
        status = child.wait(60)
    if status != 0:
        raise SystemExit(f"the demo ended with status {status}")


def rates(ready: dict[str, Any]) -> dict[str, Rate]:
    """CMER of each model version over the whole recording."""
    request = urllib.request.Request(
        f"{ready['url']}/v1/cmer?group_by=model_version&bucket=1d",
        headers={"Authorization": f"Bearer {ready['api_key']}"},
    )
    with urllib.request.urlopen(request) as answer:
        rows = json.load(answer)["rows"]
    of_version = {version: [row for row in rows if row["model_version"] == version] for version in (GOOD, REGRESSED)}
    return {v: Rate(sum(row["flagged"] for row in r), sum(row["n"] for row in r)) for v, r in of_version.items()}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        with demo(folder) as (ready, first):
            found = rates(ready)
        with demo(folder) as (_, second):
            pass
    print(f"first start, installed already: {first:.1f} s")
    print(f"second start: {second:.1f} s (at most {SECOND_START_SECONDS:.0f})")
    for version, rate in found.items():
        low, high = rate.interval
        share = f"CMER {rate.value:.1%}, 95 % interval {low:.1%} to {high:.1%}"
        print(f"{version}: {rate.successes}/{rate.n} flagged, {share}")
    good, regressed = found[GOOD], found[REGRESSED]
    ratio = (regressed.value or 0) / (good.value or 1)
    disjoint = regressed.interval[0] > good.interval[1]
    print(f"ratio {ratio:.1f} (at least {RATIO:.0f}), intervals {'disjoint' if disjoint else 'overlap'}")
    return 0 if second <= SECOND_START_SECONDS and ratio >= RATIO and disjoint else 1


if __name__ == "__main__":
    sys.exit(main())
