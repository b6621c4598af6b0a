"""What a run shows: tables of figures as text and JSON, panels of pictures with predictions, curves over steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.errors import ConfigError
from mmjax.evaluators import Figure, as_json
from mmjax.metrics import read_lines
from mmjax.table import columns

Series = dict[str, tuple[list[int], list[float]]]  # name: (steps, values)
INK, GREY, RIGHT, WRONG = "#1f2328", "#6e7781", "#1a7f37", "#cf222e"


def table(figures: Sequence[Figure]) -> str:
    """Figures one a line, in columns: figure, value, 95 % interval, baseline, value minus baseline, n.

    The interval of the difference is paired: both are of the same resampled rows.
    """
    head = ("figure", "value", "95 % interval", "baseline", "minus baseline (95 %)", "n")
    return columns([head, *(figure.cells() for figure in figures)], "<>><>>")


def write_json(path: str | Path, figures: Sequence[Figure], also: Mapping[str, Any] | None = None) -> None:
    """Writes {"figures": what `as_json` makes of them, **also}."""
    text = json.dumps({**(also or {}), "figures": as_json(figures)}, indent=1, ensure_ascii=False)
    Path(path).write_text(text + "\n", "utf-8")


@dataclass(frozen=True)
class PanelItem:
    """A picture and what was said of it.

    Attributes:
      image: [H, W, 3] uint8; pictures of one panel may differ in size.
      lines: (text, right, wrong or neither): a true line is green with a tick, a false one red with a cross.
      title: a grey line above, such as the picture's id.
    """

    image: np.ndarray
    lines: Sequence[tuple[str, bool | None]]
    title: str = ""


def write_page(path: str | Path, page: str | np.ndarray) -> None:
    """A text, or a picture [H, W, 3] uint8 as PNG."""
    from PIL import Image

    if isinstance(page, str):
        Path(path).write_text(page.rstrip("\n") + "\n", "utf-8")
    else:
        Image.fromarray(page).save(path)


def panel(path: str | Path, items: Sequence[PanelItem], *, columns: int = 4) -> None:
    """`draw_panel` into a PNG file."""
    from PIL import Image

    if not items:
        raise ConfigError(f"{path}: a panel of no pictures. Expected at least one (config.eval.examples).")
    Image.fromarray(draw_panel(items, columns=columns)).save(path)


def draw_panel(items: Sequence[PanelItem], *, columns: int = 4) -> np.ndarray:
    """Draws the items as a grid, [H, W, 3] uint8: each picture in a square, its lines wrapped below."""
    from PIL import Image, ImageDraw

    side, gap, leading = 240, 20, 20
    font, columns = _font(14), min(columns, len(items))
    captions = [_lines(item, font, side) for item in items]
    grid = [range(start, min(start + columns, len(items))) for start in range(0, len(items), columns)]
    heights = [side + gap + leading * max(len(captions[i]) for i in row) for row in grid]
    page = Image.new("RGB", (gap + columns * (side + gap), gap + sum(heights) + gap * (len(grid) - 1)), "white")
    draw, top = ImageDraw.Draw(page), gap
    for row, height in zip(grid, heights, strict=True):
        for column, i in enumerate(row):
            left = gap + column * (side + gap)
            picture = _fit(items[i].image, side)
            draw.rectangle((left, top, left + side - 1, top + side - 1), fill="#f6f8fa")
            page.paste(picture, (left + (side - picture.width) // 2, top + (side - picture.height) // 2))
            for n, (text, colour) in enumerate(captions[i]):
                draw.text((left, top + side + 8 + n * leading), text, fill=colour, font=font)
        top += height + gap
    return np.asarray(page)


@dataclass(frozen=True)
class TokenLine:
    """A text as the model reads it.

    Attributes:
      name: what it is, in grey before it.
      tokens: (token, whether it is learnt).
      padding: positions filled up after them.
      masked: why it counts for nothing, where it does.
    """

    name: str
    tokens: Sequence[tuple[str, bool]]
    padding: int = 0
    masked: str = ""

    def __str__(self) -> str:
        if self.masked:
            return f"{self.name}: ({self.masked})"
        words = " ".join(f"[{_shown(token)}]" if learnt else _shown(token) for token, learnt in self.tokens)
        return f"{self.name}: {words}" + (f" {_DOT} x {self.padding}" if self.padding else "")


def token_rows(path: str | Path, rows: Sequence[tuple[str, np.ndarray | None, Sequence[TokenLine]]]) -> None:
    """Draws rows of (title, picture [H, W, 3] uint8 or None, its texts) one below the other into a PNG file.

    Each token has a box of its own: green where it is learnt, grey where it is only read; padding is dots and a count.
    """
    from PIL import Image, ImageDraw

    side, gap, leading, width = 176, 24, 27, 1120
    font, left = _font(14), side + 2 * gap
    column = left + 120
    placed = [[_place(line, font, width - gap - column) for line in lines] for _, _, lines in rows]
    heights = [max(side, 28 + leading * sum(n for _, n in lines)) for lines in placed]
    page = Image.new("RGB", (width, gap + leading + sum(heights) + gap * len(rows)), "white")
    draw, top = ImageDraw.Draw(page), gap + leading
    at = gap
    for word, learnt in (("learnt", True), ("read", False)):
        at += _box(draw, (at, gap // 2), word, learnt, font) + 8
    draw.text((at + 8, gap // 2), f"{_DOT * 3} 9  padding, and how much", fill=GREY, font=font)
    for (title, picture, lines), boxes, height in zip(rows, placed, heights, strict=True):
        if picture is not None:
            shown = _fit(picture, side)
            draw.rectangle((gap, top, gap + side - 1, top + side - 1), fill="#f6f8fa")
            page.paste(shown, (gap + (side - shown.width) // 2, top + (side - shown.height) // 2))
        draw.text((left, top), title, fill=INK, font=font)
        y = top + 28
        for line, (words, count) in zip(lines, boxes, strict=True):
            draw.text((left, y), line.name, fill=GREY, font=font)
            for text, learnt, x, row in words:
                if learnt is None:
                    draw.text((column + x, y + row * leading), text, fill=GREY, font=font)
                else:
                    _box(draw, (column + x, y + row * leading), text, learnt, font)
            y += count * leading
        top += height + gap
    page.save(path)


_DOT, _EDGE = "·", 4  # pixels between a token and the edge of its box


def _place(line: TokenLine, font: Any, width: float) -> tuple[list[tuple[str, bool | None, float, int]], int]:
    """-> (text, learnt or None, left edge, line) of everything that is drawn of a text, and its number of lines."""
    words: list[tuple[str, bool | None]] = list(line.tokens)
    if line.masked:
        words = [(f"({line.masked})", None)]
    elif line.padding:
        words.append((f" {_DOT * min(line.padding, 12)} {line.padding}", None))
    placed, x, row = [], 0.0, 0
    for token, learnt in words:
        text = _shown(token)
        wide = font.getlength(text) + (0 if learnt is None else 2 * _EDGE)
        x += (7 if token[:1] == " " else 2) if x else 0  # the pieces of a word stand close
        if x and x + wide > width:
            x, row = 0.0, row + 1
        placed.append((text, learnt, x, row))
        x += wide
    return placed, row + 1


def _box(draw: Any, at: tuple[float, float], text: str, learnt: bool, font: Any) -> float:
    """A token in its box -> its width."""
    wide = font.getlength(text) + 2 * _EDGE
    x, y = at
    fill, ink = ("#dafbe1", RIGHT) if learnt else ("#eef0f2", INK)
    draw.rounded_rectangle((x, y - 2, x + wide, y + 20), 4, fill=fill)
    draw.text((x + _EDGE, y), text, fill=ink, font=font)
    return wide


def _shown(token: str) -> str:
    """Without the blank before a word; what is only blank, or cannot be drawn, as a sign."""
    return token.strip() or ("␣" if token else "∅")


def curves(path: str | Path, metrics: str | Path) -> None:
    """Draws a metrics.jsonl over steps into a PNG file: losses, learning rate, shares, and what else evaluations gave.

    Lines with `lr` are training's; the others are evaluations', with keys `set/task/metric`.
    """
    lines = read_lines(metrics) if Path(metrics).is_file() else []
    training, evaluation = _series(lines, training=True), _series(lines, training=False)
    if not training and not evaluation:
        raise ConfigError(
            f"{metrics}: no line to draw. Expected lines such as {{'step': 10, 'loss': 2.3, 'lr': 0.001}}."
        )
    is_loss = lambda name: name.rpartition("/")[2] == "loss"  # noqa: E731
    losses = {name: series for name, series in training.items() if is_loss(name)}
    if len(losses) == 2:  # one task: its own loss is the whole one
        losses.pop("loss", None)
    share = {n: s for n, s in evaluation.items() if not is_loss(n) and all(0 <= y <= 1 for y in s[1])}
    rest = {n: s for n, s in evaluation.items() if not is_loss(n) and n not in share}
    groups = {
        "loss": losses | {name: series for name, series in evaluation.items() if is_loss(name)},
        "learning rate": {name: series for name, series in training.items() if name == "lr"},
        "evaluation, %": {name: (steps, [100 * y for y in values]) for name, (steps, values) in share.items()},
        "evaluation, other": rest,
    }
    _draw(path, {title: group for title, group in groups.items() if group}, dotted=set(evaluation))


def draw_confusion(counts: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """[C, C] counts, truth down and prediction across -> [H, W, 3] uint8. Shades are shares of the truth's row.

    Counts stand in the cells of up to 25 classes, names at the edges of up to 100.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Page

    side = float(np.clip(1.5 + 0.42 * len(names), 4, 14))
    page = Page(figsize=(side, side), layout="constrained", dpi=100)
    canvas, axes = FigureCanvasAgg(page), page.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    shown = range(len(names)) if len(names) <= 100 else ()
    axes.set_xticks(shown, [names[i] for i in shown], rotation=90, fontsize=8)
    axes.set_yticks(shown, [names[i] for i in shown], fontsize=8)
    if len(names) <= 25:
        for i, j in zip(*np.nonzero(counts), strict=True):
            axes.text(
                j, i, counts[i, j], ha="center", va="center", fontsize=8, color="white" if share[i, j] > 0.5 else INK
            )
    axes.set_xlabel("prediction", color=GREY)
    axes.set_ylabel("truth", color=GREY)
    axes.spines[:].set_color("#e4e7ea")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _series(lines: Sequence[Mapping[str, Any]], *, training: bool) -> Series:
    """{name: (steps, values)} of the numbers in training's or in evaluations' lines."""
    series: Series = {}
    for line in lines:
        if ("lr" in line) == training:
            for name, value in line.items():
                if name != "step" and isinstance(value, (int, float)):
                    steps, values = series.setdefault(name, ([], []))
                    steps.append(line["step"])
                    values.append(value)
    return series


