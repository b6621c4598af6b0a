"""Draws scenes: textured polygons on a varied background, anti-aliased by drawing them at four times the size."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]

RGB: dict[str, Rgb] = {
    "red": (222, 38, 38),
    "green": (34, 160, 60),
    "blue": (36, 76, 222),
    "yellow": (246, 216, 36),
    "purple": (140, 44, 180),
    "orange": (246, 128, 20),
    "pink": (250, 128, 190),
    "cyan": (40, 205, 215),
}
OVERSAMPLE = 4


def _arc(start: float, stop: float, n: int, radius: float = 1.0, x: float = 0.0, y: float = 0.0) -> list:
    angle = np.linspace(start, stop, n)
    return [(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angle]


def _heart() -> list:
    t = np.linspace(0, 2 * np.pi, 60)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return list(zip(x / 16.5, (y - 2) / 15.5, strict=True))


def _cross(arm: float = 0.34) -> list:
    a, b = arm, 0.98
    return [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]


# Outlines in units of the radius, y downwards.
OUTLINES: dict[str, np.ndarray] = {
    name: np.asarray(points, np.float64)
    for name, points in {
        "circle": _arc(0, 2 * np.pi, 60, 0.95),
        "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
        "triangle": [(0, -0.95), (1.0, 0.85), (-1.0, 0.85)],
        "star": [(r * np.sin(k * np.pi / 5), 0.06 - r * np.cos(k * np.pi / 5)) for k, r in enumerate([1.08, 0.44] * 5)],
        "cross": _cross(),
        "heart": _heart(),
        "diamond": [(0, -1.05), (0.72, 0), (0, 1.05), (-0.72, 0)],
        "moon": _arc(0.26 * np.pi, 1.74 * np.pi, 40, 1.0, 0.1) + _arc(1.62 * np.pi, 0.38 * np.pi, 30, 0.8, 0.47),
    }.items()
}


def second_tone(color: str) -> Rgb:
    """The other tone of a texture: near black on a light colour, near white on a dark one."""
    red, green, blue = RGB[color]
    return (40, 40, 40) if 0.3 * red + 0.59 * green + 0.11 * blue > 125 else (245, 245, 245)


def _second_tone_mask(texture: str, height: int, width: int, period: float) -> np.ndarray:
    """[height, width] bool: where the texture shows its second tone. `period` in the same pixels."""
    y, x = np.mgrid[:height, :width] - np.array([height / 2, width / 2])[:, None, None]
    if texture == "striped":
        return ((x + y) / (1.41 * period)) % 1 < 0.42
    if texture == "checkered":
        return (np.floor(1.6 * x / period) + np.floor(1.6 * y / period)) % 2 < 1
    if texture == "dotted":
        u, v = (x / period) % 1 - 0.5, (y / period) % 1 - 0.5
        return u * u + v * v < 0.25**2
    return np.zeros((height, width), bool)


def background(kind: str, size: int, rng: np.random.Generator) -> Image.Image:
    """A greyish background: `plain`, `gradient`, `noise` or `stripes`, never near a shape's colour."""
    base, other = (_greyish(rng) for _ in range(2))
    if kind == "plain":
        return Image.new("RGB", (size, size), tuple(int(c) for c in base))
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] / size - 0.5
    along = (np.cos(angle) * x + np.sin(angle) * y)[..., None]
    if kind == "gradient":
        pixels = base + (other - base) * (along / 1.41 + 0.5)
    elif kind == "stripes":
        wave = 0.5 + 0.5 * np.sin(2 * np.pi * along * rng.uniform(3, 7))
        pixels = base + 0.3 * (other - base) * wave
    else:
        pixels = base + rng.normal(0, 10, (size, size, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _greyish(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(95, 225) + rng.uniform(-14, 14, 3)


def draw(objects: list[dict[str, Any]], canvas: Image.Image) -> Image.Image:
    """Draws the objects on `canvas`, a square picture, in place. `x`, `y` and `radius` are in picture widths."""
    size = canvas.width
    for item in objects:
        centre = np.array([item["x"], item["y"]]) * size
        reach = 1.15 * item["radius"] * size
        low = np.maximum(np.floor(centre - reach), 0).astype(int)
        high = np.minimum(np.ceil(centre + reach), size).astype(int)
        box = (*low.tolist(), *high.tolist())
        width, height = ((high - low) * OVERSAMPLE).tolist()
        patch = canvas.crop(box).resize((width, height), Image.Resampling.NEAREST)
        outline = (OUTLINES[item["shape"]] * item["radius"] * size + centre - low) * OVERSAMPLE
        points = [(float(x), float(y)) for x, y in outline]
        mask = Image.new("L", (width, height))
        ImageDraw.Draw(mask).polygon(points, fill=255)
        color, texture = RGB[item["color"]], item.get("texture", "solid")
        patch.paste(color, mask=mask)
        if texture != "solid":
            period = max(4.6, 0.52 * item["radius"] * size) * OVERSAMPLE
            second = Image.fromarray(_second_tone_mask(texture, height, width, period).astype(np.uint8) * 255)
            patch.paste(second_tone(item["color"]), mask=Image.composite(second, Image.new("L", second.size), mask))
            # A rim of the colour keeps the shape's edge where the second tone is near the background.
            ImageDraw.Draw(patch).line([*points, points[0], points[1]], fill=color, width=OVERSAMPLE, joint="curve")
        canvas.paste(patch.reduce(OVERSAMPLE), box[:2])
    return canvas


def png(picture: Image.Image) -> bytes:
    """The picture as PNG bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "png", compress_level=1)
    return buffer.getvalue()
