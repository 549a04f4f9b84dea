"""An alert's messages from the table to the sink: a real worker sends, a real web process receives."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable

import sqlalchemy as sa
from standardwebhooks.webhooks import Webhook

from cmerwatch import access, channels, db, models, settings, sink
from tests import alerting, processes, stack


def test_all_three_kinds_reach_the_demos_sink_and_verify(
    committed: str, configured: Callable[..., settings.Settings]
) -> None:
    configured(database_url=committed, demo_sink="true", allow_private_targets="127.0.0.0/8")
    with processes.web(committed) as url, processes.worker(committed):
        with db.transaction() as session:
            project_id = access.create_project(session, "demo").id
            secret = channels.ensure_demo(session, project_id, "demo", url)
            alert = alerting.alert(session, project_id)
            for channel in channels.listed(session, project_id):
                alerting.message(session, channel, alert)
        stack.wait_until(lambda: states(project_id) == {"delivered"}, 60)
        with db.transaction() as session:
            for channel in channels.listed(session, project_id):
                alerting.message(session, channel, alert, "resolved")
        stack.wait_until(lambda: states(project_id) == {"delivered"}, 60)
    with db.transaction() as session:
        got = {kind: sink.listed(session, project_id, kind) for kind in sink.KINDS}
        assert {kind: len(messages) for kind, messages in got.items()} == dict.fromkeys(sink.KINDS, 2)
        for message in got["webhook"]:
            Webhook(secret).verify(message.body, message.headers)
        actions = [json.loads(message.body) for message in reversed(got["pagerduty"])]
        assert [one["event_action"] for one in actions] == ["trigger", "resolve"]
        assert len({one["dedup_key"] for one in actions}) == 1


def test_a_second_start_points_the_channels_at_the_sinks_new_port(
    committed: str, configured: Callable[..., settings.Settings]
) -> None:
    configured(allow_private_targets="127.0.0.0/8")
    with db.transaction() as session:
        project_id = access.create_project(session, "demo").id
        first = channels.ensure_demo(session, project_id, "demo", "http://127.0.0.1:1111")
        second = channels.ensure_demo(session, project_id, "demo", "http://127.0.0.1:2222")
        made = channels.listed(session, project_id)
        assert first == second
        assert {channel.kind for channel in made} == set(sink.KINDS)
        assert {alerting.opened(one)["url"].rpartition("/sink/")[0] for one in made} == {"http://127.0.0.1:2222"}


def states(project_id: uuid.UUID) -> set[str]:
    with db.SessionLocal() as session:
        return set(session.scalars(sa.select(models.Delivery.state).where(models.Delivery.project_id == project_id)))
