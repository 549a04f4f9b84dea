"""Plain shapes as somebody else's script would draw them: Pillow's own primitives and colour names, nothing shared
with `drawing`. The demo checker is measured on these too, so that it is not only right about its own renderer."""

import math
import random

from PIL import Image, ImageDraw, ImageFont

from toy_vlm.scenes import COLOURS, SHAPES, WORDS

GROUNDS = (
    "white",
    "white",
    "white",
    "white",
    "black",
    "gray",
    "lightgray",
    "lightblue",
    "beige",
    "navy",
    "pink",
    "honeydew",
)
_TOO_CLOSE = {
    ("black", "black"),
    ("blue", "navy"),
    ("black", "navy"),
    ("purple", "navy"),
    ("red", "pink"),
    ("purple", "gray"),
}
Pair = tuple[Image.Image, str, str]


def pair(rng: random.Random, smooth: bool | None = None) -> Pair:
    """(image, true sentence, false sentence): a shape, two shapes, a chart or a word on a canvas of 32 to 1024 px."""
    side = round(math.exp(rng.uniform(math.log(32), math.log(1024))))
    size = (side, side) if rng.random() < 0.6 else (side, max(32, round(side * rng.uniform(0.65, 1))))
    ground = rng.choice(GROUNDS)
    smooth = rng.random() < 0.5 if smooth is None else smooth
    scale = 3 if smooth and side <= 400 else 1
    image = Image.new("RGB", (size[0] * scale, size[1] * scale), ground)
    kind = rng.choices((_one, _two, _bars, _word), weights=(5, 2, 1.5, 1.5))[0]
    true, false = kind(rng, ImageDraw.Draw(image), image.size, ground)
    if scale > 1:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return image, true, false


def _seen_on(rng: random.Random, ground: str, but: str = "") -> str:
    return rng.choice([c for c in COLOURS if c != but and (c, ground) not in _TOO_CLOSE])


def _phrase(colour: str, shape: str) -> str:
    return f"{'an' if colour == 'orange' else 'a'} {colour} {shape}"


def _wrong(rng: random.Random, colour: str, shape: str) -> tuple[str, str]:
    """One of: another colour, another shape, both."""
    roll = rng.randrange(3)
    other_colour = rng.choice([c for c in COLOURS if c != colour]) if roll != 1 else colour
    other_shape = rng.choice([s for s in SHAPES if s != shape]) if roll != 0 else shape
    return other_colour, other_shape


def _one(rng: random.Random, pen: ImageDraw.ImageDraw, size: tuple[int, int], ground: str) -> tuple[str, str]:
    colour, shape = _seen_on(rng, ground), rng.choice(SHAPES)
    half = min(size) * rng.uniform(0.09, 0.48)
    centre = rng.uniform(half, size[0] - half), rng.uniform(half, size[1] - half)
    _shape(rng, pen, shape, colour, centre, half)
    frame = rng.choice(("{}.", "There is {}.", "This is {}.", "The image shows {}.", "It is {}.", "a photo of {}"))
    sentences = [frame.format(_phrase(*look)) for look in ((colour, shape), _wrong(rng, colour, shape))]
    return sentences[0][0].upper() + sentences[0][1:], sentences[1][0].upper() + sentences[1][1:]


def _two(rng: random.Random, pen: ImageDraw.ImageDraw, size: tuple[int, int], ground: str) -> tuple[str, str]:
    first = (_seen_on(rng, ground), rng.choice(SHAPES))
    second = (_seen_on(rng, ground, first[0]), rng.choice([s for s in SHAPES if s != first[1]]))
    half = min(size) * rng.uniform(0.1, 0.22)
    for (colour, shape), x in ((first, 0.26), (second, 0.74)):
        _shape(rng, pen, shape, colour, (x * size[0], rng.uniform(half, size[1] - half)), half)
    while (wrong := _wrong(rng, *second)) == first:
        pass
    return tuple(f"There is {_phrase(*first)} and {_phrase(*look)}." for look in (second, wrong))  # type: ignore[return-value]


def _shape(
    rng: random.Random, pen: ImageDraw.ImageDraw, shape: str, colour: str, centre: tuple[float, float], half: float
) -> None:
    x, y = centre
    box = (x - half, y - half, x + half, y + half)
    edge = "black" if rng.random() < 0.2 else None
    if shape == "circle":
        pen.ellipse(box, fill=colour, outline=edge, width=max(1, round(half / 20)))
    elif shape == "square":
        pen.rectangle(box, fill=colour, outline=edge, width=max(1, round(half / 20)))
    elif shape == "triangle":
        pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill=colour, outline=edge)
    elif shape == "cross":
        pen.rectangle((x - half, y - half / 3, x + half, y + half / 3), fill=colour)
        pen.rectangle((x - half / 3, y - half, x + half / 3, y + half), fill=colour)
    else:
        spikes = [(half if i % 2 == 0 else half * 0.4, math.radians(36 * i - 90)) for i in range(10)]
        pen.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for r, a in spikes], fill=colour, outline=edge)


def _bars(rng: random.Random, pen: ImageDraw.ImageDraw, size: tuple[int, int], ground: str) -> tuple[str, str]:
    visible = [c for c in COLOURS if (c, ground) not in _TOO_CLOSE]
    n = rng.randint(2, min(5, len(visible)))
    colours = rng.sample(visible, n)
    heights = [rng.uniform(0.2, 0.65) for _ in range(n)]
    heights[0] = 0.85
    order = rng.sample(range(n), n)
    step = size[0] * 0.9 / n
    for at, i in enumerate(order):
        left = size[0] * 0.05 + at * step
        pen.rectangle(
            (left + step * 0.15, size[1] * (0.95 - heights[i]), left + step * 0.85, size[1] * 0.95), fill=colours[i]
        )
    if rng.random() < 0.5:
        return (
            f"The tallest bar is {colours[0]}.",
            f"The tallest bar is {rng.choice([c for c in COLOURS if c != colours[0]])}.",
        )
    names = {2: "two", 3: "three", 4: "four", 5: "five"}
    return f"A bar chart with {names.pop(n)} bars.", f"A bar chart with {rng.choice(list(names.values()))} bars."


def _word(rng: random.Random, pen: ImageDraw.ImageDraw, size: tuple[int, int], ground: str) -> tuple[str, str]:
    word, other = rng.sample(WORDS, 2)
    ink = "black" if ground not in ("black", "navy", "gray") else "white"
    font = ImageFont.load_default(size=100)
    font = ImageFont.load_default(size=int(100 * 0.85 * size[0] / pen.textlength(word, font=font)))
    pen.text((size[0] / 2, size[1] / 2), word, fill=ink, font=font, anchor="mm")
    return f"A sign that says {word}.", f"A sign that says {other}."
