"""Fifty reviewers on one queue while their leases are killed at random: no item is shared, lost or answered twice.

Real web processes, real Postgres, a connection per reviewer. `make test` runs a short edition; `make faults` the one of
2 000 items; CMERWATCH_REVIEW_ITEMS=10000 sets another number.

A trigger of this test's own database writes down every change of hands as Postgres sees it, so that the witness of a
double claim shares no code with what it watches.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import select
import threading
import time
import urllib.parse
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa

from cmerwatch import access, db, models
from tests import factories, processes

pytestmark = pytest.mark.faults

LONG = os.environ.get("CMERWATCH_LONG_FAULTS") == "1"
ITEMS = int(os.environ.get("CMERWATCH_REVIEW_ITEMS", "2000" if LONG else "300"))
REVIEWERS, LEADS = 50, 2
LIMIT_SECONDS = 60 + ITEMS * 0.2
LOST, UNKNOWN = "lost", "unknown"

_WITNESS = """
    CREATE TABLE witness (item uuid, token uuid, was_live boolean);
    CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.lease_token IS NOT NULL AND NEW.lease_token IS DISTINCT FROM OLD.lease_token THEN
            INSERT INTO witness VALUES
                (NEW.id, NEW.lease_token, OLD.lease_token IS NOT NULL AND OLD.lease_until > clock_timestamp());
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER witness AFTER UPDATE ON review_items FOR EACH ROW EXECUTE FUNCTION witness();
"""

# A quarter of all leases alive at this moment end, whatever their reviewers are doing right now.
_KILL = "UPDATE review_items SET lease_until = now() - interval '1 ms' WHERE lease_until > now() AND random() < 0.25"


@dataclass
class Reviewer:
    """One person at one connection, with moods: mostly diligent, sometimes gone, late, or pressing twice."""

    url: str
    key: str
    user_id: uuid.UUID
    is_lead: bool
    rng: random.Random
    stop: threading.Event
    tokens: dict[str, str] = field(default_factory=dict)  # every lease granted, to its item
    answered: dict[str, str] = field(default_factory=dict)  # what was heard of a token's verdict: ok, lost, unknown
    calls: int = 0
    abandoned: int = 0
    late: list[tuple[str, str]] = field(default_factory=list)

    def work(self) -> None:
        self.connect()
        while not self.stop.is_set():
            lease = self.take()
            if lease is None:
                self.answer_late()
                self.stop.wait(0.05)  # nothing free: others hold the rest
            else:
                self.treat(*lease)
        self.connection.close()

    def connect(self) -> None:
        self.connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.url).netloc, timeout=30)

    def call(self, path: str, body: Any = None) -> tuple[int, Any]:
        self.calls += 1
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        self.connection.request("POST", "/v1/reviews/" + path, json.dumps(body or {}), headers)
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status == 503:  # on a machine too busy for us; it says that nothing was stored
            self.stop.wait(0.2)
            return self.call(path, body)
        return answer.status, json.loads(text) if text else None

    def take(self) -> tuple[str, str] | None:
        wanted = {"state": "escalated"} if self.is_lead and self.rng.random() < 0.5 else {}
        status, answer = self.call("next", wanted)
        if status == 409:  # ten held, all of them left behind: they end one after another
            return None
        assert status in (200, 204), answer
        return self.granted(answer) if answer else None

    def granted(self, answer: Any) -> tuple[str, str]:
        item, token = answer["item"]["id"], answer["lease"]["token"]
        assert token not in self.tokens, "a token was given out twice"
        self.tokens[token] = item
        return item, token

    def treat(self, item: str, token: str) -> None:
        mood = self.rng.random()
        if mood < 0.08:
            self.abandoned += 1
        elif mood < 0.13:
            self.late.append((item, token))
        elif mood < 0.18:
            self.die_while_sending(item, token)
        elif mood < 0.23:
            self.pass_on(item, token, self.rng.choice(["skip", "escalate", "release"]))
        else:
            if mood < 0.4:
                status, answer = self.call(f"{item}/heartbeat", {"lease_token": token})
                assert status in (200, 409), answer
            heard = self.answer(item, token)
            if heard == "ok" and mood > 0.95:
                assert self.answer(item, token, again=True) == LOST
            elif heard == "ok" and mood > 0.92:
                self.change_mind(item)

    def answer(self, item: str, token: str, again: bool = False) -> str:
        status, answer = self.call(f"{item}/verdict", _verdict(token, self.rng))
        assert status in (200, 409), answer
        if status == 409:
            assert answer["error"]["code"] == "lease_lost"
            assert {"holder", "until", "state"} <= set(answer["error"]["details"])
        heard = "ok" if status == 200 else LOST
        if not again:
            self.answered[token] = heard
        return heard

    def answer_late(self) -> None:
        while self.late:
            self.answer(*self.late.pop())

    def die_while_sending(self, item: str, token: str) -> None:
        """The verdict leaves, and nobody is there to hear the answer."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        body = json.dumps(_verdict(token, self.rng))
        self.connection.request("POST", f"/v1/reviews/{item}/verdict", body, headers)
        if self.rng.random() < 0.5:  # after it was carried out, else while it is
            select.select([self.connection.sock], [], [], 30)
        self.connection.close()
        self.answered[token] = UNKNOWN
        self.connect()

    def pass_on(self, item: str, token: str, how: str) -> None:
        status, answer = self.call(
            f"{item}/{how}", {"lease_token": token} | ({} if how == "release" else {"reason": "?"})
        )
        assert status in (200, 204, 409), answer

    def change_mind(self, item: str) -> None:
        status, answer = self.call(f"{item}/undo")
        assert status == 200, answer
        self.answer(*self.granted(answer))


