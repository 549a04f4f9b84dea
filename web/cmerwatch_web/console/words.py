"""What the pages say about a check, in plain sentences that promise no more than is known. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import markupsafe

from cmerwatch import models
from cmerwatch.event_views import EventView
from cmerwatch_web import charts

# What CLIP-type checkers are known to be near chance at; bench/README.md has what was measured of the demo's.
BLIND_SPOTS = "counts, small print and other text, left and right, and fine attributes"

REASONS = {
    "blank_image": "the picture is blank, noise, or a plain or smoothly shaded ground",
    "animated": "only the first frame of the animation was looked at",
    "wrong_image": "the text fits this picture no better than a picture it was not written for",
    "prompt_does_not_fit": "what the prompt takes for granted does not show in this picture either",
    "low_similarity_unconfirmed": "the picture supports the text poorly, and the confidence is not known",
    "nothing_visual": "nothing in the text can be looked for in a picture",
    "refusal": "the model declined to answer",
    "answer_without_statement": "a number, yes or no alone states nothing that can be looked for",
    "denied_detail": "the answer denies a detail, which a similarity cannot tell",
    "claims_not_checked": "of a text that is very long, or in part unreadable to the checker, claims were left out",
    "unreadable_script": "the checker does not know the script of this text",
    "foreign_language": "the checker reads English, and this text is in another language",
    "no_image": "the event has no picture",
    "not_an_image": "the file is not a picture that can be read",
    "truncated": "the file ends before the picture does",
    "cannot_decode": "the file is broken",
    "too_many_pixels": "the picture is larger than the limit",
    "too_narrow": "the picture is a strip, more than 50 times longer than wide",
    "out_of_memory": "the picture needs more memory than one picture may take",
    "embedding_not_a_number": "the checker's answer was not a number",
    "image_url_refused": "the address of the picture, or one it leads to, is not public or not permitted",
    "image_url_not_an_image": "what came from the address of the picture is no picture that is accepted",
    "image_url_too_large": "the picture at that address is larger than the limit",
    "image_url_redirects": "the address of the picture leads on too often",
    "image_url_unreachable": "the address of the picture gave no answer",
    "store_away": "the picture could not be stored here",
    "audit": "drawn at random to measure the true rate",
    "flagged": "confident, and poorly supported by the picture",
}

CONFIDENCE_STATUS = {
    "present": "from token log-probabilities",
    "raw_logprobs": "from the model's own log-probabilities",
    "processed_logprobs": "from log-probabilities after temperature and truncation, which look surer",
    "constant_logprobs": "not known: the provider gave every token the same log-probability",
    "reported_by_app": "reported by the app",
    "not_reported": "not reported",
    "not_requested": "not known: the app did not ask for log-probabilities",
    "unsupported_by_provider": "not known: the provider gave no log-probabilities",
    "unsupported_by_model": "not known: the model refuses log-probabilities",
    "dropped_by_framework": "not known: a framework dropped the log-probabilities",
    "error": "not known: the log-probabilities could not be read",
}


JUDGE_REASONS = {
    "timeout": "it did not answer in time",
    "unreachable": "it could not be reached",
    "no_logprobs": "it gives no log-probabilities, without which its answer is no number",
    "unclear": "it answered neither yes nor no",
    "not_json": "its answer could not be read",
    "no_picture": "a picture of this event is gone",
    "store_away": "the image store is away",
    "over_budget": "the day's budget for it is spent",
    "judge_died": "its worker died over this event, three times",
    "http_429": "it asked for patience",
}


def judge(found: models.Judgement | None) -> str:
    """A sentence about the second opinion; nothing where none was asked for."""
    if found is None:
        return ""
    name = found.judge or "The judge"
    why = JUDGE_REASONS.get(found.reason, f"it answered {found.reason.replace('_', ' ')}" if found.reason else "")
    if found.state == "judged":
        return f"Judged by {name}, a second opinion beside the checker: neither score nor flag reads it."
    if found.state == "waiting":
        return f"Waiting for the judge{': ' + why + ', and is asked again' if why else ''}."
    return f"No opinion from {name}: {why}."


def opinions(found: EventView) -> dict[int, float]:
    """The judge's P(yes) by the number of the claim: only the weakest were asked about."""
    said = {(one["start"], one["end"]): one["p_yes"] for one in (found.judgement.claims if found.judgement else [])}
    claims = found.check.claims if found.check else []
    return {i: said[at] for i, one in enumerate(claims, 1) if (at := (one["start"], one["end"])) in said}


@dataclass(frozen=True, slots=True)
class Judged:
    """The values that decide a flag; None where unknown."""

    state: str
    outcome: str | None = None
    confidence: float | None = None
    score: float | None = None
    n_claims: int = 0
    is_decided: bool = False
    flagged: bool = False
    low: bool = False
    conf_threshold: float | None = None
    sim_threshold: float | None = None
    awaits_pictures: bool = False  # named by their address
    lacks_pictures: bool = False  # because they could not be fetched
    cosine: float | None = None  # only where the legacy rule of a fixed cosine decided, instead of the score


@dataclass(frozen=True, slots=True)
class Verdict:
    """A word for the badge, its tone (bad, doubt, good, quiet), and why, in one or two sentences."""

    word: str
    tone: str
    why: str


KEPT = Verdict(
    "Not reviewed yet",
    "quiet",
    "Reviews are blind in this project: what the checker says of an event is shown to reviewers after its verdict.",
)

