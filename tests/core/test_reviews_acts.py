"""What reviewers say: verdicts, skips, escalations and undos, each appended once and never changed."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import access, db, errors, event_views, models, reviews
from tests import factories
from tests.core import review_people as people

HALLUCINATED = reviews.Answer("hallucinated")
SIX_MINUTES = dt.timedelta(minutes=6)


@pytest.fixture
def ada(session: orm.Session, project: models.Project) -> access.Principal:
    return people.reviewer(session, project.id, "ada")


@pytest.fixture
def bob(session: orm.Session, project: models.Project) -> access.Principal:
    return people.reviewer(session, project.id, "bob")


@pytest.fixture
def lea(session: orm.Session, project: models.Project) -> access.Principal:
    return people.reviewer(session, project.id, "lea", "lead")


@pytest.fixture
def item(session: orm.Session, project: models.Project) -> models.ReviewItem:
    """About the output `A red circle.` of 13 characters."""
    (made,) = people.queue(session, project.id, 1)
    return made


def take(session: orm.Session, who: access.Principal, item: models.ReviewItem) -> uuid.UUID:
    return reviews.hold(session, who, item.id).lease.token


def answer(
    session: orm.Session, who: access.Principal, item: models.ReviewItem, said: reviews.Answer = HALLUCINATED
) -> models.Review:
    return reviews.submit(session, who, item.id, take(session, who, item), said)


def skip(session: orm.Session, who: access.Principal, item: models.ReviewItem, reason: str = "blurred") -> str:
    return reviews.skip(session, who, item.id, take(session, who, item), reason).state


def test_a_verdict_is_kept_with_all_that_was_said(
    session: orm.Session, ada: access.Principal, item: models.ReviewItem
) -> None:
    token = take(session, ada, item)
    people.pass_time(session, dt.timedelta(seconds=90))
    said = reviews.Answer(
        "partially_correct",
        ("attribute", "object", "attribute"),
        ({"start": 2, "end": 5, "error_type": "attribute"}, {"start": 12, "end": 13}),
        "A blue circle.",
        "The circle is \N{LARGE BLUE CIRCLE}.",
    )
    review = reviews.submit(session, ada, item.id, token, said)
    assert (review.verdict, review.error_types) == ("partially_correct", ["attribute", "object"])
    assert review.spans == [{"start": 2, "end": 5, "error_type": "attribute"}, {"start": 12, "end": 13}]
    assert (review.correction, review.note) == ("A blue circle.", "The circle is \N{LARGE BLUE CIRCLE}.")
    assert (review.reviewer_id, review.lease_token, review.event_id) == (ada.user_id, token, item.event_id)
    assert review.seconds is not None
    assert 90 <= review.seconds < 120, "the server's own count, since the lease began"
    session.refresh(item)
    assert (item.state, item.leased_by, item.lease_until) == ("done", None, None)
    assert item.done_at is not None


@pytest.mark.parametrize("verdict", models.VERDICTS)
def test_the_four_verdicts(session: orm.Session, ada: access.Principal, item: models.ReviewItem, verdict: str) -> None:
    assert answer(session, ada, item, reviews.Answer(verdict)).verdict == verdict


def test_what_nobody_filled_in_is_null(session: orm.Session, ada: access.Principal, item: models.ReviewItem) -> None:
    review = answer(session, ada, item, reviews.Answer("correct", correction="", note=" \n "))
    assert (review.correction, review.note, review.error_types, review.spans) == (None, None, [], [])


def test_what_postgres_cannot_hold_is_replaced(
    session: orm.Session, ada: access.Principal, item: models.ReviewItem
) -> None:
    assert answer(session, ada, item, reviews.Answer("correct", note="a\x00b\ud800c")).note == "a\ufffdb\ufffdc"


@pytest.mark.parametrize(
    "fields, field",
    [
        ({"verdict": "wrong"}, "verdict"),
        ({"verdict": ""}, "verdict"),
        ({"error_types": ("object", "colour")}, "error_types[1]"),
        ({"verdict": "correct", "error_types": ("object",)}, "error_types"),
        ({"spans": ({"start": 0, "end": 14},)}, "spans[0].end"),
        ({"spans": ({"start": 0, "end": 3}, {"start": 5, "end": 5})}, "spans[1].end"),
        ({"spans": ({"start": -1, "end": 3},)}, "spans[0].start"),
        ({"spans": ({"start": True, "end": 3},)}, "spans[0].start"),
        ({"spans": ({"end": 3},)}, "spans[0].start"),
        ({"spans": ({"start": 0, "end": 3, "error_type": "hue"},)}, "spans[0].error_type"),
        ({"spans": ({"start": 0, "end": 3, "colour": "red"},)}, "spans[0]"),
        ({"spans": ({"start": 0, "end": 1},) * 101}, "spans"),
        ({"note": "x" * 10_001}, "note"),
        ({"correction": "x" * 10_001}, "correction"),
    ],
)
def test_a_bad_answer_is_refused_by_name_and_the_lease_stays(
    session: orm.Session, ada: access.Principal, item: models.ReviewItem, fields: dict[str, Any], field: str
) -> None:
    token = take(session, ada, item)
    with pytest.raises(errors.Invalid) as refused:
        reviews.submit(session, ada, item.id, token, reviews.Answer(**({"verdict": "hallucinated"} | fields)))
    assert refused.value.details["field"] == field
    assert reviews.submit(session, ada, item.id, token, HALLUCINATED).verdict == "hallucinated"


def test_what_a_span_names_is_among_the_error_types(
    session: orm.Session, ada: access.Principal, item: models.ReviewItem
) -> None:
    spans = ({"start": 2, "end": 5, "error_type": "attribute"}, {"start": 6, "end": 7, "error_type": "count"})
    review = answer(session, ada, item, reviews.Answer("hallucinated", ("count", "other"), spans=spans))
    assert review.error_types == ["count", "other", "attribute"]


def test_a_correct_output_has_no_error_named_in_its_spans(
    session: orm.Session, ada: access.Principal, item: models.ReviewItem
) -> None:
    span = {"start": 2, "end": 5}
    with pytest.raises(errors.Invalid) as refused:
        answer(session, ada, item, reviews.Answer("correct", spans=(span | {"error_type": "count"},)))
    assert refused.value.details["field"] == "spans"
    assert answer(session, ada, item, reviews.Answer("correct", spans=(span,))).spans == [span]


def test_spans_count_characters_not_bytes(session: orm.Session, project: models.Project, ada: access.Principal) -> None:
    output = "\N{LARGE RED CIRCLE} ist ein Kreis, schön."
    (item,) = people.queue(session, project.id, 1, output=output)
    whole = {"start": 0, "end": len(output)}
    assert answer(session, ada, item, reviews.Answer("hallucinated", spans=(whole,))).spans == [whole]


def test_a_second_verdict_under_one_lease_is_refused_naming_who_and_when(
    session: orm.Session, ada: access.Principal, item: models.ReviewItem
) -> None:
    token = take(session, ada, item)
    first = reviews.submit(session, ada, item.id, token, HALLUCINATED)
    with pytest.raises(errors.LeaseLost, match="was answered by ada at") as refused:
        reviews.submit(session, ada, item.id, token, reviews.Answer("correct"))
    at = first.created_at.isoformat()
    assert refused.value.details == {"holder": "ada", "until": None, "state": "done", "at": at}


def test_a_verdict_after_another_took_the_item_names_them(
    session: orm.Session, ada: access.Principal, bob: access.Principal, item: models.ReviewItem
) -> None:
    token = take(session, ada, item)
    people.pass_time(session, SIX_MINUTES)
    until = reviews.hold(session, bob, item.id).lease.expires_at
    with pytest.raises(errors.LeaseLost, match=rf"bob holds this item, until {until:%Y-%m-%d %H:%M:%S} UTC") as refused:
        reviews.submit(session, ada, item.id, token, HALLUCINATED)
    assert (refused.value.details["holder"], refused.value.details["until"]) == ("bob", until.isoformat())


def test_a_verdict_after_the_lease_ended_is_refused_and_the_item_offered_again(
    session: orm.Session, ada: access.Principal, item: models.ReviewItem
) -> None:
    token = take(session, ada, item)
    people.pass_time(session, SIX_MINUTES)
    with pytest.raises(errors.LeaseLost, match="Take it again and send the same answer") as refused:
        reviews.submit(session, ada, item.id, token, HALLUCINATED)
    assert (refused.value.details["holder"], refused.value.details["state"]) == (None, "expired")
    assert answer(session, ada, item).verdict == "hallucinated"


@pytest.mark.parametrize("who", ["ada", "bob"])
def test_a_token_that_was_never_given_out_answers_nothing(
    session: orm.Session, ada: access.Principal, bob: access.Principal, item: models.ReviewItem, who: str
) -> None:
    token = take(session, ada, item)
    with pytest.raises(errors.LeaseLost):  # another's token is as good as none
        reviews.submit(
            session, {"ada": ada, "bob": bob}[who], item.id, uuid.uuid4() if who == "ada" else token, HALLUCINATED
        )
    assert reviews.history(session, item.project_id, item.event_id) == []


def test_a_skipped_item_goes_to_another_and_not_straight_back(
    session: orm.Session, ada: access.Principal, bob: access.Principal, item: models.ReviewItem
) -> None:
    assert skip(session, ada, item) == "open"
    assert reviews.next_item(session, ada) is None
    found = reviews.next_item(session, bob)
    assert found is not None
    assert found.item.id == item.id


def test_a_team_of_one_gets_a_skipped_item_again_after_an_hour(
    session: orm.Session, ada: access.Principal, item: models.ReviewItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip(session, ada, item)
    assert reviews.next_item(session, ada) is None
    # The log cannot be moved back in time. Within a test's one transaction now() stands still, before the skip: so no
    # rest at all is written as a negative one.
    monkeypatch.setattr("cmerwatch.review_leases.SKIP_REST", -dt.timedelta(hours=1))
    assert reviews.next_item(session, ada) is not None


@pytest.mark.parametrize("second", ["ada", "bob"])
def test_the_second_skip_escalates_whoever_skips(
    session: orm.Session, ada: access.Principal, bob: access.Principal, lea: access.Principal,
    item: models.ReviewItem, second: str
) -> None:  # fmt: skip
    assert skip(session, ada, item) == "open"
    assert skip(session, {"ada": ada, "bob": bob}[second], item) == "escalated"
    for who in (ada, bob):
        assert reviews.next_item(session, who) is None
        with pytest.raises(errors.LeaseLost, match="a lead will answer it"):
            reviews.hold(session, who, item.id)
    found = reviews.next_item(session, lea, state="escalated")
    assert found is not None
    assert found.item.id == item.id


def test_what_is_escalated_goes_to_leads_and_stays_theirs_when_abandoned(
    session: orm.Session, ada: access.Principal, bob: access.Principal, lea: access.Principal, item: models.ReviewItem
) -> None:
    token = take(session, ada, item)
    assert reviews.escalate(session, ada, item.id, token, "Is this our logo?").state == "escalated"
    assert reviews.next_item(session, lea) is None, "asked for by name only"
    assert reviews.next_item(session, lea, state="escalated") is not None
    people.pass_time(session, SIX_MINUTES)
    assert reviews.next_item(session, bob) is None
    assert reviews.next_item(session, lea, state="escalated") is not None
    assert answer(session, lea, item).verdict == "hallucinated"
    said = [(act.action, act.reason) for act in reviews.history(session, item.project_id, item.event_id)]
    assert said == [("escalate", "Is this our logo?"), ("verdict", None)]


def test_what_was_escalated_stays_so_when_a_lead_skips_it(
    session: orm.Session, ada: access.Principal, lea: access.Principal, item: models.ReviewItem
) -> None:
    reviews.escalate(session, ada, item.id, take(session, ada, item), "unsure")
    assert skip(session, lea, item) == "escalated"
    assert reviews.next_item(session, lea, state="escalated") is None, "nor straight back to a lead"
    zoe = people.reviewer(session, item.project_id, "zoe", "lead")
    assert reviews.next_item(session, zoe, state="escalated") is not None


@pytest.mark.parametrize("call", [reviews.skip, reviews.escalate])
@pytest.mark.parametrize("reason", ["", " \t", pytest.param("x" * 10_001, id="long")])
def test_passing_an_item_on_needs_a_reason(
    session: orm.Session, ada: access.Principal, item: models.ReviewItem, call: Any, reason: str
) -> None:
    token = take(session, ada, item)
    with pytest.raises(errors.Invalid) as refused:
        call(session, ada, item.id, token, reason)
    assert refused.value.details["field"] == "reason"


def test_an_undo_leases_the_item_again_and_leaves_the_verdict_written(
    session: orm.Session, ada: access.Principal, item: models.ReviewItem
) -> None:
    first = answer(session, ada, item)
    back = reviews.undo(session, ada, item.id)
    assert (back.item.state, back.item.leased_by, back.item.done_at) == ("leased", ada.user_id, None)
    view = event_views.get(session, item.project_id, item.event_id)
    assert view.verdict is None
    second = reviews.submit(session, ada, item.id, back.lease.token, reviews.Answer("correct"))
    acts = reviews.history(session, item.project_id, item.event_id)
    assert [(act.action, act.undoes) for act in acts] == [("verdict", None), ("undo", first.id), ("verdict", None)]
    view = event_views.get(session, item.project_id, item.event_id)
    assert view.verdict is not None
    assert (view.verdict.id, view.verdict.verdict) == (second.id, "correct")
    marks = [(act.review.id, act.login, act.is_undone) for act in reviews.recent(session, item.project_id, ada.user_id)]
    assert sorted(marks) == sorted([(first.id, "ada", True), (second.id, "ada", False)])


def test_an_undone_skip_counts_no_more(
    session: orm.Session, ada: access.Principal, bob: access.Principal, item: models.ReviewItem
) -> None:
    skip(session, ada, item)
    back = reviews.undo(session, ada, item.id)
    reviews.give_back(session, ada, item.id, back.lease.token)
    assert reviews.next_item(session, ada) is not None, "it is theirs to take again"
    people.pass_time(session, SIX_MINUTES)
    assert skip(session, bob, item) == "open"


def test_an_undone_escalation_is_an_ordinary_item_again(
    session: orm.Session, ada: access.Principal, bob: access.Principal, item: models.ReviewItem
) -> None:
    for act in (reviews.escalate, reviews.skip):
        if act is reviews.skip:
            skip(session, bob, item)
        act(session, ada, item.id, take(session, ada, item), "unsure")
        back = reviews.undo(session, ada, item.id)
        assert back.item.state == "leased"
        reviews.give_back(session, ada, item.id, back.lease.token)


def test_a_leads_undone_verdict_is_escalated_again(
    session: orm.Session, ada: access.Principal, lea: access.Principal, item: models.ReviewItem
) -> None:
    reviews.escalate(session, ada, item.id, take(session, ada, item), "unsure")
    answer(session, lea, item)
    back = reviews.undo(session, lea, item.id)
    assert back.item.state == "escalated"
    reviews.submit(session, lea, item.id, back.lease.token, HALLUCINATED)


def test_only_ones_own_last_act_of_the_last_ten_minutes_is_taken_back(
    session: orm.Session,
    ada: access.Principal,
    bob: access.Principal,
    item: models.ReviewItem,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(errors.Conflict, match="nothing to take back"):
        reviews.undo(session, ada, item.id)
    skip(session, ada, item)
    answer(session, bob, item)
    with pytest.raises(errors.Conflict, match="The last act on this item is bob's"):
        reviews.undo(session, ada, item.id)
    monkeypatch.setattr(reviews, "UNDO_WITHIN", -dt.timedelta(minutes=10))  # as if it had been long ago
    with pytest.raises(errors.Conflict, match="stands now"):
        reviews.undo(session, bob, item.id)


def test_a_skip_is_not_taken_back_while_another_holds_the_item(
    session: orm.Session, ada: access.Principal, bob: access.Principal, item: models.ReviewItem
) -> None:
    skip(session, ada, item)
    take(session, bob, item)
    with pytest.raises(errors.LeaseLost, match="bob holds this item"):
        reviews.undo(session, ada, item.id)


def test_an_undo_needs_room_for_one_more(session: orm.Session, project: models.Project, ada: access.Principal) -> None:
    items = people.queue(session, project.id, 11)
    answer(session, ada, items[0])
    for _ in range(10):
        reviews.next_item(session, ada)
    with pytest.raises(errors.Conflict, match="hold 10 items"):
        reviews.undo(session, ada, items[0].id)


@pytest.mark.parametrize("statement", ["UPDATE reviews SET verdict = 'correct'", "DELETE FROM reviews"])
def test_the_log_is_append_only_for_everybody(
    session: orm.Session, ada: access.Principal, item: models.ReviewItem, statement: str
) -> None:
    answer(session, ada, item)
    with pytest.raises(sa.exc.DBAPIError, match="append"):
        session.execute(sa.text(statement))


def test_the_counts_tell_waiting_held_escalated_and_done_apart(
    session: orm.Session, project: models.Project, ada: access.Principal, bob: access.Principal, lea: access.Principal
) -> None:
    items = people.queue(session, project.id, 6)
    answer(session, ada, items[0])
    reviews.undo(session, ada, items[0].id)  # held
    answer(session, ada, items[1])  # done
    reviews.escalate(session, bob, items[2].id, take(session, bob, items[2]), "why")  # escalated
    reviews.escalate(session, bob, items[3].id, take(session, bob, items[3]), "why")
    take(session, lea, items[3])  # held
    take(session, bob, items[4])
    people.pass_time(session, SIX_MINUTES, [items[4].id])  # open again
    found = reviews.counts(session, project.id)
    assert (found.open, found.held, found.escalated, found.done_today) == (2, 2, 1, 1)
    assert found.oldest == min(items[4].created_at, items[5].created_at)


def test_a_lease_is_answered_once_by_however_many_at_once(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session, "acme")
        (item,) = people.queue(session, project_id, 1)
        ada = people.reviewer(session, project_id, "ada")
        token = reviews.hold(session, ada, item.id).lease.token
    start = threading.Barrier(8)

    def press(n: int) -> str:
        start.wait()
        try:
            with db.transaction() as session:
                return str(reviews.submit(session, ada, item.id, token, reviews.Answer(models.VERDICTS[n % 4])).verdict)
        except errors.LeaseLost as lost:
            return str(lost.details["state"])

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(press, range(8)))
    assert said.count("done") == 7, "the others are told that it was answered"


def test_an_act_is_taken_back_once_by_however_many_at_once(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session, "acme")
        (item,) = people.queue(session, project_id, 1)
        ada = people.reviewer(session, project_id, "ada")
        answer(session, ada, item)
    start = threading.Barrier(4)

    def press(_: int) -> bool:
        start.wait()
        try:
            with db.transaction() as session:
                reviews.undo(session, ada, item.id)
        except errors.Conflict:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(press, range(4))) == 1


def test_an_undo_never_takes_the_item_from_whoever_claims_it_at_that_moment(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session, "acme")
        (item,) = people.queue(session, project_id, 1)
        ada, bob = (people.reviewer(session, project_id, name) for name in ("ada", "bob"))
        skip(session, ada, item)

    def take_back() -> str:
        try:
            with db.transaction() as session:
                reviews.undo(session, ada, item.id)
        except errors.LeaseLost as lost:
            return str(lost.details["holder"])
        return "taken"

    with ThreadPoolExecutor(1) as pool, db.SessionLocal() as session:
        assert reviews.next_item(session, bob) is not None
        undoing = pool.submit(take_back)
        factories.wait_for_locks(1)
        session.commit()
        assert undoing.result() == "bob"
