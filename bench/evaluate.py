"""The demo checker measured as everybody can: drawn scenes in files, `cmerwatch checker evaluate` over them.

python bench/evaluate.py [--scenes 3000]
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "worker"), str(ROOT / "examples")]

from toy_vlm import evaluation_set  # noqa: E402

GOAL = 0.95
# The files' names, and what to call them. Only the claimed set has a goal; the others are measured beside it.
SETS = {
    "claimed.jsonl": "claimed set",
    "foreign.jsonl": "wrong image",
    "recorded.jsonl": "what the recorded VLM said",
    "pope.json": "yes and no to POPE's kind of question",
    "unclaimed.jsonl": "not claimed",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=evaluation_set.SCENES)
    count = parser.parse_args().scenes
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        evaluation_set.write(folder, count)
        found = {name: _evaluate(folder / name) for name in SETS}
    for name, title in SETS.items():
        _print(title, found[name])
    value, low = (found["claimed.jsonl"]["overall"][part] for part in ("value", "low"))
    held = value >= GOAL and low >= GOAL
    print(f"\nclaimed set, goal {GOAL} with its interval: {'holds' if held else 'DOES NOT HOLD'}")
    return 0 if held else 1


def _evaluate(file: Path) -> dict[str, Any]:
    """The report of the real command, in a process of its own."""
    command = [sys.executable, "-m", "cmerwatch.cli", "checker", "evaluate", str(file), "--checker", "demo"]
    if file.name == "pope.json":
        command += ["--format", "pope", "--answers", str(file.with_name("answers.jsonl"))]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report: dict[str, Any] = json.loads((file.parent / f"{file.name}.evaluation" / "report.json").read_text())
    return report


def _print(title: str, report: dict[str, Any]) -> None:
    print(f"\n{title}: {report['rows']} rows, by {report['checker']['label']}")
    _line("all", report["overall"])
    for kind in ("error", "prompt"):
        for name, auroc in report[f"by_{kind}_type"].items():
            if name:
                _line(f"{kind} type {name}", auroc)
    for budget in report["budgets"]:
        print(f"  flagging {budget['share']:.0%}: precision {budget['precision']:.1%}, recall {budget['recall']:.1%}")
    flagged = [report[f"{label}_flagged"]["value"] for label in ("correct", "hallucinated")]
    print(f"  below the 5 % point: {flagged[0]:.1%} of correct, {flagged[1]:.1%} of hallucinated outputs")
    print(f"  expected calibration error {report['reliability']['ece']:.3f}")


def _line(name: str, found: dict[str, Any] | None) -> None:
    if found is None:
        print(f"  {name:26s} not measured")
        return
    n = f"n {found['correct']} + {found['hallucinated']}"
    low, high = math.floor(found["low"] * 1000) / 1000, math.ceil(found["high"] * 1000) / 1000  # outward
    print(f"  {name:26s} {found['value']:.3f} [{low:.3f}, {high:.3f}]  {n}  {found['remark']}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
