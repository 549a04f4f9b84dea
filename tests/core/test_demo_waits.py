"""What a start of the demo waits for."""

from __future__ import annotations

import sqlalchemy as sa

from cmerwatch import access, db, demo, models
from tests import alerting
from tests.core import watched


def test_a_start_does_not_wait_for_a_channel_that_answers_nobody(committed: str) -> None:
    with db.transaction() as session:
        project = access.create_project(session, demo.PROJECT)
        alert = alerting.alert(session, project.id)
        for name in ("sink", "broken"):
            alerting.message(session, watched.channel(session, project.id, name=name), alert)
    assert demo.untold() == 2
    with db.transaction() as session:
        session.execute(
            sa.update(models.Delivery)
            .where(models.Delivery.channel_id == models.Channel.id, models.Channel.name == "broken")
            .values(attempts=demo.GIVEN_UP)
        )
    assert demo.untold() == 1
