"""A short answer and its question put together into one statement that a picture can bear out or not.

Pure functions, for English. "3" says nothing that can be looked for; "There are 3 dogs." does. What is said not to be
there is the statement with the sign turned: "no" to "Is there a dog?" denies "There is a dog.". A text tower hardly
reads "not", so a denied detail ("Is the car red?", "no") has no statement: the car is there either way.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

MAX_PROMPT = 1000  # characters looked at; the question of a longer prompt stands at its end
MAX_QUESTION = 200
MAX_WORDS = 8  # of an answer that is put together with its question; a longer one is a statement by itself


@dataclass(frozen=True, slots=True)
class Statement:
    """What an answer comes to; `negated`: the answer says that it is not so."""

    text: str
    negated: bool = False


class DeniedDetail(Exception):
    """The answer denies a detail of something that is there; a similarity cannot tell."""


# fmt: off
YES = frozenset((
    "yes", "yeah", "yep", "yup", "true", "correct", "yes it is", "yes they are", "yes there is", "yes there are",
    "it is", "they are", "there is", "there are", "it does", "yes it does", "affirmative",
))
NO = frozenset((
    "no", "nope", "nah", "false", "incorrect", "not", "no it is not", "no it isn't", "no they are not", "it is not",
    "it isn't", "they are not", "no there is not", "no there isn't", "no there are not", "no there aren't",
    "there is not", "there isn't", "there are not", "there aren't", "it does not", "it doesn't", "no it does not",
    "no it doesn't", "negative",
))
_NUMBERS = frozenset((
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "a dozen", "several", "many",
))
_NONE = frozenset(("0", "zero", "none", "no", "nothing"))
_PLACES = (
    "on|in|at|under|underneath|behind|beside|besides|above|below|over|near|inside|outside|next to|in front of|"
    "to the|left of|right of|between|against|across|around|along|by|with"
)
# fmt: on
_TO_BE = "is|are|was|were"
_PICTURE = r"(?:the |this |that )?(?:image|picture|photo|photograph|scene|figure|screenshot)"
_WITHIN = rf"(?:in|on|of|from) {_PICTURE}"
_IN_PICTURE = rf"(?: {_WITHIN})"
_VISIBLE = r"(?:visible|present|shown|pictured|depicted|seen|displayed|there|here)"
_DETERMINER = r"(?:the|this|that|these|those|his|her|their|its|an?)"


def compose(prompt: str, answer: str) -> Statement | None:
    """The statement; None where the answer is long enough to stand alone or no template fits the question.

    Raises DeniedDetail.
    """
    plain = _plain(answer)
    if not plain or "\n" in answer.strip() or len(plain.split()) > MAX_WORDS:
        return None
    asked = question(prompt)
    for pattern, make in _TEMPLATES:
        if (found := pattern.fullmatch(asked)) is not None:
            made = make(found, plain, answer.strip())
            if made is not None:
                return made
    return None


def asked(prompt: str) -> str:
    """The last question of a prompt, else its first sentence, as it stands there."""
    text = " ".join(prompt[-MAX_PROMPT:].split())
    found = re.findall(r"[^.!?:]*\?", text)
    return found[-1] if found else next((s for s in re.split(r"[.!?:]", text) if s.strip()), "")


@functools.lru_cache(maxsize=4096)  # apps ask the same again and again
def question(prompt: str) -> str:
    """The last question of a prompt, else its first sentence: lower case, without marks and polite words.

    '' for one of more than MAX_QUESTION characters, which no template is meant for.
    """
    plain = _plain(asked(prompt))
    for _ in range(3):
        plain = _POLITE.sub("", plain)
    return plain if len(plain) <= MAX_QUESTION else ""


_POLITE = re.compile(
    r"^(?:(?:please|question|q|hi|hello|hey|and|so|now|then|tell me|say|answer"
    r"|(?:can|could|would) you(?! (?:see|notice|spot|find|recogni[sz]e)\b)"
    rf"|(?:looking|look) at {_PICTURE}|based on {_PICTURE}|(?:in|from) {_PICTURE})[ ,]+)"
)


def _plain(text: str) -> str:
    plain = " ".join(text.lower().replace("’", "'").replace(",", " ").split())
    return re.sub(r"^[^\w'+-]+|[^\w']+$", "", plain)


# --- templates -----------------------------------------------------------------------------------------------------

Make = Callable[[re.Match[str], str, str], Statement | None]


def _said(text: str) -> Statement:
    text = " ".join(text.split())
    return Statement(text[0].upper() + text[1:] + ".")


def _denied(text: str) -> Statement:
    return Statement(_said(text).text, negated=True)


_ODD = {"people": "person", "men": "man", "women": "woman", "children": "child", "feet": "foot", "mice": "mouse"}


def _there_is(what: str) -> str:
    """ "a dog" is one, "dogs" are more; "any" says nothing."""
    what = re.sub(r"^(?:any|some) ", "", what)
    if re.match(r"(?:an?|one|1|the|this|that) ", what):
        return f"there is {what}"
    noun = re.split(rf" (?:{_PLACES}|{_VISIBLE}|\w+ing)\b", what)[0].split()[-1]
    if noun in _ODD or (noun[-1] == "s" and noun[-2:] != "ss"):
        return f"there are {what}"
    return f"there is {'an' if what[0] in 'aeiou' else 'a'} {what}"


def _exists(found: re.Match[str], answer: str, _: str) -> Statement | None:
    there = _there_is(found["what"])
    if answer in YES:
        return _said(there)
    return _denied(there) if answer in NO else None


def _is(found: re.Match[str], answer: str, _: str) -> Statement | None:
    """ "Is the car red?" and "Is the car red or blue?"."""
    subject, rest = _parted(found["clause"])
    if " or " in f" {rest} " and answer not in YES | NO:
        return _said(f"{subject} {found['be']} {answer}")
    if answer in NO and subject in ("this", "that", "it") and re.match(r"an? ", rest):
        return _denied(f"{subject} {found['be']} {rest}")
    if answer in NO:
        raise DeniedDetail
    return _said(f"{subject} {found['be']} {rest}") if answer in YES and rest else None


def _does(found: re.Match[str], answer: str, _: str) -> Statement | None:
    if answer in NO:
        raise DeniedDetail
    return _said(found["clause"]) if answer in YES else None


_PREDICATE = re.compile(
    rf"(?:{_PLACES}|an?|the|\w{{2,}}ing|\w{{2,}}ed|not|made|full|red|green|blue|yellow|orange|purple|pink|brown|black"
    r"|white|gr[ae]y|open|closed|on|off|wet|dry|empty|old|young|tall|big|small|large)"
)


def _parted(clause: str) -> tuple[str, str]:
    """ "the old man wearing a hat" -> subject and predicate, at the first word that looks like a predicate."""
    words = clause.split()
    stands_alone = words[0] in ("this", "that", "these", "those") and _PREDICATE.fullmatch(words[1])
    start = 2 if re.fullmatch(_DETERMINER, words[0]) and not stands_alone else 1
    at = next((i for i in range(start, len(words)) if _PREDICATE.fullmatch(words[i])), max(start, len(words) - 1))
    return " ".join(words[:at]), " ".join(words[at:])


def _how_many(found: re.Match[str], answer: str, _: str) -> Statement | None:
    what = re.sub(rf"^(?:(?:all|of|the|different|total|number) )+|{_IN_PICTURE}$", "", found["what"]).strip()
    place = found.groupdict().get("place") or ""
    if not what or not (answer in _NONE or answer in _NUMBERS or re.fullmatch(r"\d{1,4}", answer)):
        return None
    if answer in _NONE:
        return _denied(f"there are {what} {place}")
    if answer in ("1", "one"):
        return _said(f"there is {answer} {_singular(what)} {place}")
    return _said(f"there are {answer} {what} {place}")


def _singular(what: str) -> str:
    *before, noun = what.split()
    if noun in _ODD:
        noun = _ODD[noun]
    elif re.search(r"(?:ss|x|ch|sh)es$", noun):
        noun = noun[:-2]
    elif noun.endswith("s") and not noun.endswith("ss"):
        noun = noun[:-1]
    return " ".join([*before, noun])


def _is_free(answer: str) -> bool:
    """No yes, no or sentence of its own: something that fills a gap."""
    stands_alone = re.search(rf"\b(?:{_TO_BE}|there|it's|i|shows?)\b", answer)
    return answer not in YES | NO and not stands_alone


def _filled(template: str) -> Make:
    """`{answer}` and the pattern's groups put into a sentence."""

    def make(found: re.Match[str], answer: str, _: str) -> Statement | None:
        if not _is_free(answer):
            return None
        groups = {name: value or "" for name, value in found.groupdict().items()}
        return _said(template.format(answer=answer, **groups))

    return make


