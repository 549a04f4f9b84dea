"""Whatever is asked, the answer is what counting the outputs one by one gives: any window, bucket, group and filter."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import orm

from cmerwatch import cmer_series, ids, intervals, models, rollups
from cmerwatch.shapes import COUNTS, Decided, Slice
from tests import factories

START = dt.datetime(2026, 3, 3, 22, 0, tzinfo=dt.UTC)
FIVES = 12 * 28  # two ends of days, and a whole one between
VERSIONS = (1, 2, 3)
CHECKERS = ("one", "other")


@dataclass(frozen=True)
class Output:
    """`five`: its bucket since START; `again`: under which versions it is decided again, the other way round."""

    decided: Decided
    five: int
    checker: str
    version: int
    again: frozenset[int]
    is_settled: bool


@dataclass(frozen=True)
class Waiting:
    slice: Slice
    five: int
    state: int


@dataclass(frozen=True)
class Asked:
    """`start` and `length` in minutes, since START."""

    start: int
    length: int
    bucket: str
    group_by: Sequence[str]
    filters: Mapping[str, str]
    checker: str | None
    policy_version: int | None
    histograms: bool


SLICES = st.builds(
    Slice,
    endpoint=st.sampled_from(["/a", "/b"]),
    customer=st.sampled_from(["", "c"]),
    model=st.sampled_from(["m", "k"]),
    prompt_type=st.just(""),
    model_version=st.just(""),
    environment=st.just(""),
)
CHECKS = st.builds(
    factories.decided,
    score=st.floats(0, 1),
    similarity=st.floats(-1, 1),
    is_calibrated=st.booleans(),
    confidence=st.none() | st.floats(0, 1),
    outcome=st.sampled_from(["scored"] * 4 + ["unscorable", "invalid_image", "model_error"]),
    slice=SLICES,
)
OUTPUTS = st.builds(
    Output,
    decided=CHECKS,
    five=st.integers(0, FIVES),
    checker=st.sampled_from(CHECKERS),
    version=st.sampled_from(VERSIONS),
    again=st.sampled_from([frozenset[int](), frozenset({2}), frozenset({3}), frozenset({2, 3})]),
    is_settled=st.booleans(),
)
WAITING = st.builds(Waiting, slice=SLICES, five=st.integers(0, FIVES), state=st.sampled_from([0, 1, 9]))
ASKED = st.builds(
    Asked,
    start=st.integers(-30, 5 * FIVES),
    length=st.integers(1, 5 * FIVES),
    bucket=st.sampled_from(list(cmer_series.WIDTHS)),
    group_by=st.lists(st.sampled_from(["endpoint", "customer", "model", "environment"]), max_size=3, unique=True),
    filters=st.dictionaries(
        st.sampled_from(["endpoint", "customer", "model"]), st.sampled_from(["", "/a", "c", "m"]), max_size=2
    ),
    checker=st.none() | st.sampled_from(CHECKERS),
    policy_version=st.none() | st.sampled_from(VERSIONS),
    histograms=st.booleans(),
)


@given(
    outputs=st.lists(OUTPUTS, max_size=14),
    waiting=st.lists(WAITING, max_size=4),
    finished=st.sampled_from([None, 2, 3]),
    questions=st.lists(ASKED, min_size=6, max_size=10),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_every_answer_is_what_counting_one_by_one_gives(
    session: orm.Session,
    project: models.Project,
    outputs: list[Output],
    waiting: list[Waiting],
    finished: int | None,
    questions: list[Asked],
) -> None:
    with session.begin_nested() as savepoint:
        story = _Story(session, project.id, finished)
        for output in outputs:
            story.lay(output)
        for one in waiting:
            story.wait(one)
        answers = [(story.expected(asked), story.answered(asked)) for asked in questions]
        savepoint.rollback()
    for asked, (expected, answered) in zip(questions, answers, strict=True):
        assert answered == expected, asked


Row = dict[str, int]
Answer = dict[tuple[dt.datetime, tuple[str, ...]], tuple[Row, Counter[int]]]


class _Story:
    def __init__(self, session: orm.Session, project_id: uuid.UUID, finished: int | None) -> None:
        self.session, self.project_id, self.finished = session, project_id, finished
        self.checkers = {name: factories.checker(session, name) for name in CHECKERS}
        self.laid: list[tuple[Decided, dict[int, Decided]]] = []
        self.work: list[models.Work] = []
        if finished is not None:
            done = {"created_by": "test", "last_event_id": uuid.UUID(int=0), "total": 0, "finished_at": START}
            session.add(models.Redecision(project_id=project_id, policy_version=finished, **done))

    def lay(self, output: Output) -> None:
        """Count it as workers do: once, then settled, then decided again beside it."""
        about = replace(output.decided.result.event, project_id=self.project_id, bucket=_at(output.five))
        result = replace(output.decided.result, event=about)
        decision = replace(output.decided.decision, policy_version=output.version)
        made = Decided(result, decision, self.checkers[output.checker])
        rollups.add(self.session, [made])
        if output.is_settled and result.score is not None and not decision.is_decided:
            decision = replace(factories.DEFAULT_POLICY.decide(result, True), policy_version=output.version)
            made = replace(made, decision=decision)
            rollups.settle(self.session, [made])
        again = {version: _reversed(made, version) for version in output.again if version > output.version}
        again = again if decision.is_decided else {}
        rollups.add_again(self.session, list(again.values()))
        self.laid.append((made, again))

    def wait(self, one: Waiting) -> None:
        about = {"project_id": self.project_id, "bucket": _at(one.five), "state": one.state}
        self.work.append(models.Work(event_id=ids.uuid7(), **about, **one.slice._asdict()))
        self.session.add(self.work[-1])
        self.session.flush()

    def answered(self, asked: Asked) -> Answer:
        start = START + dt.timedelta(minutes=asked.start)
        rows = cmer_series.query(
            self.session,
            self.project_id,
            start,
            start + dt.timedelta(minutes=asked.length),
            asked.bucket,
            asked.group_by,
            asked.filters,
            None if asked.checker is None else self.checkers[asked.checker],
            asked.policy_version,
            asked.histograms,
        )
        keys = [(row.start, tuple(row.group[name] for name in asked.group_by)) for row in rows]
        assert keys == sorted(set(keys))
        names = (*COUNTS, "waiting", "quarantined")
        return {
            key: (
                {name: getattr(row, name) for name in names},
                Counter({row.sim_first + i: n for i, n in enumerate(row.sim_hist) if n}),
            )
            for key, row in zip(keys, rows, strict=True)
        }

    def expected(self, asked: Asked) -> Answer:
        found: Answer = {}
        checker_id = self._checker(asked)
        for made, again in self.laid:
            event, result = made.result.event, made.result
            row = _row(asked, event.bucket, event.slice)
            if row is None or made.checker_id != checker_id:
                continue
            counts, sims = found.setdefault(row, _empty())
            counts[result.outcome] += 1
            if result.outcome != "scored" or result.similarity is None:
                continue
            if asked.histograms:
                sims[intervals.sim_bin(result.similarity)] += 1
            _count(counts, self._valid(made, again, asked.policy_version))
        for one in self.work:
            of = Slice(*(getattr(one, name) for name in Slice._fields))
            if row := _row(asked, one.bucket, of):
                found.setdefault(row, _empty())[0]["quarantined" if one.state == 9 else "waiting"] += 1
        return found

    def _checker(self, asked: Asked) -> int | None:
        """That of the newest hour, unless one is asked about."""
        if asked.checker is not None:
            return self.checkers[asked.checker]
        hours = [(cmer_series.floor(made.result.event.bucket, 3600), made.checker_id) for made, _ in self.laid]
        return max(hours)[1] if hours else None

    def _valid(self, made: Decided, again: Mapping[int, Decided], version: int | None) -> Decided | None:
        """The decision that counts."""
        own = made.decision.policy_version
        if version is not None:
            return made if own == version else again.get(version)
        return made if self.finished is None or own >= self.finished else again.get(self.finished)


def _at(five: int) -> dt.datetime:
    return START + five * dt.timedelta(minutes=5)


def _reversed(made: Decided, version: int) -> Decided:
    old = made.decision
    new = replace(old, policy_version=version, flagged=not old.flagged, low_similarity=not old.low_similarity)
    return replace(made, decision=new)


def _empty() -> tuple[Row, Counter[int]]:
    return dict.fromkeys((*COUNTS, "waiting", "quarantined"), 0), Counter()


def _row(asked: Asked, at: dt.datetime, of: Slice) -> tuple[dt.datetime, tuple[str, ...]] | None:
    """Where it counts, if at all."""
    finest = 3600 if asked.bucket in ("1h", "1d") else 300
    start = START + dt.timedelta(minutes=asked.start)
    first, last = cmer_series.floor(start, finest), start + dt.timedelta(minutes=asked.length)
    if not first <= at or cmer_series.floor(at, finest) >= last:
        return None
    if any(getattr(of, name) != value for name, value in asked.filters.items()):
        return None
    begins = first if asked.bucket == "all" else cmer_series.floor(at, cmer_series.WIDTHS[asked.bucket])
    return begins, tuple(getattr(of, name) for name in asked.group_by)


def _count(counts: Row, valid: Decided | None) -> None:
    if valid is None or not valid.decision.is_decided:
        counts["undecided"] += 1
        return
    decision, is_sure = valid.decision, valid.result.event.confidence is not None
    counts["low"] += decision.low_similarity
    counts["low_unconfirmed"] += decision.low_similarity and not is_sure
    counts["n"] += is_sure
    counts["flagged"] += is_sure and decision.flagged
