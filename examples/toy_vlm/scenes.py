"""The drawn-scenes world: exact facts first, pixels second.

`sample` draws the facts of one scene, `render` draws its pixels. Everything a sentence may say about a picture is
in the facts, so `captions.is_true` never has to look at a pixel.
"""

import hashlib
import math
import random
from dataclasses import dataclass

from PIL import Image

RGB = tuple[int, int, int]

KINDS = ("single", "pair", "count", "sign", "bars")
SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "black")
GROUNDS = ("white", "grey", *COLOURS)
WORDS = (
    "STOP", "EXIT", "OPEN", "SALE", "TAXI", "BANK", "CAFE", "PARK", "HOTEL", "BUS",
    "POLICE", "MENU", "FIRE", "SHOP", "NEWS", "MUSEUM", "SLOW", "HELP", "FREE", "GARAGE",
)  # fmt: skip
MIN_SIDE, MAX_SIDE = 32, 1024

# Several everyday readings of each colour name: the first are those of CSS and of drawing programs.
_TONES: dict[str, tuple[RGB, ...]] = {
    "red": ((255, 0, 0), (220, 20, 40), (200, 30, 30), (230, 50, 45)),
    "green": ((0, 128, 0), (0, 255, 0), (34, 139, 34), (50, 190, 60), (0, 170, 80)),
    "blue": ((0, 0, 255), (30, 60, 200), (30, 120, 240), (0, 70, 180)),
    "yellow": ((255, 255, 0), (255, 220, 0), (240, 225, 50), (250, 235, 20)),
    "orange": ((255, 165, 0), (255, 140, 0), (240, 120, 20), (255, 125, 30)),
    "purple": ((128, 0, 128), (148, 0, 211), (138, 43, 226), (120, 40, 160), (160, 32, 240)),
    "black": ((0, 0, 0), (12, 12, 14), (28, 28, 28)),
    "white": ((255, 255, 255), (255, 255, 255), (255, 255, 255), (250, 250, 248), (240, 240, 240)),
    "grey": ((128, 128, 128), (100, 100, 100), (160, 160, 160), (190, 190, 190), (211, 211, 211)),
}
_TONE_JITTER = 10  # per channel; larger values make dark yellow and light orange meet
_MIN_CONTRAST = 95.0  # Euclidean RGB distance below which a thing is lost on its ground


@dataclass(frozen=True)
class Thing:
    """One drawn object: `x`, `y` its centre in [0, 1] of the canvas, `size` its side in [0, 1] of the shorter side."""

    colour: str
    shape: str
    x: float
    y: float
    size: float
    turn: float  # degrees
    rgb: RGB


@dataclass(frozen=True)
class Bar:
    """One bar of a chart; `height` is in (0, 1] of the plot's height."""

    colour: str
    height: float
    rgb: RGB


@dataclass(frozen=True)
class Scene:
    """The facts of one picture. `word` is the text of a sign (a word or a number of at most two digits)."""

    kind: str
    things: tuple[Thing, ...]
    word: str | None
    bars: tuple[Bar, ...]
    ground: str  # one of GROUNDS, or "tint": a pale colour that no caption names
    ground_rgb: RGB
    canvas: tuple[int, int]  # width, height in px, each 32 to 1024
    seed: int  # decides everything without a name: fonts, outlines, noise, compression

    @property
    def fingerprint(self) -> str:
        """Hash of what captions can say; scenes are split into train and held-out by it."""
        facts = (self.kind, [(t.colour, t.shape, round(t.x, 3), round(t.y, 3)) for t in self.things], self.word,
                 [(b.colour, round(b.height, 3)) for b in self.bars], self.ground, self.seed)  # fmt: skip
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    @property
    def held_out(self) -> bool:
        """True for the tenth of all scenes that no training ever sees."""
        return int(self.fingerprint[:8], 16) % 10 == 0


def sample(rng: random.Random, kind: str | None = None) -> Scene:
    """Draw the facts of one scene, of a random kind unless one of KINDS is named."""
    kind = kind or rng.choices(KINDS, weights=(30, 25, 15, 15, 15))[0]
    ground, ground_rgb = _ground(rng)
    things: tuple[Thing, ...] = ()
    word: str | None = None
    bars: tuple[Bar, ...] = ()
    if kind == "sign":
        word = rng.choice(WORDS) if rng.random() < 0.8 else str(rng.randrange(100))
    elif kind == "bars":
        bars = _bars(rng, ground, ground_rgb)
    else:
        things = _things(rng, kind, ground, ground_rgb)
    return Scene(kind, things, word, bars, ground, ground_rgb, _canvas(rng), rng.getrandbits(32))


def sample_where(rng: random.Random, *, held_out: bool, kind: str | None = None) -> Scene:
    """Draw until the scene falls on the wanted side of the train / held-out split."""
    while True:
        scene = sample(rng, kind)
        if scene.held_out == held_out:
            return scene


def render(scene: Scene, size: int | None = None) -> Image.Image:
    """Draw the scene as an RGB image whose longer side is `size` px (default: the scene's own canvas)."""
    from toy_vlm import drawing

    return drawing.draw(scene, size)


def tone(rng: random.Random, colour: str) -> RGB:
    """One of the everyday readings of a colour name, slightly moved."""
    base = rng.choice(_TONES[colour])
    if rng.random() < 0.4:
        return base
    r, g, b = (min(255, max(0, c + rng.randint(-_TONE_JITTER, _TONE_JITTER))) for c in base)
    return r, g, b


