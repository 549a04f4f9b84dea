"""What may be said of a scene: claims, their sentences, and whether they are true.

A sentence is always made from a `Claim` and can be parsed back into it, so truth is decided by comparing facts.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from toy_vlm.grammar import NUMBERS, Claim, Group, parse
from toy_vlm.scenes import COLOURS, GROUNDS, SHAPES, WORDS, Scene, Thing

T = TypeVar("T")

PROMPTS = {"identify": "What is this?", "count": "Count the objects.", "describe": "Describe the scene."}
# What the demo checker is claimed to see, and what is only measured and printed beside it: relations it cannot see.
CLAIMED_EDITS = ("object", "colour", "shape", "word", "bars", "tallest")
UNCLAIMED_EDITS = ("count", "digits", "swap", "relation", "shortest", "background")

_NAMES = {n: name for name, n in NUMBERS.items()}
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


# --- truth -----------------------------------------------------------------------------------------------------


def is_true(scene: Scene, said: str | Claim) -> bool:
    """Whether all that is said holds in the scene. A text may have several sentences. ValueError: not of this grammar.

    Colours of a sign are no facts, so "Something red." counts as possible there.
    """
    claims = parse(said) if isinstance(said, str) else [said]
    return all(_holds(scene, claim) for claim in claims)


def _holds(scene: Scene, claim: Claim) -> bool:
    return (
        all(_group_holds(scene, group) for group in claim.groups)
        and (claim.relation is None or _relation_holds(scene, claim))
        and (claim.sign is None or (scene.word is not None and claim.sign in ("", scene.word)))
        and (claim.bars is None or (bool(scene.bars) and claim.bars in (0, len(scene.bars))))
        and (claim.tallest is None or claim.tallest == extreme(scene, "tallest"))
        and (claim.shortest is None or claim.shortest == extreme(scene, "shortest"))
        and (claim.ground is None or claim.ground == scene.ground)
    )


def _group_holds(scene: Scene, group: Group) -> bool:
    if group.n is None and group.shape is None:
        return scene.word is not None or group.colour in _colours_present(scene)
    found = len(_matching(scene, group))
    return found >= 1 if group.n is None else found == group.n


def _matching(scene: Scene, group: Group) -> list[Thing]:
    return [t for t in scene.things if group.colour in (None, t.colour) and group.shape in (None, t.shape)]


def _colours_present(scene: Scene) -> set[str]:
    return {t.colour for t in scene.things} | {b.colour for b in scene.bars} | {scene.ground}


def _relation_holds(scene: Scene, claim: Claim) -> bool:
    first, second = (_matching(scene, group) for group in claim.groups)
    return any(claim.relation in relations(a, b) for a in first for b in second if a is not b)


def relations(a: Thing, b: Thing) -> list[str]:
    """How `a` lies to `b`; a direction counts only when it is clear (a tenth of the canvas)."""
    found = []
    if abs(a.x - b.x) > 0.1:
        found.append("left of" if a.x < b.x else "right of")
    if abs(a.y - b.y) > 0.1:
        found.append("above" if a.y < b.y else "below")
    return found


def extreme(scene: Scene, which: str) -> str | None:
    """Colour of the tallest or shortest bar, None where there are no bars."""
    pick = max if which == "tallest" else min
    return pick(scene.bars, key=lambda bar: bar.height).colour if scene.bars else None


# --- claims and their false neighbours ---------------------------------------------------------------------------


def claims(scene: Scene, rng: random.Random) -> list[Claim]:
    """True claims of a scene: the whole of it first, then parts of it."""
    if scene.word is not None:
        return [Claim(sign=scene.word), Claim(sign=scene.word), Claim(sign=""), *_ground_claims(scene)]
    if scene.bars:
        return _chart_claims(scene)
    groups = _whole(scene, rng)
    found = [Claim(groups), Claim(groups)]
    if scene.ground != "tint":
        found.append(Claim(groups, ground=scene.ground))
    found += [Claim((part,)) for part in _parts(scene, rng)]
    if scene.kind == "pair":
        a, b = rng.sample(scene.things, 2)
        found += [Claim((_look(a), _look(b)), relation=r) for r in relations(a, b)[:1]]
    return found + _ground_claims(scene)


def _ground_claims(scene: Scene) -> list[Claim]:
    return [] if scene.ground == "tint" else [Claim(ground=scene.ground)]


def _chart_claims(scene: Scene) -> list[Claim]:
    number, tallest = Claim(bars=len(scene.bars)), Claim(tallest=extreme(scene, "tallest"))
    both = replace(number, tallest=tallest.tallest)
    return [number, number, tallest, tallest, both, Claim(shortest=extreme(scene, "shortest")), *_ground_claims(scene)]


def _look(thing: Thing) -> Group:
    return Group(None, thing.colour, thing.shape)


def _whole(scene: Scene, rng: random.Random) -> tuple[Group, ...]:
    things = list(scene.things)
    rng.shuffle(things)
    if scene.kind == "count":
        return (replace(_look(things[0]), n=len(things)),)
    n = 1 if rng.random() < 0.25 else None
    return tuple(replace(_look(thing), n=n) for thing in things)


def _parts(scene: Scene, rng: random.Random) -> list[Group]:
    thing, number = rng.choice(scene.things), len(scene.things)
    parts = [Group(colour=thing.colour)]
    if scene.kind == "count":
        return [*parts, Group(number, shape=thing.shape), Group(number)]
    parts += [_look(thing), Group(shape=thing.shape)]
    return [*parts, Group(number)] if rng.random() < 0.5 else parts


def false_neighbours(scene: Scene, claim: Claim, rng: random.Random) -> list[tuple[str, Claim]]:
    """Claims one edit away from a true one, each verified false against the facts."""
    found = _object_edits(claim, rng) + _other_edits(scene, claim, rng)
    return [(kind, other) for kind, other in found if not is_true(scene, other)]


def _object_edits(claim: Claim, rng: random.Random) -> list[tuple[str, Claim]]:
    found: list[tuple[str, Claim]] = []
    if not claim.groups:
        return found
    at = rng.randrange(len(claim.groups))
    group = claim.groups[at]
    if group.colour is not None:
        found.append(("colour", _with(claim, at, replace(group, colour=_other(rng, COLOURS, group.colour)))))
    if group.shape is not None:
        found.append(("shape", _with(claim, at, replace(group, shape=_other(rng, SHAPES, group.shape)))))
    if group.colour is not None and group.shape is not None:
        other = Group(group.n, _other(rng, COLOURS, group.colour), _other(rng, SHAPES, group.shape))
        found.append(("object", _with(claim, at, other)))
    if len(claim.groups) == 1 and (group.n is not None or group.shape is not None):
        number = rng.choice([n for n in (1, 2, 3, 4) if n != (group.n or 1)])
        found.append(("count", _with(claim, at, replace(group, n=number))))
    if len(claim.groups) == 2 and claim.relation is None:
        a, b = claim.groups
        found.append(("swap", replace(claim, groups=(replace(a, colour=b.colour), replace(b, colour=a.colour)))))
    if claim.relation is not None:
        found.append(("relation", replace(claim, relation=_OPPOSITE[claim.relation])))
    return found


def _other_edits(scene: Scene, claim: Claim, rng: random.Random) -> list[tuple[str, Claim]]:
    found: list[tuple[str, Claim]] = []
    if claim.sign == "":
        found.append(("object", Claim((Group(None, rng.choice(COLOURS), rng.choice(SHAPES)),))))
    elif claim.sign is None and rng.random() < 0.1:
        found.append(("object", Claim(sign="")))
    if claim.sign:
        if claim.sign.isdigit():
            found.append(("digits", replace(claim, sign=str(rng.randrange(100)))))
        else:
            found += [("word", replace(claim, sign=word)) for word in rng.sample(WORDS, 3)]
    if claim.bars:
        found.append(("bars", replace(claim, bars=_other(rng, (2, 3, 4, 5), claim.bars))))
    for which in ("tallest", "shortest"):
        colour = getattr(claim, which)
        if colour is not None:
            # Half of the wrong colours are those of other bars: the harder half.
            pool = [b.colour for b in scene.bars if b.colour != colour] if rng.random() < 0.5 else []
            found.append((which, replace(claim, **{which: _other(rng, pool or COLOURS, colour)})))
    if claim.ground is not None:
        found.append(("background", replace(claim, ground=_other(rng, GROUNDS, claim.ground))))
    return found


def _with(claim: Claim, at: int, group: Group) -> Claim:
    return replace(claim, groups=(*claim.groups[:at], group, *claim.groups[at + 1 :]))


def _other(rng: random.Random, values: Sequence[T], taken: T) -> T:
    return rng.choice([v for v in values if v != taken])


# --- sentences -----------------------------------------------------------------------------------------------------


def captions(scene: Scene, rng: random.Random) -> list[str]:
    """True sentences about the scene, in many phrasings."""
    return [say(claim, rng) for claim in claims(scene, rng)]


def edits(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """(edit kind, false sentence), one edit away from a true sentence and verified false."""
    found = [pair for claim in claims(scene, rng) for pair in false_neighbours(scene, claim, rng)]
    return [(kind, say(claim, rng)) for kind, claim in found]


def say(claim: Claim, rng: random.Random) -> str:
    """One of many sentences for the claim."""
    if claim.groups:
        sentence = _say_groups(claim, rng)
    elif claim.sign == "":
        sentence = rng.choice(_ONE_FRAMES).format(rng.choice(("a sign", "one sign", "1 sign")))
    elif claim.sign is not None:
        sentence = rng.choice(_SIGN_FRAMES).format(rng.choice(("{}", '"{}"')).format(claim.sign))
    elif claim.tallest or claim.shortest or claim.bars:
        sentence = _say_chart(claim, rng)
    elif claim.ground:
        sentence = rng.choice(("The background is {}.", "A {} background.")).format(claim.ground)
    else:
        raise ValueError(f"nothing to say of {claim}")
    return _styled(sentence, rng)


def _styled(sentence: str, rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.6:
        return sentence[0].upper() + sentence[1:].rstrip(".") + "."
    return sentence.rstrip(".") if roll < 0.9 else sentence.rstrip(".").lower()


_SIGN_FRAMES = (
    "A sign that says {}.", "The sign says {}.", "The sign reads {}.", "A sign reading {}.",
    "There is a sign that says {}.", "The image shows a sign that says {}.",
    "This is a sign that says {}.", "A sign with the text {}.", "It says {}.",
    "The text reads {}.", "a photo of a sign that says {}", "The word on the sign is {}.", "It is a sign that says {}.",
)  # fmt: skip
_CHART_FRAMES = (
    "A bar chart with {} bars.", "The bar chart has {} bars.", "The chart has {} bars.", "There are {} bars.",
    "The image shows a bar chart with {} bars.", "This is a bar chart with {} bars.", "{} bars.",
    "It is a bar chart with {} bars.", "a chart of {} bars", "The picture shows {} bars.",
)  # fmt: skip
_ONE_FRAMES = (
    "{}", "{}.", "This is {}.", "It is {}.", "There is {}.", "There is {} in the picture.", "There is {} in the image.",
    "The image shows {}.", "The picture shows {}.", "The image contains {}.", "a photo of {}", "a picture of {}",
    "a drawing of {}", "I see {}.", "I can see {}.", "The object is {}.", "{} in the image.",
)  # fmt: skip
_MANY_FRAMES = (
    "{}", "{}.", "There are {}.", "There are {} in the picture.", "The image shows {}.", "The picture shows {}.",
    "I see {}.", "I count {}.", "a photo of {}", "These are {}.", "The image contains {}.",
)  # fmt: skip


def _say_groups(claim: Claim, rng: random.Random) -> str:
    digits = rng.random() < 0.5
    names = [name_of(group, digits) for group in claim.groups]
    if claim.relation is not None:
        first = rng.choice(("{}", "There is {}", "The image shows {}")).format(names[0])
        relation = claim.relation if claim.relation in ("above", "below") else f"to the {claim.relation}"
        return f"{first} {relation} {names[1]}."
    what = " and ".join(names)
    if claim.ground is not None:
        article = "an" if claim.ground == "orange" else "a"
        what += f" on {article} {claim.ground} background"
    many = len(names) == 1 and (claim.groups[0].n or 1) > 1
    return rng.choice(_MANY_FRAMES if many else _ONE_FRAMES).format(what)


def name_of(group: Group, digits: bool = False) -> str:
    """The noun phrase: "a red circle", "3 blue squares", "something red", "two objects"."""
    if group.n is None and group.shape is None:
        return f"something {group.colour}"
    words = [w for w in (group.colour, group.shape or "object") if w]
    if group.n is None:
        return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)
    number = str(group.n) if digits else _NAMES[group.n]
    plural = ("es" if words[-1].endswith("s") else "s") if group.n > 1 else ""
    return f"{number} {' '.join(words)}{plural}"


def _say_chart(claim: Claim, rng: random.Random) -> str:
    if claim.bars:
        number = str(claim.bars) if rng.random() < 0.5 else _NAMES[claim.bars]
        if claim.tallest:
            return f"A bar chart with {number} bars, the tallest bar is {claim.tallest}."
        return rng.choice(_CHART_FRAMES).format(number)
    which, colour = ("tallest", claim.tallest) if claim.tallest else ("shortest", claim.shortest)
    frames = (
        "The {w} bar is {c}.",
        "The {c} bar is the {w}.",
        "The {w} bar in the chart is {c}.",
        "a bar chart where the {w} bar is {c}",
    )
    return rng.choice(frames).format(w=which, c=colour)


# --- the answers of the example app ----------------------------------------------------------------------------------


def answer(scene: Scene, prompt_type: str) -> str:
    """The right answer to one of PROMPTS: always the same words for the same facts, so a model can be sure of them."""
    if scene.word is not None:
        return _sign_answer(scene, prompt_type)
    if scene.bars:
        return _chart_answer(scene, prompt_type)
    things = sorted(scene.things, key=lambda t: (t.x, t.y))
    groups = [_look(t) for t in things] if scene.kind != "count" else [replace(_look(things[0]), n=len(things))]
    if prompt_type == "count" and groups[0].n and groups[0].shape == "circle":
        return str(groups[0].n)  # some apps' models answer with the bare number, which nothing visual can check
    if prompt_type == "count":
        what = " and ".join(name_of(replace(g, n=g.n or 1), digits=True) for g in groups)
    else:
        what = " and ".join(name_of(g) for g in groups)
    if prompt_type == "identify":
        return what[0].upper() + what[1:] + "."
    start = f"There {'are' if len(things) > 1 and len(groups) == 1 else 'is'} {what}"
    if prompt_type == "count" or scene.ground == "tint":
        return start + "."
    if len(groups) == 2:
        return f"{start}. The background is {scene.ground}."
    return f"{start} on {'an' if scene.ground == 'orange' else 'a'} {scene.ground} background."


def _sign_answer(scene: Scene, prompt_type: str) -> str:
    if prompt_type == "count":
        return "There is 1 sign."
    if prompt_type == "identify":
        return f"A sign that says {scene.word}."
    ground = "" if scene.ground == "tint" else f" The background is {scene.ground}."
    return f"There is a sign that says {scene.word}.{ground}"


def _chart_answer(scene: Scene, prompt_type: str) -> str:
    number = len(scene.bars)
    if prompt_type == "count":
        return f"There are {number} bars."
    if prompt_type == "identify":
        return f"A bar chart with {_NAMES[number]} bars."
    return f"The image shows a bar chart with {_NAMES[number]} bars. The tallest bar is {extreme(scene, 'tallest')}."
