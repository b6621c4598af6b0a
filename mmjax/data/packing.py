"""Rows of different lengths in arrays of few shapes: packed rows, pictures in their own aspect, lengths from a list.

Everything here is NumPy on the host. In the model, `segments` keep packed rows apart (`models/block.py: Tokens`), and
`models/patch_encoder.py: Patches` takes the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax.data.image_files import Picture, decode
from mmjax.data.images import ImageSettings
from mmjax.data.resampling import resize
from mmjax.errors import ConfigError


def fit_grid(height: int, width: int, budget: int) -> tuple[int, int]:
    """Rows and columns of the finest grid of square patches over a picture that has at most `budget` of them.

    The sides are scaled alike by the largest s with ceil(s * height) * ceil(s * width) <= budget (SigLIP 2's NaFlex:
    Tschannen et al., 2025, section 2.4.2, where it is found by bisection). That s lets one side be whole patches, so
    the better of two integers is exact.
    """

    def most(side: int, other: int) -> int:
        """Most patches along `side`, where the other one has as many as it needs."""
        start = min(budget, math.isqrt(budget * side // other))
        return next((n for n in range(start, 0, -1) if n * -(-n * other // side) <= budget), 0)

    rows, columns = most(height, width), most(width, height)
    if rows * width >= columns * height:
        return rows, -(-rows * width // height)
    return -(-columns * height // width), columns


def native_image(
    picture: Picture,
    settings: ImageSettings,
    patch: int,
    tokens: int,
    box: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """-> [rows * patch, columns * patch, 3] uint8, rows * columns <= tokens. Raises PictureError.

    Args:
      box: top, left, height, width in pixels of what is seen; None for the whole picture.
    """
    pixels = decode(picture)
    if box is not None:
        pixels = pixels[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
    height, width = pixels.shape[:2]
    rows, columns = fit_grid(height, width, tokens)
    return resize(pixels, (0, 0, height, width), (rows * patch, columns * patch), settings.method)


def patch_arrays(
    sequences: Sequence[Sequence[np.ndarray]], patch: int, tokens: int, pictures: int = 0
) -> dict[str, np.ndarray]:
    """Pictures [rows * patch, columns * patch, 3] -> the arrays of `Patches`, named as in a batch.

    Args:
      sequences: B lists of pictures.
      patch: side of a patch in pixels.
      tokens: N, patches of a sequence.
      pictures: S, the most in a sequence; 0: one in each (or none), without segments.

    Returns:
      image [B, N, patch * patch * 3] uint8, image_position [B, N, 2], image_grid [B, 2] or [B, S, 2], image_mask [B, N]
      and, where S is given, image_segment [B, N].

    Raises:
      ConfigError: a sequence has more patches or pictures than it may.
    """
    batch, most = len(sequences), max(pictures, 1)
    values = np.zeros((batch, tokens, patch * patch * 3), np.uint8)
    positions = np.zeros((batch, tokens, 2), np.int32)
    grid = np.zeros((batch, most, 2), np.int32)
    segments = np.zeros((batch, tokens), np.int32)
    for b, sequence in enumerate(sequences):
        start, counts = 0, [(p.shape[0] // patch) * (p.shape[1] // patch) for p in sequence]
        if len(sequence) > most or sum(counts) > tokens:
            raise ConfigError(
                f"patches: found {len(sequence)} pictures of {sum(counts)} patches in sequence {b}, expected up to "
                f"{most} of {tokens}. Pack fewer, or set config.processor.image.tokens higher."
            )
        for s, (picture, count) in enumerate(zip(sequence, counts, strict=True)):
            rows, columns = picture.shape[0] // patch, picture.shape[1] // patch
            here = slice(start, start + count)
            cut = picture.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 1, 3, 4)
            values[b, here] = cut.reshape(count, -1)
            positions[b, here] = np.indices((rows, columns)).reshape(2, -1).T
            grid[b, s] = rows, columns
            segments[b, here] = s + 1
            start += count
    arrays = {"image": values, "image_position": positions, "image_mask": segments > 0}
    return arrays | ({"image_grid": grid, "image_segment": segments} if pictures else {"image_grid": grid[:, 0]})


def pack(sizes: np.ndarray, budget: int | Sequence[int], rows: int, window: int = 1024) -> list[np.ndarray]:
    """Which rows lie together in one sequence: first-fit decreasing (Johnson, 1973), a pure function of its arguments.

    Args:
      sizes: [n] int, tokens of each row; or [n, R], its sizes of R kinds (tokens, pictures), each with its budget.
      budget: of a sequence, one number or R.
      rows: the most rows of a sequence.
      window: rows that are packed at a time: how far apart the rows of one sequence may have been.

    Returns:
      Sequences, each the numbers of its rows in ascending order. Every row is in exactly one.

    Raises:
      ConfigError: a row that is larger than the budget.
    """
    sizes = np.asarray(sizes, np.int64).reshape(len(sizes), -1)
    limit = np.array([*np.atleast_1d(budget), rows], np.int64)
    sizes = np.concatenate([sizes, np.ones((len(sizes), 1), np.int64)], 1)
    large = (sizes > limit).any(1)
    if large.any():
        row = int(large.argmax())
        raise ConfigError(
            f"row {row}: found a size of {sizes[row, :-1].tolist()}, expected up to {limit[:-1].tolist()}, the budget "
            f"of a packed sequence ({large.sum()} of {len(sizes)} rows are larger). Raise the budget or cut the row."
        )
    share, sequences = (sizes / limit).max(1), []
    for start in range(0, len(sizes), window):
        order = start + np.argsort(-share[start : start + window], kind="stable")
        room, held = np.tile(limit, (len(order), 1)), []
        for row in order:
            # One sequence more than there are: an empty one takes any row.
            at = int((room[: len(held) + 1] >= sizes[row]).all(1).argmax())
            if at == len(held):
                held.append([])
            held[at].append(row)
            room[at] -= sizes[row]
        sequences += [np.sort(h) for h in held]
    return sequences


class Row(NamedTuple):
    """ids: [n] int32; target: [n] bool, tokens that the loss counts; pictures: how many it reads."""

    ids: np.ndarray
    target: np.ndarray
    pictures: int = 0


def make_room(row: Row, image: int, counts: Sequence[int]) -> Row:
    """Each `image` id of a row becomes as many as its picture has tokens: counts, one for each picture."""
    here = row.ids == image
    if here.sum() != len(counts):
        raise ConfigError(f"pack: found {here.sum()} <image> placeholders in a row of {len(counts)} pictures.")
    repeats = np.ones(len(row.ids), np.int64)
    repeats[here] = counts
    return Row(np.repeat(row.ids, repeats), np.repeat(row.target & ~here, repeats), len(counts))


def packed_arrays(
    sequences: Sequence[Sequence[Row]], feature: str, length: int, rows: int, pictures: int = 0, pad: int = 0
) -> dict[str, np.ndarray]:
    """Packed rows as the arrays of a batch. Positions start anew in each row: the model counts them by the segments.

    Args:
      sequences: B lists of rows, as `pack` put them together.
      feature: name of the texts in the batch.
      length: L, tokens of a sequence. rows: S, pictures: M, the most of them in a sequence.

    Returns:
      For feature "text": text [B, L] int32, text_segment [B, L] int32 (1, 2, ... and 0 for padding), text_mask [B, L],
      text_target [B, L] (never a row's first token, which nothing predicts) and text_valid [B, S] bool; with pictures,
      image_row [B, M] int32, the segment that each picture belongs to, 0 for none.
    """
    ids = np.full((len(sequences), length), pad, np.int32)
    segments, targets = np.zeros(ids.shape, np.int32), np.zeros(ids.shape, bool)
    valid, owner = np.zeros((len(sequences), rows), bool), np.zeros((len(sequences), pictures), np.int32)
    for b, sequence in enumerate(sequences):
        sizes = (sum(len(row.ids) for row in sequence), len(sequence), sum(row.pictures for row in sequence))
        if any(size > limit for size, limit in zip(sizes, (length, rows, pictures), strict=True)):
            raise ConfigError(
                f"pack: found {sizes[0]} tokens, {sizes[1]} rows and {sizes[2]} pictures in sequence {b}, expected up "
                f"to {length}, {rows} and {pictures}. Give `pack` the same budget."
            )
        start = 0
        for s, row in enumerate(sequence):
            here = slice(start, start + len(row.ids))
            ids[b, here], segments[b, here] = row.ids, s + 1
            targets[b, start + 1 : here.stop] = row.target[1:]
            start = here.stop
        valid[b, : len(sequence)] = True
        owner[b, : sizes[2]] = np.repeat(np.arange(1, len(sequence) + 1), [row.pictures for row in sequence])
    names = {"": ids, "_segment": segments, "_mask": segments > 0, "_target": targets, "_valid": valid}
    arrays = {feature + name: array for name, array in names.items()}
    return arrays | ({"image_row": owner} if pictures else {})


def bucket(length: int, buckets: Sequence[int]) -> int:
    """The smallest of `buckets` that holds `length`."""
    if length > max(buckets):
        raise ConfigError(f"buckets: found a length of {length}, expected up to {max(buckets)}. Add a larger one.")
    return min(b for b in buckets if b >= length)


def cut_to_bucket(batch: Mapping[str, np.ndarray], feature: str, buckets: Sequence[int]) -> dict[str, np.ndarray]:
    """A batch whose texts [..., L] and masks are cut to the bucket of the longest text, so that a step over it compiles
    at most len(buckets) times.
    """
    mask = batch[f"{feature}_mask"]
    length = bucket(int(np.max(mask * np.arange(1, mask.shape[-1] + 1))), buckets)
    return {**batch, **{name: batch[name][..., :length] for name in (feature, f"{feature}_mask")}}


def check_compiled(function: Any, at_most: int) -> int:
    """How many versions of a jitted function exist; more than `at_most` is a RuntimeError that says so.

    A step that compiles anew for every length looks like a slow one: this is asked after the first steps.
    """
    count = function._cache_size()
    if count > at_most:
        name = getattr(function, "__name__", "a jitted function")
        raise RuntimeError(
            f"{name}: compiled {count} versions, expected at most {at_most}: a shape of its inputs varies."
        )
    return count