def _where(found: re.Match[str], answer: str, _: str) -> Statement | None:
    if not _is_free(answer):
        return None
    if re.fullmatch(r"(?:the )?(?:left|right|top|bottom|middle|cent(?:er|re))(?: side)?", answer):
        answer = f"on the {answer.removeprefix('the ')}"
    elif not re.match(rf"(?:{_PLACES})\b", answer):
        answer = f"at {answer}"
    return _said(f"{found['what']} {found['be']} {answer}")


def _reads(found: re.Match[str], _: str, verbatim: str) -> Statement | None:
    what = found.groupdict().get("what") or "the text"
    text = verbatim.strip(" \"'“”‘’.")
    return Statement(f'{what[0].upper()}{what[1:]} says "{text}".') if text else None


_NOUN = rf"(?!(?:{_TO_BE}|does|do|has|have)\b)\w+(?: (?!(?:{_TO_BE}|does|do)\b)\w+)?"

_TEMPLATES: tuple[tuple[re.Pattern[str], Make], ...] = tuple(
    (re.compile(pattern), make)
    for pattern, make in (
        # Reading first: what a sign says may be "No" or a number.
        (rf"what (?:does|do) (?P<what>.+?) (?:say|read|spell)(?: on it)?{_IN_PICTURE}?", _reads),
        (rf"what (?:is|are) (?:written|printed|spelled)(?: (?:on|in) (?P<what>{_DETERMINER} .+))?", _reads),
        (r"(?:read|transcribe|what is|what are) (?:the )?(?:text|words?|letters?|writing)(?: (?:on|in) (?P<what>.+))?",
         _reads),
        (r"(?:read|transcribe) (?P<what>the .+)", _reads),
        (rf"(?:{_TO_BE}) there (?P<what>.+)", _exists),
        (r"(?:can|do|could) (?:you|we) (?:see|notice|spot|find|recogni[sz]e) (?P<what>.+)", _exists),
        (rf"(?:does|do) {_PICTURE} (?:show|contain|have|include|depict|feature) (?P<what>.+)", _exists),
        (rf"(?:{_TO_BE}) (?P<what>(?:an?|any|some) .+?) (?:{_VISIBLE}\b.*|{_WITHIN})", _exists),
        (rf"(?P<be>{_TO_BE}) (?P<clause>\w+ .+)", _is),
        (r"(?:does|do|did|has|have) (?P<clause>\w+ .+)", _does),
        (rf"how many (?P<what>.+?)(?: (?:{_TO_BE}|do|does|can|could)\b(?: (?:there|you see|i see|we see|{_VISIBLE}))*"
         rf"{_IN_PICTURE}?(?P<place> (?:{_PLACES}) .+)?.*)?", _how_many),
        (r"(?:count|what is the number of|give the number of) (?P<what>.+)", _how_many),
        (rf"(?:what|which) colou?rs? (?P<be>{_TO_BE}) (?P<what>.+)", _filled("{what} {be} {answer}")),
        (r"what (?:is|are) the colou?rs? of (?P<what>.+)", _filled("{what} is {answer}")),
        (rf"where (?P<be>{_TO_BE}) (?P<what>.+?)(?: located| positioned| placed| standing| sitting)?{_IN_PICTURE}?",
         _where),
        (rf"(?:what|which) (?P<noun>{_NOUN}) (?P<be>{_TO_BE}) (?:this|that|it|these|those|{_VISIBLE}){_IN_PICTURE}?",
         _filled("the {noun} {be} {answer}")),
        (rf"(?:what|which) (?P<noun>{_NOUN}) (?P<be>{_TO_BE}|has|have) (?P<rest>.+)",
         _filled("{answer} {be} {rest}")),
        (rf"what (?P<be>{_TO_BE}) (?P<what>.+?) doing(?P<rest> .+)?", _filled("{what} {be} {answer}{rest}")),
        (rf"what (?P<be>{_TO_BE}) (?P<what>.+?) (?P<verb>\w\w+ing)(?P<rest> .+)?",
         _filled("{what} {be} {verb} {answer}{rest}")),
        (rf"what (?:{_TO_BE}) (?P<place>(?!{_WITHIN}$)(?:{_PLACES}) .+)",
         _filled("there is {answer} {place}")),
        (rf"who (?P<be>{_TO_BE}) (?P<rest>.+)", _filled("{answer} {be} {rest}")),
        (rf"how (?P<be>{_TO_BE}) (?P<what>.+)", _filled("{what} {be} {answer}")),
    )
)  # fmt: skip


