"""An evaluation to read: lines for the terminal, JSON, and one HTML file that needs nothing else.

Names of prompt and error types come from the labelled file: they are escaped, and lose what a terminal would obey.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cmerwatch.intervals import Auroc, Budget
from cmerwatch_worker.accuracy import BUDGETS, POLICY, Accuracy, Reliability, Share, share
from cmerwatch_worker.checkers.base import Checker
from cmerwatch_worker.datasets import Dataset

CHANCE = "no better than chance here"
WORSE = "worse than chance here: high scores are the suspicious ones"
METHOD = (
    "AUROC: chance that a hallucinated output scores below a correct one. 95 % intervals: DeLong, clustered by "
    "picture, on the logit scale; shares: Wilson."
)
SHOWN_BAD = 20


@dataclass(frozen=True, slots=True)
class Report:
    """`source`: name of the labelled file."""

    source: str
    checker: Checker
    dataset: Dataset
    accuracy: Accuracy

    @property
    def rows(self) -> int:
        return len(self.dataset.rows)


def plain(text: str) -> str:
    """Without what a terminal obeys: control characters, and marks that turn text around."""
    return "".join(c if c.isprintable() else "?" for c in text)


def judged(found: Auroc) -> str:
    """A remark where the interval does not lie above chance; empty where it does."""
    if found.includes_chance:
        return CHANCE
    return WORSE if found.high < 0.5 else ""


def as_json(report: Report) -> str:
    """Everything that was measured."""
    reference = report.checker.reference
    data: dict[str, Any] = {
        "source": report.source,
        "checker": {
            "id": report.checker.id,
            "label": report.checker.label,
            "is_demo": report.checker.is_demo,
            "reference": reference.version if reference else None,
        },
        "method": METHOD,
        "rows": report.rows,
        "bad_lines": [asdict(bad) for bad in report.dataset.bad],
        "left_out": dict(report.dataset.left_out),
        **asdict(report.accuracy),
    }
    _add_remarks(data)
    return json.dumps(data, indent=1) + "\n"


def _add_remarks(data: Any) -> None:
    """Each AUROC says in words when it is no better than chance."""
    if isinstance(data, dict):
        if {"low", "high", "hallucinated", "value"} <= data.keys():
            data["remark"] = judged(Auroc(data["value"], data["low"], data["high"], 0, 0))
        for value in data.values():
            _add_remarks(value)


# The terminal


def as_text(report: Report) -> str:
    return "\n".join(_text(report)) + "\n"


def _text(report: Report) -> Iterator[str]:
    found = report.accuracy
    reference = report.checker.reference
    yield f"{plain(report.source)} by {report.checker.id}  ({report.checker.label})"
    yield from _text_counts(report)
    yield ""
    measured_on = "score" if found.measure == "score" else "similarity (this checker has no reference, so no scores)"
    yield f"AUROC with 95 % interval, measured on {measured_on}"
    yield _text_auroc("all", found.overall)
    if reference is not None:
        yield _text_auroc("raw similarity", found.similarity)
    yield from (_text_auroc(f"error type {kind}", auroc) for kind, auroc in found.by_error_type.items())
    if set(found.by_prompt_type) != {""}:
        yield from (_text_auroc(f"prompt type {kind or '(none)'}", a) for kind, a in found.by_prompt_type.items())
    if found.claims is not None:
        yield _text_auroc("single claims, by marked spans", found.claims)
    if found.worst_claim_is_wrong is not None:
        yield f"  the lowest claim is a wrong one in {_percent(found.worst_claim_is_wrong)} of marked outputs"
    yield from _text_decisions(found)
    yield f"\n{METHOD}"


def _text_counts(report: Report) -> Iterator[str]:
    labels = ", ".join(f"{count} {label}" for label, count in sorted(report.accuracy.labels.items()))
    yield f"{report.rows} rows ({labels})"
    for label, outcomes in sorted(report.accuracy.outcomes.items()):
        unscored = {outcome: count for outcome, count in outcomes.items() if outcome != "scored"}
        if unscored:
            yield f"  not scored, {label}: " + ", ".join(f"{n} {plain(o)}" for o, n in sorted(unscored.items()))
    for reason, count in sorted(report.accuracy.reasons.items(), key=lambda pair: -pair[1])[:SHOWN_BAD]:
        yield f"    {count} x {plain(reason)}"
    if report.accuracy.denials:
        yield f"  {report.accuracy.denials} scored rows deny something; figures of raw similarity leave them out"
    for reason, count in report.dataset.left_out.items():
        yield f"  left out: {count} x {reason}"
    if bad := report.dataset.bad:
        yield f"  {len(bad)} bad lines, not evaluated:"
        yield from (f"    line {one.line}: {plain(one.why)}" for one in bad[:SHOWN_BAD])
        if len(bad) > SHOWN_BAD:
            yield f"    and {len(bad) - SHOWN_BAD} more, all in report.json"


def _text_auroc(name: str, found: Auroc | None) -> str:
    name = plain(name)[:40]
    if found is None:
        return f"  {name:32s} not measured: it needs correct and hallucinated outputs that were scored"
    of = f"({found.correct} correct, {found.hallucinated} hallucinated)"
    low, high = _outward(found)
    return f"  {name:32s} {found.value:.3f} [{low:.3f}, {high:.3f}]  {of}  {judged(found)}".rstrip()


def _outward(found: Auroc) -> tuple[float, float]:
    """The interval at three digits, rounded away from its middle: no rounding may make it look surer."""
    return math.floor(found.low * 1000) / 1000, math.ceil(found.high * 1000) / 1000


def _text_decisions(found: Accuracy) -> Iterator[str]:
    if found.budgets:
        yield f"\nflagging the lowest, at {_prevalence(found):.1%} hallucinated in this file"
    for budget in found.budgets:
        low, high = _precision(budget)
        yield (
            f"  {budget.share:4.0%} of outputs: precision {budget.precision:6.1%} [{low:.1%}, {high:.1%}], "
            f"recall {budget.recall:6.1%}"
        )
    if found.correct_flagged is not None and found.hallucinated_flagged is not None:
        yield (
            f"below the default policy's {POLICY:.0%} point: {_percent(found.correct_flagged)} of correct outputs "
            f"(promised {POLICY:.0%}), {_percent(found.hallucinated_flagged)} of hallucinated ones"
        )
    if found.reliability is not None:
        yield f"\nreliability of fitted probabilities, by tenths (calibration error {found.reliability.ece:.3f})"
        for one in found.reliability.bins:
            yield f"  predicted {one.predicted:6.1%}  hallucinated {_percent(one.observed)}  (n {one.observed.n})"


def _prevalence(found: Accuracy) -> float:
    overall = found.overall
    return overall.hallucinated / (overall.correct + overall.hallucinated) if overall else 0.0


def _precision(budget: Budget) -> tuple[float, float]:
    n = max(1, round(budget.flagged))
    whole = share(budget.precision * n, n)
    return whole.low, whole.high


def _percent(found: Share) -> str:
    if found.value is None:
        return "none"
    return f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]"


# HTML

_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:.5rem 0}
th,td{text-align:left;padding:.2rem .8rem .2rem 0;border-bottom:1px solid #8884}
td.n{font-variant-numeric:tabular-nums}
.remark{color:#b3261e;font-weight:600}
@media(prefers-color-scheme:dark){.remark{color:#ff8a80}}
svg{max-width:26rem;height:auto}
svg text{font-size:11px;fill:currentColor}
"""


