"""Pictures in their own aspect: how many patches a picture gets, and between pixels and patches.

In the model, `models/patch_encoder.py: Patches` takes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


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


def cut(pictures: Sequence[np.ndarray], patch: int, tokens: int) -> dict[str, np.ndarray]:
    """B pictures [rows * patch, columns * patch, 3] uint8, rows * columns <= tokens, as the batch has them.

    Returns:
      image [B, tokens, patch * patch * 3] uint8, patches in reading order, then padding; image_grid [B, 2] int32, rows
      and columns. A picture without pixels has no patches.
    """
    values = np.zeros((len(pictures), tokens, patch * patch * 3), np.uint8)
    grid = np.zeros((len(pictures), 2), np.int32)
    for b, picture in enumerate(pictures):
        rows, columns = grid[b] = np.array(picture.shape[:2]) // patch
        patches = picture.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 1, 3, 4)
        values[b, : rows * columns] = patches.reshape(rows * columns, patch * patch * 3)
    return {"image": values, "image_grid": grid}


def joined(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The inverse of `cut` for one picture: [tokens, patch * patch * 3], [2] -> [rows * patch, columns * patch, 3]."""
    rows, columns = grid.tolist()
    patch = math.isqrt(values.shape[-1] // 3)
    patches = values[: rows * columns].reshape(rows, columns, patch, patch, 3)
    return patches.transpose(0, 2, 1, 3, 4).reshape(rows * patch, columns * patch, 3)
