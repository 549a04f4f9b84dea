"""What scored, labelled rows say of a checker: pure functions from rows to numbers.

Everything is measured on `score`, which decides in production, or on `similarity` where a checker has no reference.
Rows of the same pictures are one group: intervals count groups.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cmerwatch import intervals
from cmerwatch.intervals import Auroc, Budget
from cmerwatch_worker.datasets import CANNOT_TELL, CORRECT, HALLUCINATED, Labelled
from cmerwatch_worker.evaluation import Scored

BUDGETS = (0.05, 0.10, 0.20)
POLICY = 0.05  # the default policy flags scores below it: 5 % of correct outputs, if the reference fits this traffic
FOLDS = 5
BINS = 10
MIN_PER_KIND = 20  # of each label, before two numbers are fitted to them


@dataclass(frozen=True, slots=True)
class Row:
    """A labelled row with its result."""

    labelled: Labelled
    scored: Scored

    @property
    def is_hallucinated(self) -> bool:
        return self.labelled.label == HALLUCINATED


@dataclass(frozen=True, slots=True)
class Share:
    """k of n with its 95 % interval (Wilson)."""

    k: float
    n: int
    value: float | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows of similar predicted probability: its mean, and the share of them that is hallucinated."""

    predicted: float
    observed: Share


@dataclass(frozen=True, slots=True)
class Reliability:
    """Predictions fitted on other pictures than they are made for. `ece`: mean distance to the truth, by rows."""

    bins: tuple[Bin, ...]
    ece: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """All figures of one evaluation. Shares of the policy are None where the checker has no reference."""

    measure: str
    labels: dict[str, int]
    outcomes: dict[str, dict[str, int]]  # label -> outcome -> rows
    reasons: dict[str, int]  # why rows were not scored
    denials: int  # rows that deny something; left out of what is measured on similarity
    overall: Auroc | None
    similarity: Auroc | None
    by_error_type: dict[str, Auroc | None]
    by_prompt_type: dict[str, Auroc | None]
    claims: Auroc | None
    worst_claim_is_wrong: Share | None
    budgets: tuple[Budget, ...]
    correct_flagged: Share | None
    hallucinated_flagged: Share | None
    reliability: Reliability | None


def measure(rows: Sequence[Row]) -> Accuracy:
    """Every figure of these rows."""
    scored = [row for row in rows if row.scored.outcome == "scored" and row.labelled.label != CANNOT_TELL]
    name = "score" if scored and all(row.scored.score is not None for row in scored) else "similarity"
    values = _Values(name)
    affirming = [row for row in scored if row.scored.similarity is not None]
    denials = len(scored) - len(affirming)
    if name == "similarity":
        scored = affirming
    correct, wrong = values.of(_labelled(scored, CORRECT)), values.of(_labelled(scored, HALLUCINATED))
    budgets = [intervals.at_budget(correct, wrong, share) for share in BUDGETS]
    return Accuracy(
        measure=name,
        labels=dict(Counter(row.labelled.label for row in rows)),
        outcomes=_outcomes(rows),
        reasons=dict(Counter(why for row in rows if row.scored.outcome != "scored" for why in row.scored.reasons)),
        denials=denials,
        overall=values.auroc(scored),
        similarity=_Values("similarity").auroc(affirming),
        by_error_type={kind: values.auroc(part) for kind, part in _by_error_type(scored).items()},
        by_prompt_type={kind: values.auroc(part) for kind, part in _by_prompt_type(scored).items()},
        claims=_of_claims(scored),
        worst_claim_is_wrong=_pointed_at(scored),
        budgets=tuple(budget for budget in budgets if budget is not None),
        correct_flagged=_below_policy(correct) if name == "score" else None,
        hallucinated_flagged=_below_policy(wrong) if name == "score" else None,
        reliability=_reliability(values, scored),
    )


@dataclass(frozen=True, slots=True)
class _Values:
    """The number that is low where suspicious."""

    name: str

    def value(self, row: Row) -> float:
        found = row.scored.score if self.name == "score" else row.scored.similarity
        assert found is not None, "only scored rows are measured"
        return found

    def of(self, rows: Iterable[Row]) -> list[float]:
        return [self.value(row) for row in rows]

    def auroc(self, rows: Sequence[Row]) -> Auroc | None:
        correct, wrong = _labelled(rows, CORRECT), _labelled(rows, HALLUCINATED)
        groups = [row.scored.group for row in correct], [row.scored.group for row in wrong]
        return intervals.auroc(self.of(correct), self.of(wrong), *groups)


def share(k: float, n: int) -> Share:
    low, high = intervals.wilson(k, n)
    return Share(k, n, k / n if n else None, low, high)


def _labelled(rows: Iterable[Row], label: str) -> list[Row]:
    return [row for row in rows if row.labelled.label == label]


