"""What is made of scored rows: figures that can be checked by hand, and words where they prove nothing."""

from __future__ import annotations

import json
import random
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cmerwatch_worker import accuracy, accuracy_report, checkers
from cmerwatch_worker.accuracy import Row
from cmerwatch_worker.accuracy_report import Report
from cmerwatch_worker.datasets import Bad, Dataset, Labelled
from cmerwatch_worker.evaluation import Scored


def row(
    line: int, label: str, score: float | None, *, picture: str = "", kind: str = "", types: tuple[str, ...] = (),
    spans: tuple[tuple[int, int], ...] = (), claims: tuple[tuple[int, int, float], ...] = (),
    outcome: str = "scored", similarity: float | None = 0.3, reasons: tuple[str, ...] = (),
) -> Row:  # fmt: skip
    labelled = Labelled(line, (Path("a.png"),), "text", label, "", kind, types, spans)
    return Row(labelled, Scored(line, outcome, similarity, score, picture or f"p{line}", claims, reasons))


def scored(correct: list[float], wrong: list[float]) -> list[Row]:
    rows = [row(i, "correct", value, similarity=value) for i, value in enumerate(correct)]
    return rows + [row(len(rows) + i, "hallucinated", value, similarity=value) for i, value in enumerate(wrong)]


def test_the_share_of_correct_outputs_below_the_policys_point_stands_beside_what_was_promised() -> None:
    found = accuracy.measure(scored([0.01, *[0.5] * 19], [0.01, 0.02, 0.9]))
    assert found.measure == "score"
    assert found.correct_flagged is not None
    assert found.hallucinated_flagged is not None
    assert (found.correct_flagged.k, found.correct_flagged.n) == (1, 20)
    assert found.hallucinated_flagged.value == pytest.approx(2 / 3)


def test_precision_and_recall_are_those_of_the_lowest_scores() -> None:
    found = accuracy.measure(scored([0.5 + i / 1000 for i in range(90)], [0.1] * 5 + [0.9] * 5))
    assert [budget.share for budget in found.budgets] == [0.05, 0.10, 0.20]
    assert [budget.precision for budget in found.budgets] == pytest.approx([1.0, 0.5, 0.25])
    assert [budget.recall for budget in found.budgets] == pytest.approx([0.5, 0.5, 0.5])


def test_without_a_reference_similarity_is_measured_and_no_policy_judged() -> None:
    rows = [row(i, "correct", None, similarity=0.3 + i / 100) for i in range(5)]
    rows += [row(5 + i, "hallucinated", None, similarity=0.1 + i / 100) for i in range(5)]
    found = accuracy.measure(rows)
    assert found.measure == "similarity"
    assert found.overall is not None
    assert found.overall.value == 1
    assert found.correct_flagged is None


def test_outputs_that_deny_something_are_not_ranked_by_a_similarity_that_should_be_low() -> None:
    rows = [row(1, "correct", 0.9, similarity=None), row(2, "correct", 0.8), row(3, "hallucinated", 0.1)]
    found = accuracy.measure(rows)
    assert found.overall is not None
    assert found.similarity is not None
    assert (found.overall.correct, found.similarity.correct, found.denials) == (2, 1, 1)


def test_rows_that_were_not_scored_are_counted_with_their_reasons() -> None:
    rows = [
        *scored([0.9], [0.1]),
        row(7, "hallucinated", None, outcome="unscorable", reasons=("refusal",)),
        row(8, "cannot_tell", 0.5),
    ]
    found = accuracy.measure(rows)
    assert found.outcomes["hallucinated"] == {"scored": 1, "unscorable": 1}
    assert found.reasons == {"refusal": 1}
    assert found.overall is not None
    assert (found.overall.correct, found.overall.hallucinated) == (1, 1)


def test_each_error_type_is_set_against_all_correct_rows() -> None:
    rows = [
        *scored([0.6, 0.9], []),
        row(5, "hallucinated", 0.7, types=("count",)),
        row(6, "hallucinated", 0.1, types=("object",)),
        row(7, "hallucinated", 0.1, types=("object", "count")),
    ]
    found = accuracy.measure(rows).by_error_type
    assert {kind: auroc.value for kind, auroc in found.items() if auroc} == {"count": 0.75, "object": 1.0}


def test_correct_rows_that_name_an_error_type_are_its_counterparts() -> None:
    rows = [
        row(1, "correct", 0.2, types=("count",)),
        row(2, "correct", 0.9, types=("object",)),
        row(3, "hallucinated", 0.5, types=("count",)),
        row(4, "hallucinated", 0.5, types=("object",)),
    ]
    found = accuracy.measure(rows).by_error_type
    assert {kind: auroc.value for kind, auroc in found.items() if auroc} == {"count": 0.0, "object": 1.0}


def test_prompt_types_are_measured_apart() -> None:
    rows = [row(1, "correct", 0.9, kind="a"), row(2, "hallucinated", 0.1, kind="a"), row(3, "correct", 0.9, kind="b")]
    found = accuracy.measure(rows).by_prompt_type
    assert found["a"] is not None
    assert found["b"] is None


def test_marked_spans_say_which_claims_are_wrong() -> None:
    claims = ((0, 5, 0.9), (5, 10, 0.1), (10, 15, 0.8))
    rows = [
        row(1, "hallucinated", 0.1, spans=((6, 8),), claims=claims),
        row(2, "hallucinated", 0.1, spans=((0, 3),), claims=claims),
        row(3, "correct", 0.9, claims=((0, 5, 0.95),)),
    ]
    found = accuracy.measure(rows)
    assert found.claims is not None
    assert (found.claims.correct, found.claims.hallucinated) == (5, 2)
    assert found.worst_claim_is_wrong is not None
    assert (found.worst_claim_is_wrong.k, found.worst_claim_is_wrong.n) == (1, 2)