def _verdict(token: str, rng: random.Random) -> dict[str, Any]:
    return {"lease_token": token, "verdict": rng.choice(models.VERDICTS), "spans": [{"start": 0, "end": 5}]}


def _seed() -> tuple[uuid.UUID, list[tuple[str, uuid.UUID, bool]]]:
    """A project with ITEMS flagged events, and the keys of its people."""
    with db.transaction() as session:
        project_id = factories.project(session, "acme")
        session.execute(sa.text(_WITNESS))
        people = []
        for number in range(REVIEWERS):
            is_lead = number < LEADS
            user = access.create_user(session, project_id, f"r{number}", "R", "lead" if is_lead else "reviewer")
            scopes = ("review", "admin") if is_lead else ("review",)
            people.append((access.create_key(session, project_id, "k", scopes, user.id), user.id, is_lead))
    for start in range(0, ITEMS, 500):
        with db.transaction() as session:
            for _ in range(start, min(start + 500, ITEMS)):
                factories.ingest(session, project_id)
            factories.check_all(session, 0.01)
    assert _count("SELECT count(*) FROM review_items") == ITEMS
    return project_id, people


def _count(statement: str) -> int:
    with db.SessionLocal() as session:
        return int(session.execute(sa.text(statement)).scalar_one())


def _kill_leases_until_done(crew: list[Reviewer], stop: threading.Event) -> int:
    """Returns how many leases were killed; stops everybody once the last item is answered."""
    killed, end = 0, time.monotonic() + LIMIT_SECONDS
    try:
        while (left := _count("SELECT count(*) FROM review_items WHERE state <> 'done'")) > 0:
            assert time.monotonic() < end, f"{left} items still wait after {killed} killed leases"
            threading.Event().wait(0.1)  # the scenario: ten rounds of kills a second
            with db.transaction() as session:
                killed += session.connection().execute(sa.text(_KILL)).rowcount
    finally:
        stop.set()
    return killed


@pytest.mark.timeout(LIMIT_SECONDS + 240)
def test_fifty_reviewers_share_nothing_lose_nothing_and_answer_nothing_twice(committed: str) -> None:
    project_id, people = _seed()
    stop, started = threading.Event(), time.monotonic()
    with contextlib.ExitStack() as running, ThreadPoolExecutor(REVIEWERS) as pool:
        urls = [running.enter_context(processes.web(committed)) for _ in range(2)]
        running.callback(stop.set)
        crew = [
            Reviewer(urls[number % 2], key, user_id, is_lead, random.Random(number), stop)
            for number, (key, user_id, is_lead) in enumerate(people)
        ]
        at_work = [pool.submit(reviewer.work) for reviewer in crew]
        killed = _kill_leases_until_done(crew, stop)
        for one in at_work:
            one.result()
    seconds = time.monotonic() - started
    _prove(crew, project_id)
    heard = Counter(said for reviewer in crew for said in reviewer.answered.values())
    granted, calls = sum(len(one.tokens) for one in crew), sum(one.calls for one in crew)
    print(  # noqa: T201 - the figure, shown by `make faults ARGS=-s`
        f"{REVIEWERS} reviewers, {ITEMS} items, {granted} leases, {killed} killed, "
        f"{sum(one.abandoned for one in crew)} abandoned, verdicts {dict(heard)}, {calls} calls in {seconds:.0f} s: "
        "0 double claims, 0 lost, 0 duplicated verdicts"
    )
    assert killed > ITEMS // 20
    assert heard[LOST] > 0


def _prove(crew: list[Reviewer], project_id: uuid.UUID) -> None:
    granted = Counter(token for reviewer in crew for token in reviewer.tokens)
    assert max(granted.values()) == 1
    assert _count("SELECT count(*) FROM witness WHERE was_live") == 0, "double claims"
    assert _count("SELECT count(*) FROM witness") >= len(granted), "the witness saw every lease"
    counting = "action = 'verdict' AND NOT EXISTS (SELECT FROM reviews u WHERE u.undoes = r.id)"
    assert _count(f"SELECT count(*) FROM reviews r WHERE {counting}") == ITEMS
    assert _count(f"SELECT count(DISTINCT item_id) FROM reviews r WHERE {counting}") == ITEMS
    assert _count("SELECT count(*) FROM review_items WHERE state = 'done'") == ITEMS
    with db.SessionLocal() as session:
        rows = session.scalars(sa.select(models.Review).where(models.Review.project_id == project_id)).all()
    written = Counter(str(row.lease_token) for row in rows if row.action == "verdict")
    assert max(written.values()) == 1, "one verdict per lease"
    for reviewer in crew:
        own = {str(row.lease_token) for row in rows if row.reviewer_id == reviewer.user_id and row.action == "verdict"}
        assert own <= set(reviewer.tokens), "nobody's verdict stands under another's lease"
        for token, heard in reviewer.answered.items():
            if heard != UNKNOWN:
                assert (token in own) == (heard == "ok"), "what a reviewer was told is what is written"
