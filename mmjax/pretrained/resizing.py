"""Tables of a folder for a model of another picture size or vocabulary: positions resized, rows of new tokens added."""

from __future__ import annotations

import numpy as np

CUBIC = -0.75  # the kernel's free parameter in PyTorch (PIL and TensorFlow have -0.5)


def resize_positions(table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Learned positions [h, w, D] for another grid, float32: bicubic without antialiasing, as Hugging Face resizes them
    (`torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`). The class token's is not among them.
    """
    table = np.asarray(table, np.float32)
    down, across = (cubic_weights(old, new) for old, new in zip(table.shape[:2], grid, strict=True))
    rows = np.einsum("ij,jwd->iwd", down, table, optimize=True)
    return np.einsum("ij,hjd->hid", across, rows, optimize=True)


def cubic_weights(old: int, new: int) -> np.ndarray:
    """[new, old] float32: what each new place along one side reads of the old ones (Keys, 1981); places beyond the edge
    are the edge's.
    """
    at = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(at).astype(int) - 1
    weights = np.zeros((new, old))
    for tap in range(4):
        source = np.clip(first + tap, 0, old - 1)
        np.add.at(weights, (np.arange(new), source), _kernel(at - (first + tap)))
    return weights.astype(np.float32)


def _kernel(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution of distances x in [-2, 2]."""
    x, a = np.abs(x), CUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, far)


def add_rows(table: np.ndarray, axis: int, size: int) -> np.ndarray:
    """A table with a row a token, `size` long along `axis`: the new rows are the mean of the old ones, so that no new
    token is likelier at first than the average one (Hewitt, 2021).
    """
    new = size - table.shape[axis]
    mean = table.mean(axis, dtype=np.float32, keepdims=True).astype(table.dtype)
    return np.concatenate([table, np.repeat(mean, new, axis)], axis)
