"""A checker without a bundle's reference: it takes one from the first traffic, and then decides what had to wait."""

from __future__ import annotations

import hashlib
import logging
import random
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from sqlalchemy import orm

from cmerwatch import db, judgements, policies, references, reviews, rollups, withheld
from cmerwatch.settings import Settings
from cmerwatch.shapes import Claimed, Decided, Sample
from cmerwatch_worker import contrast, reference, scoring
from cmerwatch_worker.checkers.base import Checker
from cmerwatch_worker.reference import Reference
from cmerwatch_worker.scoring import Array

log = logging.getLogger(__name__)

BATCH = 256  # checks decided per transaction: the rollup rows it locks are free again within a fraction of a second
BATCHES = 40  # per step; the next step goes on, so a long backlog never keeps a stopping worker
# One output never makes more than a fiftieth of a reference, however many sentences it has.
CLAIMS_PER_EVENT = 10
# The same scene under another hash: its claims would hold here too, and "mismatched" would be a lie.
NEAR_DUPLICATE = 0.95
STRANGERS = 64  # pictures kept per project and prompt type
KINDS = 256


class Strangers:
    """The last pictures of each project and prompt type, for pairs that do not belong together.

    One thread uses it. Nothing of it leaves the process but the logits of such pairs.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[uuid.UUID, str], deque[Array]] = OrderedDict()

    def sample(
        self, checker: Checker, event: Claimed, images: Array, texts: Array, slots: Sequence[Sequence[Array]] = ()
    ) -> Sample:
        """Logits of up to CLAIMS_PER_EVENT claims with their own images and, as far as there are any, a stranger's.

        `slots`: of each text the embeddings of its edits, where contrast sets are on. Then the event's own pictures
        become strangers to those after it.
        """
        chance = random.Random(event.event_id.int)
        chosen = sorted(chance.sample(range(len(texts)), min(len(texts), CLAIMS_PER_EVENT)))
        known = self._of(event)
        foreign = [row for row in known if (row @ images.T).max() <= NEAR_DUPLICATE]
        pairs = [(texts[i], slots[i] if slots else ()) for i in chosen]
        own = tuple(_logit(checker, images, *pair) for pair in pairs)
        other = tuple(_logit(checker, chance.choice(foreign)[None], *pair) for pair in pairs) if foreign else ()
        known.append(images[chance.randrange(len(images))])
        return Sample(content_of(event), event.slice.prompt_type, own, other)

    def _of(self, event: Claimed) -> deque[Array]:
        key = (event.project_id, event.slice.prompt_type)
        found = self._seen.setdefault(key, deque(maxlen=STRANGERS))
        self._seen.move_to_end(key)
        while len(self._seen) > KINDS:
            self._seen.popitem(last=False)
        return found


def _logit(checker: Checker, images: Array, text: Array, slots: Sequence[Array]) -> float:
    margin = checker.margin(images, text, slots) if isinstance(checker, contrast.Contrasting) else None
    return contrast.logit(checker, float((images @ text).max()), margin)


def content_of(event: Claimed) -> uuid.UUID:
    """The same for the same images and output: an answer that is sent again and again says its scale once."""
    text = "\n".join([*event.images, event.output]).encode("utf-8", "replace")
    return uuid.UUID(bytes=hashlib.blake2b(text, digest_size=16, person=b"cmw-sample").digest())


class Calibration:
    """Brings a calibrating checker's reference into force, whichever worker freezes it, and decides what waited."""

    def __init__(self, checker: Checker, checker_id: int, settings: Settings) -> None:
        self._checker, self._checker_id, self._settings = checker, checker_id, settings
        self.reference: Reference | None = checker.reference

    def step(self, is_stopping: Callable[[], bool] = lambda: False) -> int:
        """Freeze or take over the reference if there can be one; then decide. Returns how many checks were decided."""
        frozen = self.reference or self._take_reference()
        if frozen is None:
            return 0
        self.reference = frozen
        done = 0
        for _ in range(BATCHES):
            decided = 0 if is_stopping() else self._decide(frozen)
            done += decided
            if not decided:
                break
        return done

    def _decide(self, frozen: Reference) -> int:
        settings = self._settings
        with db.transaction() as session:
            decided = decide_waiting(session, self._checker, self._checker_id, frozen, settings.audit_rate, BATCH)
            if decided:  # a worker that had not heard of the freeze brought samples with them
                references.drop_samples(session, self._checker_id)
            if settings.judge_url:
                judgements.route(session, decided, settings.judge_below)
            return len(decided)

    def _take_reference(self) -> Reference | None:
        with db.transaction() as session:
            data = references.load(session, self._checker_id)
            found = reference.from_json(data) if data is not None else freeze(session, self._checker_id)
        if found is not None:
            log.info("calibrated: reference %s of %s", found.version, self._checker.id)
        return found


def freeze(session: orm.Session, checker_id: int) -> Reference | None:
    """The reference of what was collected so far, in force from this commit on; None while that is too little."""
    if not reference.is_enough(references.counts(session, checker_id)):
        return None
    if not references.lock_calibrating(session, checker_id):
        return None  # another worker did it; the next step reads what it wrote
    samples = references.collected(session, checker_id)
    frozen = reference.from_traffic((one.prompt_type, one.own, one.mismatched) for one in samples)
    references.freeze(session, checker_id, frozen.version, reference.to_json(frozen))
    return frozen


def decide_waiting(
    session: orm.Session,
    checker: Checker,
    checker_id: int,
    frozen: Reference,
    audit_rate: float,
    n: int,
) -> list[Decided]:
    """Decide up to n checks that were scored before there was a reference: counted and routed exactly once.

    Each is decided by the policy version it was counted under, so what was undecided moves within one rollup key; where
    that version does not fit the checker, it has its score now and is withheld.
    """
    waiting = references.undecided(session, checker_id, n)
    known = policies.at(session, {(result.event.project_id, version) for result, version in waiting})
    pairs = []
    for result, version in waiting:
        judged = scoring.judge(checker, frozen, result)
        decision = known[result.event.project_id, version].decide(judged, True, checker.logit_bias is not None)
        pairs.append((judged, decision))
    settled = references.settle(session, checker_id, pairs)
    decided = [one for one in settled if one.decision.is_decided]
    rollups.settle(session, decided)
    withheld.keep(session, settled)
    reviews.route(session, decided, audit_rate)
    return settled
