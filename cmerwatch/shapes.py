"""The plain values that travel between stages: frozen, no behaviour, no database."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass
from typing import NamedTuple

BUCKET_SECONDS = 300
LATE_AFTER = dt.timedelta(minutes=10)
DOCTOR = "/cmerwatch/doctor"  # the endpoint of `cmerwatch doctor`: its test events are no work for reviewers

OUTCOMES = ("scored", "unscorable", "invalid_image", "model_error", "quarantined")


class Slice(NamedTuple):
    """The dimensions of an event in the order of every key; an absent one is '' (NULLs never meet in an upsert)."""

    endpoint: str = ""
    prompt_type: str = ""
    customer: str = ""
    model: str = ""
    model_version: str = ""
    environment: str = ""


DIMENSIONS = Slice._fields

# What rollups add up and rates are made of. n: scored, decided and of known confidence.
COUNTS = (
    "scored",
    "unscorable",
    "invalid_image",
    "model_error",
    "undecided",
    "n",
    "flagged",
    "low",
    "low_unconfirmed",
)


@dataclass(frozen=True, slots=True)
class Confidence:
    """geo_p = exp(mean logprob), mean_p = mean exp(logprob), min_p: all in (0, 1], None when unknown."""

    geo_p: float | None = None
    mean_p: float | None = None
    min_p: float | None = None
    n_tokens: int | None = None
    status: str = "not_reported"


@dataclass(frozen=True, slots=True)
class Claimed:
    """An event leased to this worker, with all that checking it needs."""

    event_id: uuid.UUID
    project_id: uuid.UUID
    slice: Slice
    bucket: dt.datetime
    attempts: int
    is_late: bool
    confidence: float | None
    images: tuple[str, ...]
    prompt: str
    output: str
    refused: tuple[str, ...] = ()  # why pictures it names by address never came: it cannot be scored


@dataclass(frozen=True, slots=True)
class ClaimScore:
    """One checkable piece of an output: [start, end) characters, raw cosine (best image), percentile u in [0, 1].

    `statement`: what was compared where it is not the piece itself, such as a short answer put together with its
    question; `negated`: the output denies it. `images`: the cosine with each image of an event that has several.
    `contrast`: the least log share of the text among itself and its edits, <= 0, where contrast sets are on.
    """

    start: int
    end: int
    similarity: float
    percentile: float | None = None
    statement: str | None = None
    negated: bool = False
    images: tuple[float, ...] = ()
    contrast: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """What one event adds to the reference of a checker that is calibrating: logits of its claims with its own images
    and with a stranger's. `content` is the same for the same images and output, which count once."""

    content: uuid.UUID
    prompt_type: str
    own: tuple[float, ...]
    mismatched: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a checker says of one event, before any threshold."""

    event: Claimed
    outcome: str
    similarity: float | None = None
    score: float | None = None
    mismatch_percentile: float | None = None
    claims: tuple[ClaimScore, ...] = ()
    reasons: tuple[str, ...] = ()
    prompt_similarity: float | None = None  # raw cosine of what the prompt takes for granted, best image
    sample: Sample | None = None  # only while the checker is calibrating


@dataclass(frozen=True, slots=True)
class Decision:
    """What one policy version says of one check. `is_decided` is False while the checker is calibrating, and where the
    policy is a fixed cosine that means nothing of this checker."""

    policy_version: int
    is_decided: bool
    flagged: bool
    low_similarity: bool
    conf_threshold: float
    sim_threshold: float


@dataclass(frozen=True, slots=True)
class Decided:
    """A completed check with its decision: what rollups, routing and alerts count."""

    result: CheckResult
    decision: Decision
    checker_id: int


@dataclass(frozen=True, slots=True)
class Part:
    """One slice of an incident, in a message: its newest numbers as a notice has them, and links to exactly that.

    `since`: when its alert fired. `reason`: what there is to say where no rate is.
    """

    slice: dict[str, str]
    since: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    link: str
    events_link: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """What one message to a channel says, frozen when it was decided: channels only choose how to lay it out.

    status: firing, repeat, update, resolved or test. `alert_id` and `slice` are those of the alert that leads its
    group; `slice` holds the narrowing dimensions only ({} is the whole project). `group_id` is empty for an alert
    without a group. `parts` are the group's slices, the worst first: those that fire, or, resolved, all that did; of
    `slices` in all no more are listed than fit. `joined` and `recovered`: slices since the last message. value, low,
    high, baseline and coverage are shares in [0, 1]; None where they are unknown. `worst` are lines such as
    ("prompt_type", "count", 0.61, 118): dimension, value, rate, n; none where the slices are listed. `changes` are
    sentences about what else moved (a new model version, another mix of prompts). Times are ISO 8601 in UTC, links
    absolute.
    """

    alert_id: str
    rule_id: str
    status: str
    severity: str
    project: str
    rule: str
    slice: dict[str, str]
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    baseline: float | None
    coverage: float | None
    condition: str
    window_start: str
    window_end: str
    fired_at: str
    resolved_at: str | None
    link: str
    events_link: str
    worst: tuple[tuple[str, str, float, int], ...] = ()
    changes: tuple[str, ...] = ()
    reason: str = ""
    group_id: str = ""
    parts: tuple[Part, ...] = ()
    slices: int = 1
    joined: int = 0
    recovered: int = 0
