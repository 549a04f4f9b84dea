"""The demo's receiver: keeps what channels sent, byte for byte, for a page that shows it. Never on elsewhere."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import access, errors, ids, models

KINDS = ("slack", "pagerduty", "webhook")
KEPT = 200  # messages of a project; anybody who reaches the demo may post


def store(session: orm.Session, project_slug: str, kind: str, headers: Mapping[str, str], body: bytes) -> None:
    """Raises NotFound for a project or kind there is none of."""
    if kind not in KINDS:
        raise errors.NotFound(f"The sink has no {kind!r}; it has {', '.join(KINDS)}.")
    project_id = access.project_of_slug(session, project_slug).id
    named = {name: _storable(value) for name, value in headers.items()}
    text = _storable(body.decode("utf-8", "replace"))
    session.add(models.SinkMessage(id=ids.uuid7(), project_id=project_id, kind=kind, headers=named, body=text))
    session.flush()
    newest = sa.select(models.SinkMessage.id).where(models.SinkMessage.project_id == project_id)
    kept = newest.order_by(models.SinkMessage.id.desc()).limit(KEPT)
    session.execute(
        sa.delete(models.SinkMessage).where(
            models.SinkMessage.project_id == project_id, models.SinkMessage.id.not_in(kept)
        )
    )


def listed(session: orm.Session, project_id: uuid.UUID, kind: str, limit: int = 20) -> list[models.SinkMessage]:
    """The newest first."""
    mine = sa.select(models.SinkMessage).where(
        models.SinkMessage.project_id == project_id, models.SinkMessage.kind == kind
    )
    return list(session.scalars(mine.order_by(models.SinkMessage.id.desc()).limit(limit)))


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd")