def _draw(path: str | Path, groups: Mapping[str, Series], dotted: set[str]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Page

    page = Page(figsize=(10, 3.0 * len(groups)), layout="constrained")
    FigureCanvasAgg(page)
    for axes, (title, group) in zip(
        page.subplots(len(groups), squeeze=False, sharex=True)[:, 0], groups.items(), strict=True
    ):
        for name, (steps, values) in group.items():
            style = ("-", "--", ":")[len(axes.lines) // 10 % 3]  # the ten colours begin anew
            marker = "o" if name in dotted else None
            axes.plot(steps, values, style, marker=marker, markersize=4, linewidth=1.5, label=name)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.grid(color="#e4e7ea", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        if title != "learning rate":
            axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xlabel("step")
    page.savefig(path, dpi=110)


def _font(size: int) -> Any:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic, and the tick and the cross."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _lines(item: PanelItem, font: Any, width: int) -> list[tuple[str, str]]:
    """(text, colour) of the item's lines, wrapped at `width` pixels; what wraps is indented past the tick or cross."""
    wrapped = [(text, GREY) for text in _wrap(item.title, font, width)] if item.title else []
    for text, right in item.lines:
        mark, colour = {None: ("", INK), True: ("✓ ", RIGHT), False: ("✗ ", WRONG)}[
            None if right is None else bool(right)
        ]
        indent = "    " if mark else ""
        first, *others = _wrap(text, font, width - font.getlength(indent or mark))
        wrapped += [(mark + first, colour), *((indent + other, colour) for other in others)]
    return wrapped


def _wrap(text: str, font: Any, width: float) -> list[str]:
    """Lines of at most `width` pixels, broken at spaces, and inside a word only where the word alone is too long."""
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
        while font.getlength(lines[-1]) > width and len(lines[-1]) > 1:
            fits = next(n for n in range(len(lines[-1]) - 1, 0, -1) if n == 1 or font.getlength(lines[-1][:n]) <= width)
            lines[-1:] = [lines[-1][:fits], lines[-1][fits:]]
    return lines


def _fit(image: np.ndarray, side: int) -> Any:
    """The picture to fill a square of `side`; a small one grows by a whole factor, so that its pixels stay square."""
    from PIL import Image

    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ConfigError(f"panel: a picture of {image.dtype} {image.shape}. Expected uint8 [H, W, 3].")
    ratio, method = side / max(image.shape[:2]), Image.Resampling.LANCZOS
    if ratio >= 2:
        ratio, method = int(ratio), Image.Resampling.NEAREST
    size = max(1, round(image.shape[1] * ratio)), max(1, round(image.shape[0] * ratio))
    return Image.fromarray(image).resize(size, method)
