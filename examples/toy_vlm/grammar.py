"""Claims about drawn scenes, and the reading of a sentence back into its claim."""

import re
from dataclasses import dataclass, replace

from toy_vlm.scenes import COLOURS, GROUNDS, SHAPES

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}


@dataclass(frozen=True)
class Group:
    """`n` things of a colour and a shape: n None = at least one; colour or shape None = any."""

    n: int | None = None
    colour: str | None = None
    shape: str | None = None


@dataclass(frozen=True)
class Claim:
    """One statement; every part that is not None must hold. `sign` "" and `bars` 0 say only that there is one."""

    groups: tuple[Group, ...] = ()
    relation: str | None = None  # of groups[0] to groups[1]
    sign: str | None = None
    bars: int | None = None
    tallest: str | None = None
    shortest: str | None = None
    ground: str | None = None


_NUMBER = "|".join((*NUMBERS, r"\d+"))
_GROUP = re.compile(
    rf"something (?P<some>{'|'.join(COLOURS)})"
    rf"|(?P<objects>{_NUMBER}) objects?\b"
    rf"|(?:(?P<n>an?|{_NUMBER}) )?(?:(?P<colour>{'|'.join(COLOURS)}) )?(?P<shape>{'|'.join(SHAPES)})(?:es|s)?\b"
)
_RELATION = re.compile(r"left of|right of|above|below")
_SIGN_TEXT = re.compile(r"(?:says|reads|reading|text|word on the sign is) (?P<text>[a-z0-9]+)$")
_BARS = re.compile(rf"(?P<n>{_NUMBER}) bars")
_EXTREME = re.compile(
    rf"(?P<which>tallest|shortest) bar (?:in the chart )?is (?P<a>{'|'.join(COLOURS)})"
    rf"|(?P<b>{'|'.join(COLOURS)}) bar is the (?P<which_b>tallest|shortest)"
)
_GROUND = re.compile(rf"(?:on )?an? (?P<a>{'|'.join(GROUNDS)}) background|the background is (?P<b>{'|'.join(GROUNDS)})")


def parse(text: str) -> list[Claim]:
    """The claims of a text, one per sentence. ValueError: a sentence is not of this grammar."""
    return [_parse_sentence(sentence) for sentence in re.split(r"[.!?]+\s*", text) if sentence.strip()]


def _parse_sentence(sentence: str) -> Claim:
    words = " ".join(re.findall(r"[a-z0-9]+", sentence.lower()))
    if words.isdigit():
        return Claim((Group(int(words)),))
    ground = None
    if found := _GROUND.search(words):
        ground = found["a"] or found["b"]
        words = words[: found.start()] + words[found.end() :]
    if found := _SIGN_TEXT.search(words.strip()):
        return Claim(sign=found["text"].upper(), ground=ground)
    if re.search(r"\bsign\b", words):
        return Claim(sign="", ground=ground)
    if re.search(r"\bbars?\b", words):
        return _parse_chart(words, ground)
    groups = tuple(_parse_group(found) for found in _GROUP.finditer(words))
    relation = _RELATION.search(words)
    if not groups and ground is None:
        raise ValueError(f"not a sentence about drawn scenes: {sentence!r}")
    return Claim(groups, relation[0] if relation and len(groups) == 2 else None, ground=ground)


def _parse_group(found: re.Match[str]) -> Group:
    if found["some"]:
        return Group(colour=found["some"])
    if found["objects"]:
        return Group(_number(found["objects"]))
    n = None if found["n"] in (None, "a", "an") else _number(found["n"])
    return Group(n, found["colour"], found["shape"])


def _parse_chart(words: str, ground: str | None) -> Claim:
    bars = _BARS.search(words)
    claim = Claim(bars=_number(bars["n"]) if bars else None, ground=ground)
    if found := _EXTREME.search(words):
        colour = found["a"] or found["b"]
        if "tallest" in (found["which"], found["which_b"]):
            return replace(claim, tallest=colour)
        return replace(claim, shortest=colour)
    return claim if bars else replace(claim, bars=0)


def _number(word: str) -> int:
    return NUMBERS.get(word) or int(word)