def as_html(report: Report) -> str:
    """One file without scripts or outside parts."""
    found = report.accuracy
    parts = [
        f"<h1>{_e(report.source)}</h1>",
        f"<p>Checker <code>{_e(report.checker.id)}</code> ({_e(report.checker.label)}), by its {found.measure}.</p>",
        _html_list(_text_counts(report)),
        "<h2>Can it tell hallucinated outputs from correct ones?</h2>",
        _html_aurocs(report),
        "<h2>What flagging finds</h2>",
        _html_budgets(found),
        _html_reliability(found.reliability),
        f"<p>{_e(METHOD)}</p>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Checker evaluation: {_e(report.source)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _e(text: str) -> str:
    return html.escape(plain(text))


def _html_list(lines: Iterator[str]) -> str:
    return "<ul>" + "".join(f"<li>{_e(line.strip())}</li>" for line in lines) + "</ul>"


def _html_aurocs(report: Report) -> str:
    found = report.accuracy
    named: list[tuple[str, Auroc | None]] = [("all", found.overall), ("all, by raw similarity", found.similarity)]
    named += _named("error type", found.by_error_type)
    named += _named("prompt type", found.by_prompt_type) if set(found.by_prompt_type) != {""} else []
    if found.claims is not None:
        named.append(("single claims, by marked spans", found.claims))
    rows = "".join(_html_auroc(name, auroc) for name, auroc in named)
    heads = ("", "AUROC", "95 % interval", "correct", "hallucinated", "")
    return _table(heads, rows)


def _named(what: str, found: Mapping[str, Auroc | None]) -> list[tuple[str, Auroc | None]]:
    return [(f"{what}: {kind or '(none)'}", auroc) for kind, auroc in found.items()]


def _html_auroc(name: str, found: Auroc | None) -> str:
    if found is None:
        return f'<tr><td>{_e(name)}</td><td colspan="5">not measured: it needs outputs of both kinds</td></tr>'
    remark = f'<td class="remark">{_e(judged(found))}</td>'
    low, high = _outward(found)
    cells = (f"{found.value:.3f}", f"{low:.3f} to {high:.3f}", str(found.correct), str(found.hallucinated))
    return f"<tr><td>{_e(name)}</td>" + "".join(f'<td class="n">{cell}</td>' for cell in cells) + remark + "</tr>"


def _html_budgets(found: Accuracy) -> str:
    if not found.budgets:
        return f"<p>Not measured at {', '.join(f'{b:.0%}' for b in BUDGETS)}: it needs outputs of both kinds.</p>"
    rows = ""
    for budget in found.budgets:
        low, high = _precision(budget)
        cells = (f"{budget.share:.0%}", f"{budget.precision:.1%}", f"{low:.1%} to {high:.1%}", f"{budget.recall:.1%}")
        rows += "<tr>" + "".join(f'<td class="n">{cell}</td>' for cell in cells) + "</tr>"
    policy = ""
    if found.correct_flagged is not None and found.hallucinated_flagged is not None:
        policy = (
            f"<p>Below the default policy's {POLICY:.0%} point lie {_percent(found.correct_flagged)} of the correct "
            f"outputs (promised {POLICY:.0%}) and {_percent(found.hallucinated_flagged)} of the hallucinated ones.</p>"
        )
    said = (
        f"<p>{_prevalence(found):.1%} of the scored outputs of this file are hallucinated; precision depends on it.</p>"
    )
    return said + _table(("flagged", "precision", "95 % interval", "recall"), rows) + policy


def _table(heads: tuple[str, ...], rows: str) -> str:
    return "<table><tr>" + "".join(f"<th>{head}</th>" for head in heads) + f"</tr>{rows}</table>"


def _html_reliability(found: Reliability | None) -> str:
    if found is None:
        return "<h2>Reliability</h2><p>Not drawn: it needs at least 20 scored outputs of each kind.</p>"
    side, edge = 240, 40
    dots = "".join(_dot(one.predicted, one.observed, side, edge) for one in found.bins)
    diagonal = f'<path d="M{edge} {edge + side}L{edge + side} {edge}" stroke="#8888" stroke-dasharray="4"/>'
    frame = f'<rect x="{edge}" y="{edge}" width="{side}" height="{side}" fill="none" stroke="#8888"/>'
    ticks = "".join(
        f'<text x="{edge + side * t / 4:.0f}" y="{edge + side + 16}" text-anchor="middle">{t * 25} %</text>'
        f'<text x="{edge - 4}" y="{edge + side - side * t / 4 + 4:.0f}" text-anchor="end">{t * 25} %</text>'
        for t in range(5)
    )
    return (
        f"<h2>Reliability</h2><p>Probabilities fitted on four fifths of the pictures, checked on the rest, by tenths; "
        f"bars are 95 % intervals. Expected calibration error {found.ece:.3f}.</p>"
        f'<svg viewBox="0 0 {side + 2 * edge} {side + 2 * edge}" role="img" aria-label="Share hallucinated against '
        f'predicted probability">{frame}{diagonal}{ticks}{dots}'
        f'<text x="{edge + side / 2}" y="{edge + side + 34}" text-anchor="middle">predicted probability</text>'
        f'<text x="{edge}" y="{edge - 10}">share hallucinated</text></svg>'
    )


def _dot(predicted: float, observed: Share, side: int, edge: int) -> str:
    x = edge + side * predicted
    y, low, high = (edge + side * (1 - (value or 0.0)) for value in (observed.value, observed.low, observed.high))
    return (
        f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="#1a73e8"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#1a73e8"/>'
    )
