"""A second opinion: an OpenAI-compatible vision-language model is asked yes or no about each suspicious claim.

Its P(yes) comes from the log-probabilities of its first token; a judge without them gives no number at all.
Spending is bounded per day before a call is made. Nothing here touches scores, decisions or rollups.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cmerwatch import blobs, db, errors, images, judgements, notify, outbound
from cmerwatch.addresses import AllowList
from cmerwatch.judgements import Opinion, Question, Suspect
from cmerwatch.settings import Settings
from cmerwatch_worker.tasks import where

log = logging.getLogger(__name__)

BATCH = 4  # events leased at once
PARALLEL = 4  # questions of one event asked side by side
MIN_MASS = 0.5  # of the first token's probability on yes and no together; below, it answered something else
TOP_LOGPROBS = 20
SLACK_SECONDS = 30.0  # a lease outlasts the slowest answer by this much
RETRY_AFTER_LIMITS = (1.0, 300.0)
RETRY_AFTER = 30.0  # where a 429 names no time
ROUNDING = 1e-3  # half precision answers logprobs a little above 0
STORE_RETRY_SECONDS = 30.0

QUESTION = (
    "Look at the picture and judge one statement about it. Answer with the single word yes if the picture shows that "
    "the statement is true, otherwise with the single word no.\nStatement: {statement}"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One call: P(the statement is true), or the reason why there is none."""

    p_yes: float | None = None
    reason: str = ""
    may_pass: bool = False
    retry_seconds: float | None = None
    tokens: int = 0


class Judge:
    """Asks one endpoint. Raises nothing: whatever an endpoint does is a named outcome."""

    def __init__(self, settings: Settings, store: blobs.BlobStore) -> None:
        self.settings = settings
        self._store = store
        key = settings.judge_api_key.get_secret_value()
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._url = f"{settings.judge_url.rstrip('/')}/chat/completions"
        place = outbound.place(self._url)
        # Whoever runs cmerwatch chose this place, so it may be a private one; no redirect leads to another.
        self._allowed = AllowList(places=frozenset({(place.host, place.port)}))
        self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="judge")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def ask(self, suspect: Suspect) -> Opinion:
        """Every question of the event; one that stays without an answer leaves the event without an opinion, because
        the lowest of what is left would flatter it."""
        try:
            pictures = [self._picture(suspect, sha256) for sha256 in suspect.images]
        except errors.Unavailable:
            return Opinion(reason="store_away", retry_seconds=STORE_RETRY_SECONDS)
        except errors.CmerwatchError:
            pictures = []  # judged by the others only, a claim about the missing one would be called untrue
        if not pictures:
            return Opinion(reason="no_picture")
        answers = list(self._pool.map(lambda one: self._answer(one, pictures), suspect.questions))
        tokens = sum(answer.tokens for answer in answers)
        calls = sum(answer.retry_seconds is None for answer in answers)  # what was refused for now cost nothing
        open_ = next((answer for answer in answers if answer.p_yes is None), None)
        if open_ is not None:
            return Opinion((), open_.reason, open_.may_pass, open_.retry_seconds, calls, tokens)
        return Opinion(tuple(one.p_yes for one in answers if one.p_yes is not None), calls=calls, tokens=tokens)

    def _picture(self, suspect: Suspect, sha256: str) -> str:
        """A data URI: of the re-encoded copy, which carries no EXIF, else of the bytes as they came."""
        data = self._store.get_display(suspect.project_id, sha256)
        if data is None:
            data = self._store.get(suspect.project_id, sha256)
        return f"data:image/{images.inspect(data).format.lower()};base64,{base64.b64encode(data).decode()}"

    def _answer(self, question: Question, pictures: Sequence[str]) -> Answer:
        deadline = time.monotonic() + self.settings.judge_timeout_seconds
        body = json.dumps(self._body(question, pictures)).encode()
        try:
            answer = outbound.send("POST", self._url, self._headers, body, self._allowed, deadline)
        except outbound.Failed:
            return Answer(reason="timeout" if time.monotonic() >= deadline else "unreachable", may_pass=True)
        if answer.status != 200:
            return _refused(answer)
        found = read_answer(answer.body, question.negated)
        if found.reason == "not_json" and time.monotonic() >= deadline:
            return Answer(reason="timeout", may_pass=True)  # it began in time and broke off
        return found

    def _body(self, question: Question, pictures: Sequence[str]) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
        parts.append({"type": "text", "text": QUESTION.format(statement=question.statement)})
        return {
            "model": self.settings.judge_model,
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": TOP_LOGPROBS,
        }