def drawn(n: int, seed: int = 3) -> list[Row]:
    """Scores whose true odds are known: hallucinated with the probability 1 - score."""
    rng = random.Random(seed)
    values = [rng.random() for _ in range(n)]
    return [row(i, "correct" if rng.random() < v else "hallucinated", v) for i, v in enumerate(values)]


def test_fitted_probabilities_come_true() -> None:
    found = accuracy.measure(drawn(4000)).reliability
    assert found is not None
    assert len(found.bins) == 10
    assert sum(one.observed.n for one in found.bins) == 4000
    assert found.ece < 0.04
    assert all(one.observed.low - 0.05 <= one.predicted <= one.observed.high + 0.05 for one in found.bins)


def test_a_fit_never_sees_the_pictures_it_predicts() -> None:
    """With one picture behind all that is hallucinated, the other pictures know nothing of such outputs."""
    rows = [row(i, "correct", 0.5 + i / 100, picture=f"p{i}") for i in range(40)]
    rows += [row(40 + i, "hallucinated", i / 100, picture="one") for i in range(40)]
    assert accuracy.measure(rows).reliability is None


def test_too_few_rows_draw_no_reliability() -> None:
    assert accuracy.measure(drawn(30)).reliability is None


@pytest.mark.parametrize("unit", [0.001, 1.0, 1000.0])
def test_the_fit_finds_the_curve_the_labels_were_drawn_from(unit: float) -> None:
    rng = random.Random(9)
    xs = [rng.gauss(0, 1) for _ in range(8000)]
    ys = [rng.random() < 1 / (1 + 2.718281828 ** -(1.5 * x - 0.5)) for x in xs]
    slope, offset = accuracy.fit([x * unit for x in xs], ys)
    assert slope * unit == pytest.approx(1.5, abs=0.12)
    assert offset == pytest.approx(-0.5, abs=0.08)


def test_the_fit_stays_finite_where_the_kinds_separate() -> None:
    slope, offset = accuracy.fit([0.0] * 50 + [1.0] * 50, [False] * 50 + [True] * 50)
    assert abs(slope) < 1e3
    assert abs(offset) < 1e3


# Reports


def report(rows: list[Row], bad: list[Bad] | None = None) -> Report:
    dataset = Dataset([one.labelled for one in rows], bad or [])
    return Report("set.jsonl", checkers.load("demo"), dataset, accuracy.measure(rows))


def test_an_interval_that_holds_one_half_is_called_no_better_than_chance() -> None:
    rng = random.Random(2)
    shown = report(scored([rng.random() for _ in range(50)], [rng.random() for _ in range(50)]))
    assert "no better than chance here" in accuracy_report.as_text(shown)
    assert "no better than chance here" in accuracy_report.as_html(shown)
    assert json.loads(accuracy_report.as_json(shown))["overall"]["remark"] == "no better than chance here"


def test_a_checker_that_sees_is_not_called_chance_and_one_turned_round_is_called_worse() -> None:
    seeing = report(scored([0.5 + i / 100 for i in range(40)], [i / 100 for i in range(40)]))
    assert "chance here" not in accuracy_report.as_text(seeing)
    turned = report(scored([i / 100 for i in range(40)], [0.5 + i / 100 for i in range(40)]))
    assert "worse than chance here" in accuracy_report.as_text(turned)


def test_an_interval_is_never_rounded_towards_certainty() -> None:
    shown = accuracy_report.as_text(report(scored([0.9] * 5000, [0.1] * 5000)))
    assert "1.000 [0.999, 1.000]" in shown


def test_a_precision_lies_in_its_own_interval() -> None:
    """5 % of 310 outputs are 15.5, all of them hallucinated."""
    shown = accuracy_report.as_text(report(scored([0.9] * 150, [0.1] * 160)))
    assert "5% of outputs: precision 100.0% [80.6%, 100.0%]" in shown


def test_bad_lines_are_named_and_counted_in_every_report() -> None:
    shown = report(scored([0.9], [0.1]), [Bad(3, "is not JSON"), Bad(9, "there is no image file x.png")])
    for made in (accuracy_report.as_text(shown), accuracy_report.as_html(shown)):
        assert "2 bad lines" in made
        assert "line 9: there is no image file x.png" in made
    assert json.loads(accuracy_report.as_json(shown))["bad_lines"][0] == {"line": 3, "why": "is not JSON"}


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not {name for name, _ in attrs} & {"onload", "onerror", "src", "href", "onclick"}


def test_hostile_names_are_shown_as_text_and_obeyed_by_no_terminal() -> None:
    name = '<img src=x onerror=alert(1)>"\x1b[31m\u202e'
    rows = [row(1, "correct", 0.9, kind=name), row(2, "hallucinated", 0.1, kind=name, types=(name,))]
    rows.append(row(3, "correct", None, kind=name, outcome="refused", reasons=(name,)))
    shown = report(rows, [Bad(1, name)])
    parser = Tags()
    parser.feed(accuracy_report.as_html(shown))
    assert "img" not in parser.seen
    assert "script" not in parser.seen
    for made in (accuracy_report.as_text(shown), accuracy_report.as_html(shown)):
        assert "\x1b" not in made
        assert "\u202e" not in made
    json.loads(accuracy_report.as_json(shown))


def test_the_page_needs_nothing_from_outside() -> None:
    made = accuracy_report.as_html(report(drawn(400)))
    assert "<svg" in made
    assert "://" not in made
    assert "default-src 'none'" in made