# --- what a sentence says is not there -----------------------------------------------------------------------------

_ABSENT = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?:no )?there (?:{_TO_BE})(?:n't| not) (?P<what>(?:an?|any) .+)",
        rf"(?:no )?there (?:{_TO_BE}) no (?P<what>.+)",
        r"(?:no )?i (?:can ?not|can't|do not|don't) see (?P<what>(?:an?|any) .+)",
        rf"{_PICTURE} (?:does not|doesn't|do not|don't) (?:show|contain|have|include|depict) (?P<what>(?:an?|any) .+)",
        rf"no (?P<what>.+?) (?:{_TO_BE}) {_VISIBLE}{_IN_PICTURE}?",
        rf"no (?P<what>[\w -]+?)(?: here|{_IN_PICTURE})",
    )
)
_MORE = re.compile(r"\b(?:but|except|other than|besides|however|only|and|or|nor|which|that)\b|[;:]|,\s*\w")


def denied(sentence: str) -> Statement | None:
    """ "There is no dog." denies "There is a dog."; None for a sentence that also says something else."""
    if len(sentence) > 200 or _MORE.search(sentence.lower().removeprefix("no,")):
        return None
    plain = _plain(sentence)
    for pattern in _ABSENT:
        if (found := pattern.fullmatch(plain)) is not None:
            return _denied(_there_is(found["what"]))
    return None