def _outcomes(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for row in rows:
        found.setdefault(row.labelled.label, Counter())[row.scored.outcome] += 1
    return {label: dict(counts) for label, counts in found.items()}


def _by_error_type(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Hallucinated rows of each type against their correct counterparts, or, where none is named, all correct rows."""
    types = sorted({kind for row in rows if row.is_hallucinated for kind in row.labelled.error_types})
    every = _labelled(rows, CORRECT)
    found = {}
    for kind in types:
        of_kind = [row for row in rows if kind in row.labelled.error_types]
        counterparts = _labelled(of_kind, CORRECT)
        found[kind] = [*_labelled(of_kind, HALLUCINATED), *(counterparts or every)]
    return found


def _by_prompt_type(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.labelled.prompt_type, []).append(row)
    return dict(sorted(found.items()))


def _below_policy(values: Sequence[float]) -> Share:
    return share(sum(value < POLICY for value in values), len(values))


# Labelled spans: which claim of an output is the wrong one


def _of_claims(rows: Sequence[Row]) -> Auroc | None:
    """AUROC of single claims, in outputs whose wrong characters are marked, and in correct ones.

    A claim is wrong where it overlaps a marked span. Without marked outputs there is nothing to measure.
    """
    marked = [row for row in rows if row.is_hallucinated and row.labelled.spans]
    if not marked:
        return None
    sets: dict[bool, tuple[list[float], list[str]]] = {False: ([], []), True: ([], [])}
    for row in [*marked, *_labelled(rows, CORRECT)]:
        for start, end, value in row.scored.claims:
            values, groups = sets[_overlaps(row, start, end)]
            values.append(value)
            groups.append(row.scored.group)
    return intervals.auroc(sets[False][0], sets[True][0], sets[False][1], sets[True][1])


def _overlaps(row: Row, start: int, end: int) -> bool:
    return any(low < end and start < high for low, high in row.labelled.spans)


def _pointed_at(rows: Sequence[Row]) -> Share | None:
    """Of marked outputs with several claims, wrong and right ones among them: how often the lowest is a wrong one."""
    hits = n = 0
    for row in rows:
        wrong = [_overlaps(row, start, end) for start, end, _ in row.scored.claims]
        if row.is_hallucinated and any(wrong) and not all(wrong):
            lowest = min(range(len(wrong)), key=lambda i: row.scored.claims[i][2])
            hits, n = hits + wrong[lowest], n + 1
    return share(hits, n) if n else None


# Reliability: two numbers fitted to four fifths of the pictures predict the rest


def _reliability(values: _Values, rows: Sequence[Row]) -> Reliability | None:
    if min(len(_labelled(rows, label)) for label in (CORRECT, HALLUCINATED)) < MIN_PER_KIND:
        return None
    points = [(_fold(row.scored.group), _feature(values, row), row.is_hallucinated) for row in rows]
    predicted = []
    for fold in range(FOLDS):
        known = [(x, y) for of, x, y in points if of != fold]
        if len({y for _, y in known}) < 2:
            return None
        slope, offset = fit([x for x, _ in known], [y for _, y in known])
        predicted += [(_logistic(slope * x + offset), y) for of, x, y in points if of == fold]
    predicted.sort()
    edges = [round(i * len(predicted) / BINS) for i in range(BINS + 1)]
    bins = tuple(_bin(predicted[a:b]) for a, b in pairwise(edges) if b > a)
    distances = [abs(b.predicted - (b.observed.value or 0.0)) * b.observed.n for b in bins]
    return Reliability(bins, math.fsum(distances) / len(predicted))


def _fold(group: str) -> int:
    """The same pictures always fall into the same fifth, so no fit has seen what it predicts."""
    return hashlib.sha256(group.encode()).digest()[0] % FOLDS


def _feature(values: _Values, row: Row) -> float:
    """A score's log-odds, which spreads the low end where decisions fall; a cosine in units of hundredths."""
    value = values.value(row)
    if values.name == "similarity":
        return 100 * value
    held = min(max(value, 1e-4), 1 - 1e-4)
    return math.log(held / (1 - held))


def _bin(part: Sequence[tuple[float, bool]]) -> Bin:
    return Bin(math.fsum(p for p, _ in part) / len(part), share(sum(y for _, y in part), len(part)))


def fit(xs: Sequence[float], ys: Sequence[bool], ridge: float = 1e-3) -> tuple[float, float]:
    """Platt's two numbers, (slope, offset) of a logistic curve, by Newton's method; the ridge keeps the slope finite
    where the kinds separate. xs are centred and scaled inside, so that any unit does."""
    mean = math.fsum(xs) / len(xs)
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in xs) / len(xs)) or 1.0
    zs = [(x - mean) / spread for x in xs]
    a = b = 0.0
    for _ in range(50):
        ps = [_logistic(a * z + b) for z in zs]
        ws = [p * (1 - p) for p in ps]
        da = math.fsum((p - y) * z for p, y, z in zip(ps, ys, zs, strict=True)) + ridge * len(zs) * a
        db = math.fsum(p - y for p, y in zip(ps, ys, strict=True))
        haa = math.fsum(w * z * z for w, z in zip(ws, zs, strict=True)) + ridge * len(zs)
        hab, hbb = math.fsum(w * z for w, z in zip(ws, zs, strict=True)), math.fsum(ws) + 1e-9
        det = haa * hbb - hab * hab
        step_a, step_b = (hbb * da - hab * db) / det, (haa * db - hab * da) / det
        # A full step may overshoot where the kinds nearly separate; at most 2 keeps the next one sane.
        a, b = a - max(-2.0, min(2.0, step_a)), b - max(-2.0, min(2.0, step_b))
        if abs(step_a) + abs(step_b) < 1e-9:
            break
    return a / spread, b - a * mean / spread


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
