"""Channels that two people change at the same moment."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import channels, db, errors, models
from tests import alerting, factories, stack

URL = "https://192.0.2.1/hooks/x"
Change = Callable[[orm.Session, uuid.UUID, uuid.UUID], object]


@pytest.fixture(autouse=True)
def allowed(configured: Callable[..., object]) -> None:
    configured(allow_private_targets="192.0.2.0/24")


@pytest.fixture
def webhook(committed: str) -> models.Channel:
    with db.transaction() as session:
        return alerting.channel(session, factories.project(session, "acme"), "webhook", URL)


def move(session: orm.Session, project_id: uuid.UUID, channel_id: uuid.UUID) -> None:
    channels.update(
        session, alerting.principal(project_id), channel_id, given=channels.looked_up({"url": f"{URL}/new"})
    )


def rotate(session: orm.Session, project_id: uuid.UUID, channel_id: uuid.UUID) -> None:
    channels.rotate_secret(session, alerting.principal(project_id), channel_id)


def delete(session: orm.Session, project_id: uuid.UUID, channel_id: uuid.UUID) -> None:
    channels.delete(session, alerting.principal(project_id), channel_id)


def press(session: orm.Session, project_id: uuid.UUID, channel_id: uuid.UUID) -> None:
    channels.test(session, alerting.principal(project_id), channel_id)


def in_turn(channel: models.Channel, first: Change, second: Change) -> list[Exception]:
    """`second` begins before `first` commits; returns what it raised."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            with db.transaction() as session:
                # What a page read before: the change must not build on it.
                channels.get(session, channel.project_id, channel.id)
                begun.set()
                second(session, channel.project_id, channel.id)
        except Exception as error:
            raised.append(error)

    begun, thread = threading.Event(), threading.Thread(target=run)
    with db.transaction() as session:
        first(session, channel.project_id, channel.id)
        session.flush()
        thread.start()
        assert begun.wait(10)
        stack.wait_until(lambda: not thread.is_alive() or stack.waits_for_a_lock())
    thread.join()
    return raised


@pytest.mark.parametrize("first, second", [(rotate, move), (move, rotate)])
def test_a_secret_that_was_told_survives_a_change_of_the_address(
    webhook: models.Channel, first: Change, second: Change
) -> None:
    old = alerting.opened(webhook)["secret"]
    assert in_turn(webhook, first, second) == []
    with db.transaction() as session:
        config = alerting.opened(session.get_one(models.Channel, webhook.id))
    assert (config["url"], config["old_secret"]) == (f"{URL}/new", old)
    assert config["secret"] != old


def test_a_channel_that_is_being_deleted_gets_no_new_configuration(webhook: models.Channel) -> None:
    [error] = in_turn(webhook, delete, move)
    assert isinstance(error, errors.NotFound)
    with db.transaction() as session:
        assert session.get_one(models.Channel, webhook.id).sealed_config == b""


def test_two_presses_of_the_button_at_once_make_one_test(webhook: models.Channel) -> None:
    assert in_turn(webhook, press, press) == []
    with db.transaction() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(models.Delivery)) == 1