# --- what a prompt takes for granted ---------------------------------------------------------------------------------

# Words that any prompt may hold and that no picture shows.
_NO_CONTENT = (
    "about all also answer any briefly caption carefully colour color correct could count describe description detail "
    "details detailed does doing each exactly explain find following from full give happening has have here how image "
    "images item items its kind list look looking main many more most much name not number object objects option "
    "other our photo photograph picture pictures possible provide question read scene see sentence shape shapes short "
    "should show shown shows single some something state summarize summarise tell text that the their them there "
    "these they thing things this those transcribe type use user very view visible was were what when where whether "
    "which who why will with word words would write you your"
)
_GENERIC = frozenset(_NO_CONTENT.split())
_PRESUPPOSING = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?:what|which) colou?rs? (?:{_TO_BE}) (?P<what>.+)",
        r"what (?:is|are) the colou?rs? of (?P<what>.+)",
        rf"where (?:{_TO_BE}) (?P<what>.+?)(?: located| positioned| placed)?{_IN_PICTURE}?",
        rf"what (?:{_TO_BE}) (?P<what>{_DETERMINER} .+?) (?:doing|\w\w+ing)\b.*",
        r"what (?:does|do) (?P<what>.+?) (?:say|read|spell).*",
        r"(?:describe|explain|summari[sz]e|transcribe|read|caption) (?P<what>.+)",
        r"(?P<what>(?:what|which|who|how (?!many)).+)",
    )
)


@functools.lru_cache(maxsize=4096)
def presupposed(prompt: str) -> str | None:
    """What the prompt says is in the picture: "What colour is the car?" takes a car for granted. None for a prompt that
    fits any picture ("Describe the scene."), that asks whether something is there, or is not in plain letters."""
    asked = question(prompt)
    for pattern in _PRESUPPOSING if prompt.isascii() else ():
        if (found := pattern.fullmatch(asked)) is not None:
            words = re.findall(r"[a-z]+", found["what"])
            return found["what"] if any(len(word) > 2 and word not in _GENERIC for word in words) else None
    return None
