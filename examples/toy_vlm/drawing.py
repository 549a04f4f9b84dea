"""Pixels for a scene: many ways to draw the same facts, as different programs would."""

import io
import math
import random
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from toy_vlm.scenes import COLOURS, RGB, Scene, Thing, contrast, tone

# Looked up by name and skipped where missing; the font inside Pillow is always there.
_FONT_FILES = (
    "", "", "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansCondensed-Bold.ttf", "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf", "DejaVuSansMono-Bold.ttf", "LiberationSans-Regular.ttf", "arial.ttf",
)  # fmt: skip
Point = tuple[float, float]


def draw(scene: Scene, size: int | None = None) -> Image.Image:
    """Render to RGB; the longer side is `size` px (default: the scene's own canvas)."""
    rng = random.Random(scene.seed)
    width, height = scene.canvas
    if size is not None:
        width, height = (max(1, round(side * size / max(scene.canvas))) for side in scene.canvas)
    smooth = rng.choice((1, 2, 3, 4)) if max(width, height) <= 256 else rng.choice((1, 1, 2))
    image = _ground(rng, scene, width * smooth, height * smooth)
    pen = ImageDraw.Draw(image)
    if scene.word is not None:
        _sign(rng, pen, image.size, scene)
    elif scene.bars:
        _chart(rng, pen, image.size, scene)
    else:
        _objects(rng, pen, image.size, scene)
    if smooth > 1:
        image = image.reduce(smooth)
    return _wear(rng, image)


def _ground(rng: random.Random, scene: Scene, width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), scene.ground_rgb)
    if scene.ground in ("tint", "grey") and rng.random() < 0.25:
        shade = tuple(max(0, c - rng.randint(8, 30)) for c in scene.ground_rgb)
        mask = Image.linear_gradient("L").resize((width, height))
        image.paste(Image.new("RGB", (width, height), shade), mask=mask)
    return image


def _objects(rng: random.Random, pen: ImageDraw.ImageDraw, canvas: tuple[int, int], scene: Scene) -> None:
    edge = _edge(rng, scene)
    hollow = edge is None and rng.random() < 0.05
    for thing in scene.things:
        side = thing.size * min(canvas)
        # A hollow thing is drawn with a thick line, or it vanishes at 64 px.
        line = max(1, round(side * (rng.uniform(0.12, 0.2) if hollow else rng.uniform(0.015, 0.05))))
        fill = None if hollow else thing.rgb
        outline = thing.rgb if hollow else edge
        _shape(pen, thing, canvas, side, fill, outline, line if outline else 0)


