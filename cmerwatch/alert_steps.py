"""One reading of one slice: where its rule stood, where it stands now, and both written so that it happens once."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import alert_episodes, models
from cmerwatch.alert_judging import Judgement
from cmerwatch.alert_notices import Scene
from cmerwatch.alert_states import Standing, next_state


@dataclass(frozen=True, slots=True)
class Step:
    """One slice in one bucket: where it stood, where it stands, and on what numbers."""

    key: str
    scene: Scene
    before: Standing
    after: Standing
    evidence: dict[str, Any]
    reason: str

    @property
    def opens(self) -> bool:
        return self.after.is_open and not self.before.is_open

    @property
    def closes(self) -> bool:
        return self.before.is_open and not self.after.is_open

    def row(self, rule: models.AlertRule, old: models.AlertState | None) -> models.AlertState:
        """The state as the statement has written it; not added to the session, which would write it again."""
        return models.AlertState(
            rule_id=rule.id,
            slice_key=self.key,
            project_id=rule.project_id,
            slice=dict(self.scene.slice),
            state=self.after.state,
            since=self.after.since,
            evaluated_bucket=self.scene.end,
            alert_id=old.alert_id if old else None,
            evidence=self.evidence,
            reason=self.reason,
        )


def take(
    rule: models.AlertRule,
    scene: Scene,
    judged: Judgement,
    state: models.AlertState | None,
    judged_by: tuple[int | None, int],
) -> Step:
    """One reading further. `judged_by`: whose numbers they are."""
    before = _standing(state) if state else Standing("ok", scene.end)
    after = next_state(
        before,
        judged.verdict,
        scene.end,
        dt.timedelta(seconds=rule.for_seconds),
        dt.timedelta(seconds=rule.keep_firing_seconds),
    )
    reason = judged.reason
    if before.is_open and not after.is_open and judged.verdict in ("few", "silent"):
        reason = f"closed after a day without enough outputs to tell ({reason}); it was not seen to recover"
    evidence = judged.evidence | {
        "window_start": scene.start.isoformat(),
        "window_end": scene.end.isoformat(),
        "missing_since": after.missing_since.isoformat() if after.missing_since else None,
        "reason": reason,
        "judged_by": list(judged_by),
    }
    return Step(alert_episodes.slice_key(scene.slice), scene, before, after, evidence, reason)


def _standing(state: models.AlertState) -> Standing:
    missing = state.evidence.get("missing_since")
    return Standing(state.state, state.since, dt.datetime.fromisoformat(missing) if missing else None)


_WRITE = sa.text(
    """
    INSERT INTO alert_states AS s (rule_id, slice_key, project_id, slice, state, since, evaluated_bucket, evidence,
        reason)
    SELECT :rule, slice_key, :project, slice, state, since, :bucket, evidence, reason
    FROM jsonb_to_recordset(CAST(:rows AS jsonb))
        AS r(slice_key text, slice jsonb, state text, since timestamptz, evidence jsonb, reason text)
    ORDER BY slice_key
    ON CONFLICT (rule_id, slice_key) DO UPDATE SET state = excluded.state, since = excluded.since,
        evaluated_bucket = excluded.evaluated_bucket, evidence = excluded.evidence, reason = excluded.reason
        WHERE s.evaluated_bucket < excluded.evaluated_bucket
    RETURNING slice_key
    """
)
_LINK = sa.text(
    "UPDATE alert_states SET alert_id = CAST(:alert AS uuid) WHERE rule_id = CAST(:rule AS uuid) AND slice_key = :key"
)
_FORGET = sa.text(
    "DELETE FROM alert_states WHERE rule_id = :rule AND alert_id IS NULL AND slice_key = ANY(CAST(:gone AS text[]))"
)


def forget(session: orm.Session, rule: models.AlertRule, states: dict[str, models.AlertState], kept: set[str]) -> None:
    """A slice that has shown nothing for as long as a baseline is no longer worth a row, nor being judged."""
    gone = [key for key in states if key not in kept]
    if gone:
        session.execute(_FORGET, {"rule": rule.id, "gone": gone})
    for key in gone:
        del states[key]


def write(session: orm.Session, rule: models.AlertRule, at: dt.datetime, steps: Sequence[Step]) -> set[str]:
    """Compare and set on evaluated_bucket; the keys that were not already judged so far."""
    rows = [
        {
            "slice_key": step.key,
            "slice": dict(step.scene.slice),
            "state": step.after.state,
            "since": step.after.since.isoformat(),
            "evidence": step.evidence,
            "reason": step.reason,
        }
        for step in steps
    ]
    values = {"rule": rule.id, "project": rule.project_id, "bucket": at, "rows": json.dumps(rows)}
    return set(session.scalars(_WRITE, values))


def link(session: orm.Session, states: Sequence[models.AlertState]) -> None:
    """Write which episode each is of, if any."""
    rows = [{"rule": one.rule_id, "key": one.slice_key, "alert": one.alert_id} for one in states]
    if rows:
        session.execute(_LINK, rows)
