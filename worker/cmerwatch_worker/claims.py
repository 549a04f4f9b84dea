"""An output cut into claims: one sentence, bullet or clause each, with its exact place in the text.

Pure functions. Nothing is ever truncated: what does not fit the checker's context is cut at commas, then at words,
then at characters, because most wrong sentences of long answers lie after the first 77 tokens.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from cmerwatch_worker import languages, statements

REFUSAL = "refusal"
BARE_ANSWER = "answer_without_statement"
DENIED_DETAIL = "denied_detail"
UNREADABLE = "unreadable_script"
FOREIGN = "foreign_language"
NOTHING_VISUAL = "nothing_visual"
NOT_CHECKED = "claims_not_checked"

# An answer of so many sentences is a document of some 2 000 words. Of more, as many are checked, evenly spread: one
# output once came to 66 666 claims, minutes of a checker's time, and errors lie late in long texts.
MAX_CLAIMS = 128
LONG = 2000  # characters; what runs on without a sentence's end is cut here before anything counts its tokens

Span = tuple[int, int]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Claim:
    """`text` is exactly output[start:end]. `statement` is what to compare where that is not the text itself: a short
    answer with its question, or, `negated`, what the text says is not there."""

    start: int
    end: int
    text: str
    statement: str | None = None
    negated: bool = False

    @property
    def said(self) -> str:
        return self.statement or self.text


@dataclass(frozen=True, slots=True)
class Split:
    """The claims, or, when there is none, the reason why nothing can be checked. `left_out`: claims over the cap, and
    those the checker cannot read."""

    claims: tuple[Claim, ...]
    reason: str | None = None
    left_out: int = 0


def split(
    output: str,
    context_length: int,
    count_tokens: Callable[[str], int],
    can_read: Callable[[str], bool] = lambda text: True,
    prompt: str = "",
) -> Split:
    """Every claim of `output`, each at most `context_length` tokens by `count_tokens` (which counts specials too)."""

    def fits(text: str) -> bool:
        return can_read(text) and count_tokens(text) <= context_length

    try:
        if (composed := _composed(output, prompt, fits)) is not None:
            return Split((composed,))
    except statements.DeniedDetail:
        return Split((), DENIED_DETAIL)
    kept: list[Span] = []
    dropped: Counter[str] = Counter()
    question = statements.asked(prompt) if prompt else ""
    is_abroad = not can_read(output[:LONG]) or (question != "" and not can_read(question))
    for start, end in pieces(output):
        why = _why_dropped(output[start:end]) or _why_unread(output[start:end], can_read, is_abroad)
        if why is None:
            kept.append((start, end))
        else:
            dropped[why] += 1
    if not kept:
        # The most telling reason first: "I'm sorry. No." is a refusal, not an answer.
        telling = (REFUSAL, BARE_ANSWER, FOREIGN, UNREADABLE)
        return Split((), next((why for why in telling if why in dropped), NOTHING_VISUAL))
    chosen = _spread(kept, MAX_CLAIMS)
    fitting = [claim for span in chosen for claim in _fitting(output, span, context_length, count_tokens)]
    found = _spread(fitting, MAX_CLAIMS)
    left_out = len(kept) - len(chosen) + len(fitting) - len(found) + dropped[FOREIGN] + dropped[UNREADABLE]
    return Split(tuple(_with_sign(claim, fits) for claim in found), left_out=left_out)


def _why_unread(piece: str, can_read: Callable[[str], bool], is_abroad: bool) -> str | None:
    """None where the checker can read it. Words that show no language are in that of their question and neighbours."""
    if can_read(piece) and not (is_abroad and not languages.is_surely_english(piece)):
        return None
    return FOREIGN if languages.is_latin(piece) else UNREADABLE


def _composed(output: str, prompt: str, fits: Callable[[str], bool]) -> Claim | None:
    """A short answer put together with its question. Raises statements.DeniedDetail."""
    statement = statements.compose(prompt, output) if prompt and len(output) <= LONG else None
    if statement is None or not fits(statement.text):
        return None
    start, end = next(_trimmed(output, 0, len(output)))
    return Claim(start, end, output[start:end], statement.text, statement.negated)


def _with_sign(claim: Claim, fits: Callable[[str], bool]) -> Claim:
    """ "There is no dog." is the claim that there is a dog, denied."""
    denied = statements.denied(claim.text)
    if denied is None or not fits(denied.text):
        return claim
    return Claim(claim.start, claim.end, claim.text, denied.text, negated=True)


def _spread(items: list[T], n: int) -> list[T]:
    """At most n of them, evenly spread, the first and the last among them."""
    if len(items) <= n:
        return items
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]


# --- sentences and bullets -------------------------------------------------------------------------------------

_LINE = re.compile(r"[^\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")
# "- ", "* ", "• ", "1. ", "2) ", "(a) ", "## ", "> ": marks of a list, heading or quote, no part of what is said.
# Only before something: "3." alone is an answer.
_BULLET = re.compile(r"\s*(?:(?:[-*+>•‣◦▪●–—]|#{1,6}|\(?(?:\d{1,3}|[a-zA-Z])[.)])\s+|[•‣◦▪●]\s*)(?=\S)")
_STOP = re.compile(r"[.!?…‥。！？｡．।॥؟۔։።။‼⁇⁈⁉]+|[•‣◦▪●]")
_ALWAYS = frozenset("。！？｡।॥؟۔։።။•‣◦▪●")
_CLOSING = "\"')]}»”’」』）】*_"
# Followed by a name or an example, so never an end. "No." is one only before a number.
# fmt: off
_INSIDE = frozenset((
    "dr", "mr", "mrs", "ms", "mx", "prof", "rev", "hon", "gen", "col", "sgt", "capt", "lt", "st", "mt", "ft",
    "fig", "figs", "eq", "vs", "e.g", "i.e", "eg", "ie", "cf", "approx", "ca", "ave",
))
# An end only when a new sentence seems to start.
_MAYBE = frozenset((
    "etc", "al", "inc", "ltd", "co", "corp", "jr", "sr", "a.m", "p.m", "am", "pm", "u.s", "u.k", "u.n", "e.u",
    "dept", "est", "min", "max", "vol", "pp", "ed",
))
# fmt: on


def pieces(output: str) -> Iterator[Span]:
    """Sentences and bullets in order, as [start, end) without surrounding space, list marks or Markdown emphasis."""
    for line in _LINE.finditer(output):
        start = line.start()
        bullet = _BULLET.match(output, start, line.end())
        if bullet:
            start = bullet.end()
        for stop in _STOP.finditer(output, start, line.end()):
            end = _after_closing(output, stop.end(), line.end())
            if stop.start() >= start and _ends_sentence(output, stop, end, start, line.end()):
                yield from _trimmed(output, start, end)
                start = end
        yield from _trimmed(output, start, line.end())


def _after_closing(text: str, at: int, limit: int) -> int:
    while at < limit and text[at] in _CLOSING:
        at += 1
    return at


def _ends_sentence(text: str, stop: re.Match[str], end: int, start: int, limit: int) -> bool:
    mark = stop.group()
    if any(c in _ALWAYS for c in mark) or end >= limit:
        return True
    following = text[end]
    if not following.isspace():
        # "3.5", "e.g.", "photo.png" go on; a script without spaces between sentences does not.
        return not following.isascii() and following.isalnum()
    rest = text[end : end + 40].lstrip()
    goes_on = rest[:1].islower()
    if mark == ".":
        return _ends_at_point(text[max(start, stop.start() - 40) : stop.start()], rest, goes_on)
    return not (goes_on and mark[0] in ".…‥")


def _ends_at_point(before: str, rest: str, goes_on: bool) -> bool:
    words = before.split()
    word = words[-1].lstrip("\"'([{«“‘").lower() if words else ""
    if word in _INSIDE or (len(word) == 1 and word.isalpha() and len(words) > 1 and rest[:1].isupper()):
        return False  # "Dr. Lee", "e.g. a dog", "George W. Bush"
    if word == "no" and rest[:1].isdigit():
        return False
    return not (word in _MAYBE and (goes_on or rest[:1].isdigit()))


def _trimmed(text: str, start: int, end: int) -> Iterator[Span]:
    """The span without what surrounds it; one of more than LONG characters comes in several."""
    while end - start > LONG:
        cut = max(text.rfind(mark, start + LONG // 2, start + LONG) for mark in (", ", "，", "、", " "))
        cut = start + LONG if cut < 0 else cut + 1
        yield from _trimmed(text, start, cut)
        start = cut
    while start < end and (text[start].isspace() or text[start] in "*_#•‣◦▪●"):
        start += 1
    while end > start and (text[end - 1].isspace() or text[end - 1] in "*_#•‣◦▪●"):
        end -= 1
    if start < end:
        yield start, end


# --- what has nothing to check -----------------------------------------------------------------------------------

_YES_NO = (
    "yes|yeah|yep|yup|no|nope|true|false|sí|si|oui|non|ja|nein|nee|sim|não|tak|nie|да|нет|так|ні|evet|hayır|ναι|όχι"
    "|是|是的|不|不是|有|没有|没|対|はい|いいえ|네|예|아니요|아니오|نعم|لا|כן|לא|हाँ|हां|नहीं|ใช่|ไม่"
)
_BARE = re.compile(rf"(?:{_YES_NO}|[-+]?[\d.,:/]*\d\s*%?)")
_APOLOGY = (
    r"(?:(?:i['’]?m|i am|we['’]?re) )?(?:very |so |really |truly )?sorry"
    r"|unfortunately|(?:my )?apologies|i apologi[sz]e"
)
_AS_AI = (
    r"(?:as|i['’]?m|i am) (?:just |only )?an? "
    r"(?:ai|artificial intelligence|(?:large )?language model)(?: language)?(?: model| assistant)?"
)
_CANNOT = (
    r"(?:i|we)(?: can(?:['’]?t|not| not)(?: be able to)?|(?:['’]m| am|['’]re| are) (?:not able|unable) to"
    r"| won['’]?t| will not| (?:do not|don['’]?t) have the ability to)|(?:unable|not able) to"
)
_ITS_JOB = (
    r"help|assist|comply|do that|provide|process|answer|discuss|fulfill?|complete|identify|recogni[sz]e|describe"
    r"|determine|tell|access|analy[sz]e|interpret"
    r"|(?:directly )?(?:see|view|open)(?: or \w+)?(?: the| any| this| that| your| an)?"
    r"(?: attached| provided)? (?:images?|pictures?|photos?|files?|attachments?)"
)
# Not past a "but": "I can't name people, but the man wears a red hat" has something to check.
_REFUSAL = re.compile(
    rf"(?:(?:{_APOLOGY}|{_AS_AI}|but|however|and)[\s,.:;—–-]*)*"
    rf"(?:(?:{_APOLOGY}|{_AS_AI})|(?:{_CANNOT})(?: (?:{_ITS_JOB})\b(?:(?!\b(?:but|however)\b).)*)?"
    r"|no (?:image|picture|photo) (?:was |is |has been )?(?:provided|attached|given|found|visible)\b.{0,40})",
    re.DOTALL,
)
_GREETING = (
    r"sure(?: thing)?|of course|certainly|absolutely|okay|ok|alright|great|hello|hi|hey|hi there|hello there"
    r"|good (?:morning|afternoon|evening|day)|welcome|thanks|thank you|you['’]?re welcome|no problem"
    r"|great question|good question|gladly|happy to help|i['’]?d be happy to help"
)
_HEDGE = (
    r"i (?:think|guess|believe)(?: so)?|i(?:['’]?m| am) not (?:entirely |quite |completely |really )?(?:sure|certain)"
    r"|i (?:don['’]?t|do not) know|maybe|perhaps|possibly|probably|not sure|unknown|unclear|n/?a"
    r"|it(?: is|['’]?s) (?:hard|difficult|impossible) to (?:say|tell)(?: for (?:sure|certain))?"
)
_META = (
    r"let me (?:see|look|think|check|help)(?: you)?|(?:please )?let me know if .*|feel free to .*"
    r"|i hope (?:this|that|it) helps.*|hope (?:this|that) helps.*|is there anything else.*"
    r"|(?:do|would) you (?:have any|need|want|like) .*"
    r"|if you (?:have|need|want|would like) .*(?:let me know|ask|tell me|help).*"
    r"|here (?:is|are|['’]s) (?:the|a|an|my|your|what i see)(?: (?:short|brief|detailed|quick|full))?"
    r"(?: (?:description|answer|summary|caption|list|overview|breakdown|details|response))?"
    r"(?: (?:of|for|about) (?:the|this|your) (?:image|picture|photo|scene|question|request))?"
    r"|(?:the )?(?:answer|description|summary|caption|response|output|result|conclusion|note|details|overview)(?: is)?"
)
_TALK = re.compile(rf"(?:{_GREETING}|{_HEDGE}|{_META})", re.DOTALL)


def _why_dropped(piece: str) -> str | None:
    """None keeps the piece. In doubt it is kept: a claim too many costs a look, a lost one hides an error."""
    if not any(_can_be_seen(c) for c in piece):
        return NOTHING_VISUAL
    plain = _without_edges(" ".join(piece.lower().split()))
    if _BARE.fullmatch(plain) or plain.isdigit():
        return BARE_ANSWER
    if _REFUSAL.fullmatch(plain):
        return REFUSAL
    return NOTHING_VISUAL if _TALK.fullmatch(plain) else None


def _without_edges(text: str) -> str:
    start, end = 0, len(text)
    while start < end and not _is_of_a_word(text[start]):
        start += 1
    while end > start and not _is_of_a_word(text[end - 1]):
        end -= 1
    return text[start:end]


def _is_of_a_word(c: str) -> bool:
    return c.isalnum() or unicodedata.category(c)[0] == "M"  # many scripts end words with a mark that is no letter


def _can_be_seen(c: str) -> bool:
    return c.isalnum() or unicodedata.category(c) in ("So", "Sm", "Sc", "Co")  # emoji and signs say something too


# --- what is too long ----------------------------------------------------------------------------------------------

_CLAUSE = re.compile(r"[,;:،؛，；：、—–]+\s*")
_WORD = re.compile(r"\s+")


def _fitting(text: str, span: Span, limit: int, count: Callable[[str], int], level: int = 0) -> Iterator[Claim]:
    """`span` cut at the coarsest joints that make every part fit: commas, then spaces, then characters."""
    start, end = span
    if count(text[start:end]) <= limit:
        yield Claim(start, end, text[start:end])
        return
    if level == 2:
        yield from _by_characters(text, span, limit, count)
        return
    joints = [m.end() for m in (_CLAUSE, _WORD)[level].finditer(text, start, end)]
    for low, high in _packed(text, start, [j for j in joints if j < end] + [end], limit, count):
        for part in _trimmed(text, low, high):
            if any(_can_be_seen(c) for c in text[part[0] : part[1]]):
                yield from _fitting(text, part, limit, count, level + 1)


def _packed(text: str, start: int, joints: list[int], limit: int, count: Callable[[str], int]) -> Iterator[Span]:
    """Neighbouring parts joined while they fit, so that a claim is as much of the sentence as can be."""
    at = 0
    while at < len(joints):
        many = _how_many_fit(text, start, joints[at : at + limit + 1], limit, count)
        yield start, joints[at + many - 1]
        start, at = joints[at + many - 1], at + many


def _how_many_fit(text: str, start: int, joints: list[int], limit: int, count: Callable[[str], int]) -> int:
    """At least one: doubled while they fit, then halved in between. Counting after every joint was quadratic."""
    fit, over = 1, 2
    while over <= len(joints) and count(text[start : joints[over - 1]]) <= limit:
        fit, over = over, over * 2
    over = min(over, len(joints) + 1)
    while over - fit > 1:
        middle = (fit + over) // 2
        if count(text[start : joints[middle - 1]]) <= limit:
            fit = middle
        else:
            over = middle
    return fit


def _by_characters(text: str, span: Span, limit: int, count: Callable[[str], int]) -> Iterator[Claim]:
    """Halves until it fits: for words longer than the context and for scripts that do not space their words.

    A single character over the limit cannot be cut; it is kept, and the checker says so.
    """
    start, end = span
    if end - start < 2 or count(text[start:end]) <= limit:
        yield Claim(start, end, text[start:end])
        return
    middle = _before_letter(text, (start + end) // 2, end)
    yield from _by_characters(text, (start, middle), limit, count)
    yield from _by_characters(text, (middle, end), limit, count)


def _before_letter(text: str, at: int, end: int) -> int:
    """From `at` on the next place that parts no letter from its marks, nor an emoji from what it is joined with; `at`
    itself where there is none."""
    here = at
    while here < end - 1 and (unicodedata.category(text[here])[0] == "M" or "\u200d" in text[here - 1 : here + 1]):
        here += 1
    return here if here < end - 1 else at