def _edge(rng: random.Random, scene: Scene) -> RGB | None:
    """Colour of the outline, or None for the common case of none."""
    if rng.random() < 0.7:
        return None
    if rng.random() < 0.6:
        return (0, 0, 0)
    if rng.random() < 0.5:
        return (255, 255, 255)
    r, g, b = (c // 2 for c in scene.things[0].rgb)
    return r, g, b


def _shape(
    pen: ImageDraw.ImageDraw, thing: Thing, canvas: tuple[int, int], side: float,
    fill: RGB | None, outline: RGB | None, line: int,
) -> None:  # fmt: skip
    width, height = canvas
    margin = side / 2
    cx = min(max(thing.x * width, margin), width - margin)
    cy = min(max(thing.y * height, margin), height - margin)
    if thing.shape == "circle":
        box = (cx - margin, cy - margin, cx + margin, cy + margin)
        pen.ellipse(box, fill=fill, outline=outline, width=line)
        return
    corners = [_turned(x * margin, y * margin, thing.turn, cx, cy) for x, y in outline_of(thing.shape)]
    pen.polygon(corners, fill=fill)
    if outline is not None:
        pen.line([*corners, corners[0], corners[1]], fill=outline, width=line, joint="curve")


@cache
def outline_of(shape: str) -> tuple[Point, ...]:
    """Corners of a shape that fills the square from -1 to 1."""
    if shape == "square":
        return (-0.92, -0.92), (0.92, -0.92), (0.92, 0.92), (-0.92, 0.92)
    if shape == "triangle":
        return (0.0, -0.95), (0.97, 0.85), (-0.97, 0.85)
    if shape == "star":
        radii = (1.0, 0.42) * 5
        turns = [math.pi * i / 5 - math.pi / 2 for i in range(10)]
        return tuple((r * math.cos(t), r * math.sin(t)) for r, t in zip(radii, turns, strict=True))
    if shape == "cross":
        a = 0.32
        return (
            (-a, -1),
            (a, -1),
            (a, -a),
            (1, -a),
            (1, a),
            (a, a),
            (a, 1),
            (-a, 1),
            (-a, a),
            (-1, a),
            (-1, -a),
            (-a, -a),
        )
    raise ValueError(f"no such shape: {shape}")


def _turned(x: float, y: float, degrees: float, cx: float, cy: float) -> Point:
    sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return cx + x * cos - y * sin, cy + x * sin + y * cos


def _sign(rng: random.Random, pen: ImageDraw.ImageDraw, canvas: tuple[int, int], scene: Scene) -> None:
    width, height = canvas
    text = scene.word or ""
    if rng.random() < 0.2:
        text = text.capitalize()
    span = rng.uniform(0.6, 0.94) * width
    font, (x0, y0, x1, y1) = _fitted(rng, pen, text, span, height * rng.uniform(0.35, 0.8))
    cx = rng.uniform(span / 2, width - span / 2)
    cy = rng.uniform((y1 - y0) / 2 + height * 0.08, height * 0.92 - (y1 - y0) / 2)
    ground = scene.ground_rgb
    if rng.random() < 0.65:
        ground = _board(rng, pen, (cx, cy), (span, y1 - y0), canvas)
    pen.text((cx - (x0 + x1) / 2, cy - (y0 + y1) / 2), text, font=font, fill=_ink(rng, ground))


def _board(rng: random.Random, pen: ImageDraw.ImageDraw, centre: Point, text: Point, canvas: tuple[int, int]) -> RGB:
    """Draw the sign's board round its text and return the board's colour."""
    pad = rng.uniform(0.1, 0.5) * text[1]
    half_w, half_h = text[0] / 2 + min(pad, canvas[0] * 0.05), text[1] / 2 + pad
    (cx, cy), board = centre, tone(rng, rng.choice((*COLOURS, "white", "white", "grey")))
    box = (cx - half_w, cy - half_h, cx + half_w, cy + half_h)
    line = max(1, round(min(canvas) * rng.uniform(0.01, 0.03)))
    radius = rng.choice((0.0, half_h * rng.uniform(0.1, 0.6)))
    pen.rounded_rectangle(
        box, radius=radius, fill=board, outline=_ink(rng, board) if rng.random() < 0.6 else None, width=line
    )
    return board


def _ink(rng: random.Random, ground: RGB) -> RGB:
    """A text colour that can be read on the ground: mostly black or white, sometimes a colour."""
    if rng.random() < 0.35:
        rgb = tone(rng, rng.choice(COLOURS))
        if contrast(rgb, ground) > 200:
            return rgb
    return (0, 0, 0) if contrast(ground, (0, 0, 0)) > contrast(ground, (255, 255, 255)) else (255, 255, 255)


def _fitted(
    rng: random.Random, pen: ImageDraw.ImageDraw, text: str, span: float, limit: float
) -> tuple[ImageFont.FreeTypeFont, tuple[float, float, float, float]]:
    """A font in which `text` is at most `span` wide and `limit` high, and the text's box."""
    name = rng.choice(_FONT_FILES)
    box = pen.textbbox((0, 0), text, font=_font(name, 100))
    points = 100 * min(span / (box[2] - box[0]), limit / (box[3] - box[1]))
    font = _font(name, max(6, int(points)))
    return font, pen.textbbox((0, 0), text, font=font)


@cache
def _font(name: str, points: int) -> ImageFont.FreeTypeFont:
    if name:
        try:
            return ImageFont.truetype(name, points)
        except OSError:
            pass
    font = ImageFont.load_default(points)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which signs need; install the Pillow wheel")
    return font


def _chart(rng: random.Random, pen: ImageDraw.ImageDraw, canvas: tuple[int, int], scene: Scene) -> None:
    width, height = canvas
    left, right = rng.uniform(0.06, 0.14) * width, rng.uniform(0.88, 0.96) * width
    top, bottom = rng.uniform(0.06, 0.14) * height, rng.uniform(0.86, 0.95) * height
    ink = _ink(random.Random(0), scene.ground_rgb)
    line = max(1, round(min(canvas) * 0.008))
    if rng.random() < 0.3:
        _grid(pen, (left, top, right, bottom), scene.ground_rgb, line)
    step = (right - left) / len(scene.bars)
    gap = step * rng.uniform(0.12, 0.35)
    edge = ink if rng.random() < 0.25 else None
    for i, bar in enumerate(scene.bars):
        x = left + i * step
        box = (x + gap / 2, bottom - bar.height * (bottom - top), x + step - gap / 2, bottom)
        pen.rectangle(box, fill=bar.rgb, outline=edge, width=line if edge else 0)
    if rng.random() < 0.6:
        pen.line((left, bottom, right, bottom), fill=ink, width=line)
        if rng.random() < 0.7:
            pen.line((left, top, left, bottom), fill=ink, width=line)


def _grid(pen: ImageDraw.ImageDraw, box: tuple[float, float, float, float], ground: RGB, line: int) -> None:
    left, top, right, bottom = box
    shade = tuple(c + 40 if c < 128 else c - 40 for c in ground)
    for i in range(4):
        y = top + i * (bottom - top) / 4
        pen.line((left, y, right, y), fill=shade, width=line)


def _wear(rng: random.Random, image: Image.Image) -> Image.Image:
    """What happens to pictures on their way: blur, noise, JPEG. Half of them stay clean."""
    if rng.random() < 0.5:
        return image
    side = min(image.size)
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.0) * side / 96))
    if rng.random() < 0.35:
        image = _noisy(rng, image)
    if rng.random() < 0.6:
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=rng.randint(45, 95) if side >= 96 else rng.randint(75, 95))
        image = Image.open(packed).convert("RGB")
    return image


def _noisy(rng: random.Random, image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 14), pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))