def contrast(a: RGB, b: RGB) -> float:
    """Euclidean distance of two colours, 0 to 442."""
    return math.dist(a, b)


def visible_tone(rng: random.Random, colour: str, ground_rgb: RGB) -> RGB | None:
    """A tone of the colour that stands out from the ground, or None when none of ten tries does."""
    for _ in range(10):
        rgb = tone(rng, colour)
        # Yellow on white is far in RGB only through blue, which the eye and resizing keep; black on navy is not.
        if contrast(rgb, ground_rgb) >= _MIN_CONTRAST:
            return rgb
    return None


def _ground(rng: random.Random) -> tuple[str, RGB]:
    roll = rng.random()
    if roll < 0.5:
        return "white", tone(rng, "white")
    if roll < 0.62:
        return "grey", tone(rng, "grey")
    if roll < 0.72:
        return "black", tone(rng, "black")
    if roll < 0.87:
        name = rng.choice(COLOURS[:-1])
        return name, tone(rng, name)
    hue = tone(rng, rng.choice(COLOURS[:-1]))
    r, g, b = (round(c + (255 - c) * rng.uniform(0.68, 0.85)) for c in hue)
    return "tint", (r, g, b)


def _canvas(rng: random.Random) -> tuple[int, int]:
    side = round(math.exp(rng.uniform(math.log(MIN_SIDE), math.log(MAX_SIDE))))
    if rng.random() < 0.55:
        return side, side
    other = min(MAX_SIDE, max(MIN_SIDE, round(side * rng.uniform(0.62, 1.0))))
    return (side, other) if rng.random() < 0.6 else (other, side)


def _colours(rng: random.Random, ground: str) -> list[str]:
    names = [c for c in COLOURS if c != ground]
    rng.shuffle(names)
    return names


def _paints(rng: random.Random, n: int, ground: str, ground_rgb: RGB) -> list[tuple[str, RGB]]:
    """`n` different colours that stand out from the ground; at least four always do."""
    paints = ((name, visible_tone(rng, name, ground_rgb)) for name in _colours(rng, ground))
    return [(name, rgb) for name, rgb in paints if rgb is not None][:n]


def _things(rng: random.Random, kind: str, ground: str, ground_rgb: RGB) -> tuple[Thing, ...]:
    n = {"single": 1, "pair": 2}.get(kind) or rng.randint(2, 4)
    places = _places(rng, n)
    if kind == "pair":
        looks = _pair_looks(rng, ground, ground_rgb)
    else:
        looks = [(*_paints(rng, 1, ground, ground_rgb)[0], rng.choice(SHAPES))] * n
    turn = 0.0 if rng.random() < 0.6 else rng.uniform(-14, 14)
    return tuple(
        Thing(colour, shape, x, y, size, turn, rgb)
        for (colour, rgb, shape), (x, y, size) in zip(looks, places, strict=True)
    )


def _pair_looks(rng: random.Random, ground: str, ground_rgb: RGB) -> list[tuple[str, RGB, str]]:
    paints = _paints(rng, 2, ground, ground_rgb)
    shapes = rng.sample(SHAPES, 2)
    roll = rng.random()
    if roll < 0.15:
        paints[1] = paints[0]  # same colour, two shapes
    elif roll < 0.3:
        shapes[1] = shapes[0]  # same shape, two colours
    return [(name, rgb, shape) for (name, rgb), shape in zip(paints, shapes, strict=True)]


def _places(rng: random.Random, n: int) -> list[tuple[float, float, float]]:
    """Centres and sizes of `n` things that do not touch, in the unit square."""
    low, high = {1: (0.14, 0.95), 2: (0.16, 0.46), 3: (0.14, 0.36), 4: (0.13, 0.32)}[n]
    shared = rng.uniform(low, high)
    while True:
        places: list[tuple[float, float, float]] = []
        for _ in range(60):
            # Things of one picture are about alike in size, as people draw them.
            size = min(high, max(low, shared * rng.uniform(0.8, 1.2)))
            half = size / 2 + 0.01
            x, y = rng.uniform(half, 1 - half), rng.uniform(half, 1 - half)
            if all(max(abs(x - px), abs(y - py)) > (size + ps) / 2 + 0.03 for px, py, ps in places):
                places.append((x, y, size))
            if len(places) == n:
                return places
        shared = max(low, shared * 0.85)


def _bars(rng: random.Random, ground: str, ground_rgb: RGB) -> tuple[Bar, ...]:
    n = rng.randint(2, 5)
    paints = _paints(rng, n, ground, ground_rgb)
    if rng.random() < 0.25 or len(paints) < n:
        paints = paints[:1] * n
    # Tallest and shortest stand clear of the others, so that both are facts and not a matter of pixels.
    heights = [rng.uniform(0.35, 0.75) for _ in range(n)]
    tallest, shortest = rng.sample(range(n), 2)
    heights[tallest] = rng.uniform(max(heights) + 0.14, 1.0) if max(heights) < 0.86 else 1.0
    heights[shortest] = rng.uniform(0.12, min(h for i, h in enumerate(heights) if i != shortest) - 0.12)
    return tuple(Bar(name, height, rgb) for (name, rgb), height in zip(paints, heights, strict=True))