def _refused(answer: outbound.Answer) -> Answer:
    """Only the status is kept: an endpoint's words may quote the key or the picture."""
    if answer.status == 429:
        return Answer(reason="http_429", retry_seconds=_retry_after(answer.headers))
    return Answer(reason=f"http_{answer.status}", may_pass=answer.status >= 500)


def _retry_after(headers: Mapping[str, str]) -> float:
    low, high = RETRY_AFTER_LIMITS
    asked = notify.retry_after(headers)
    return RETRY_AFTER if asked is None else min(max(asked, low), high)


def read_answer(body: bytes, negated: bool) -> Answer:
    """P(the claim is true) from the first token's alternatives: yes over yes and no, both in any spelling."""
    try:
        found = json.loads(body)
        tokens = _spent(found)
        logprobs = found["choices"][0].get("logprobs")
        top = logprobs["content"][0]["top_logprobs"] if logprobs else None
        weights = [(str(one["token"]), _weight(float(one["logprob"]))) for one in top or ()]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError):
        return Answer(reason="not_json")
    if not weights:
        return Answer(reason="no_logprobs", tokens=tokens)
    yes, no = (_mass(weights, word) for word in ("yes", "no"))
    if yes + no < MIN_MASS:
        return Answer(reason="unclear", tokens=tokens)
    p_yes = yes / (yes + no)
    return Answer(p_yes=1 - p_yes if negated else p_yes, tokens=tokens)


def _spent(found: dict[str, Any]) -> int:
    """What the answer says it cost; a judge that says nothing is bounded by the number of calls."""
    tokens = (found.get("usage") or {}).get("total_tokens")
    return min(max(0, tokens), 10**9) if isinstance(tokens, int) else 0


def _weight(logprob: float) -> float:
    """The probability; 0 for NaN and for what is too large to be a logarithm of one: it must not count as sure."""
    return math.exp(min(0.0, logprob)) if logprob <= ROUNDING else 0.0


def _mass(weights: Sequence[tuple[str, float]], word: str) -> float:
    return math.fsum(weight for token, weight in weights if token.strip(" \n\t.,!\"'*").lower() == word)


def open_judge(settings: Settings, store: blobs.BlobStore) -> Judge | None:
    """None where no judge is configured."""
    return Judge(settings, store) if settings.judge_url else None


def run(judge: Judge, stopping: threading.Event) -> None:
    """Work until `stopping`; for a thread of its own, which no error ends: it is tried again at the next poll."""
    while not stopping.is_set():
        try:
            if judge_some(judge, stopping):
                continue
        except Exception as error:
            log.warning("the judge met an obstacle and goes on: %s", where(error))
        stopping.wait(judge.settings.poll_seconds)
    judge.close()


def judge_some(judge: Judge, stopping: threading.Event) -> int:
    """Lease a few events, ask with no transaction open, record; returns how many were leased."""
    token, settings = uuid.uuid4(), judge.settings
    lease = BATCH * math.ceil(settings.judge_claims / PARALLEL) * settings.judge_timeout_seconds + SLACK_SECONDS
    with db.transaction() as session:
        suspects = judgements.claim(session, BATCH, lease, token, settings.judge_claims)
    for suspect in suspects:
        if stopping.is_set():
            with db.transaction() as session:
                judgements.give_back(session, token)
            break
        may_ask = _may_ask(settings, suspect)
        opinion = judge.ask(suspect) if may_ask else Opinion(reason="over_budget")
        with db.transaction() as session:
            judgements.refund(session, len(suspect.questions) - opinion.calls if may_ask else 0)
            judgements.record(session, token, suspect, settings.judge_model, opinion)
    return len(suspects)


def _may_ask(settings: Settings, suspect: Suspect) -> bool:
    with db.transaction() as session:
        return judgements.reserve(
            session,
            len(suspect.questions),
            most_calls=settings.judge_daily_calls,
            most_tokens=settings.judge_daily_tokens,
        )