_UNJUDGED = {
    "unscorable": Verdict("Not scorable", "quiet", "Nothing in the output can be looked for in a picture."),
    "invalid_image": Verdict(
        "Picture unreadable", "doubt", "The picture could not be decoded, so nothing was compared."
    ),
    "model_error": Verdict(
        "Check failed", "doubt", "The checker failed on this event; it is not counted as looked at."
    ),
}


def explain(it: Judged) -> Verdict:
    """Why this event was flagged or not."""
    if it.state == "quarantined" or it.outcome == "quarantined":
        return Verdict(
            "Quarantined",
            "doubt",
            "No worker survived checking this event, so it was set aside. It is not counted until it is replayed.",
        )
    if it.state == "waiting" and it.awaits_pictures:
        return Verdict(
            "Waiting", "quiet", "Stored safely. Its picture is being fetched. This page looks again by itself."
        )
    if it.state == "waiting":
        return Verdict("Waiting", "quiet", "Stored safely and waiting for a worker. This page looks again by itself.")
    if it.outcome == "invalid_image" and it.lacks_pictures:
        return Verdict(
            "Picture not fetched", "doubt", "It could not be fetched from its address, so nothing was compared."
        )
    if it.outcome in _UNJUDGED:
        return _UNJUDGED[it.outcome]
    if not it.is_decided and it.score is not None:
        return Verdict(
            "Undecided",
            "doubt",
            "Scored, but not decided: the policy in force then is a fixed cosine, and this checker has a logit bias, "
            "so no fixed threshold fits its cosines. Choose auto on the policies page, and it is decided.",
        )
    if not it.is_decided or it.score is None or it.sim_threshold is None or it.conf_threshold is None:
        return Verdict(
            "Calibrating",
            "quiet",
            "Scored, but not decided: the checker has no reference of matching text, so nothing says yet what is low.",
        )
    return _decided(it, it.score, it.sim_threshold, it.conf_threshold)


def _decided(it: Judged, score: float, sim_threshold: float, conf_threshold: float) -> Verdict:
    fit = _fit(score, it.n_claims)
    below = f"score {number(score)} is below {number(sim_threshold)}"
    if it.cosine is not None:
        fit = "the picture supports it less than the fixed cosine of this policy asks"
        below = f"similarity {number(it.cosine, sim_threshold)} is below {number(sim_threshold)}"
    if it.flagged and it.confidence is not None:
        sure = f"confidence {number(it.confidence, conf_threshold)} is over {number(conf_threshold)}"
        return Verdict("Flagged", "bad", f"The model was sure ({sure}), yet {fit} ({below}).")
    if it.low and it.confidence is None:
        return Verdict("Doubtful", "doubt", f"Not flagged, because the confidence is not known; but {fit} ({below}).")
    if it.low and it.confidence is not None:
        sure = f"confidence {number(it.confidence, conf_threshold)} is not over {number(conf_threshold)}"
        return Verdict(
            "Not flagged", "quiet", f"{fit[0].upper()}{fit[1:]} ({below}), but the model was not sure ({sure})."
        )
    if it.cosine is not None:
        above = f"Similarity {number(it.cosine, sim_threshold)} is not below the fixed {number(sim_threshold)}"
        return Verdict("Not flagged", "good", f"{above} of this policy.")
    above = f"score {number(score, sim_threshold)} is not below {number(sim_threshold)}"
    return Verdict(
        "Not flagged", "good", f"The picture supports the text about as well as matching text usually is ({above})."
    )


def _fit(score: float, n_claims: int) -> str:
    who = "the text" if n_claims <= 1 else f"the weakest of its {n_claims} sentences"
    return f"{who} fits the picture worse than {charts.percent(1 - score)} of matching outputs do"


SMALLEST = 0.000001


def number(value: float | None, beside: float | None = None) -> str:
    """Two digits, or as many (to six) as it takes to tell it from 0, from 1 and from the threshold it stands beside;
    `<0.000001` for what takes more."""
    if value is None:
        return "–"
    for digits in (2, 3, 4, 5, 6):
        shown = f"{value:.{digits}f}"
        told = beside is None or value == beside or float(shown) != beside
        if told and (value == 0 or float(shown) != 0) and (value == 1 or float(shown) != 1):
            return shown
    if 0 < value < SMALLEST:
        return f"<{SMALLEST:.6f}"
    return f">{1 - SMALLEST:.6f}" if 1 - SMALLEST < value < 1 else f"{value:.2f}"


def reason(code: str) -> str:
    """A reason code in words, with what it adds after a colon; an unknown one is shown as it is."""
    if (status := code.removeprefix("image_url_")).isdigit():
        return f"the address of the picture answered {status}"
    known, _, detail = code.partition(":")
    words = REASONS.get(known, known.replace("_", " "))
    return f"{words}: {detail}" if detail else words


def confidence_gauge(confidence: float | None, threshold: float) -> markupsafe.Markup:
    told = f"Confidence {number(confidence, threshold)}; over {number(threshold)} counts as sure."
    return charts.gauge(confidence, threshold, bad_below=False, summary=told)


def score_gauge(score: float | None, threshold: float) -> markupsafe.Markup:
    told = f"Score {number(score, threshold)}; below {number(threshold)} counts as low."
    return charts.gauge(score, threshold, bad_below=True, summary=told)
