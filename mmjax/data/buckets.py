"""Batches of texts of like length, cut to one of few lengths: a step compiles once for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mmjax.data.lengths import Lengths
from mmjax.data.order import permute
from mmjax.errors import ConfigError

# Steps whose rows are sorted by length together. Rows come at most so many steps before or after their place in the
# shuffled order; with one step there is nothing to gain, for nearly every batch has a long text.
WINDOW = 16

RowsAt = Callable[[int, int, int], tuple[np.ndarray, np.ndarray]]


class Buckets:
    """A `Layout` (`layouts.py`) in which a batch is of one bucket: the smallest that holds its longest text.

    Attributes:
      buckets: lengths, ascending; the last is the most that a text may have.
    """

    def __init__(self, feature: str, lengths: Lengths, buckets: Sequence[int], rows_at: RowsAt, where: str):
        """rows_at: (step, batch, seed) -> rows, epochs: the order without buckets."""
        if list(buckets) != sorted({*buckets}) or min(buckets) < 3 or max(buckets) >= lengths.most:
            raise ConfigError(
                f"{where}: found {tuple(buckets)}, expected ascending lengths from 3 to below {lengths.most}, the "
                "length that texts are cut to, which is the last one anyway."
            )
        self.feature, self.lengths, self._order = feature, lengths, rows_at
        self.buckets = np.array([*buckets, lengths.most])
        self.shapes, self.rows_a_place = len(self.buckets), 1.0
        self._window: tuple[tuple[int, int, int], np.ndarray, np.ndarray] | None = None

    def rows_at(self, step: int, batch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of WINDOW steps, sorted by length, cut into batches that come in a drawn order."""
        window, place = divmod(step, WINDOW)
        key = (window, batch, seed)
        kept = self._window  # threads may replace it
        if kept is None or kept[0] != key:
            rows, epochs = self._order(window, WINDOW * batch, seed)
            order = np.argsort(self.lengths.longest[rows], kind="stable")
            kept = self._window = (key, rows[order].reshape(WINDOW, batch), epochs[order].reshape(WINDOW, batch))
        drawn = permute(np.arange(WINDOW), WINDOW, seed, window)[place]
        return kept[1][drawn], kept[2][drawn]

    def lay(self, batch: Mapping[str, np.ndarray], rows: np.ndarray, here: np.ndarray) -> dict[str, np.ndarray]:
        """The texts cut to the bucket of all `rows` of the step, whichever of them this process has."""
        length = self.bucket(rows)
        names = (self.feature, f"{self.feature}_mask", f"{self.feature}_supervised")
        return {name: array[..., :length] if name in names else array for name, array in batch.items()}

    def bucket(self, rows: np.ndarray) -> int:
        """The length that a batch of these rows is cut to."""
        return int(self.buckets[np.searchsorted(self.buckets, self.lengths.longest[rows].max())])

    def describe(self, batch: int, seed: int) -> str:
        """What share of the tokens is padding, over a sample of the batches."""
        taken = [self.rows_at(step, batch, seed)[0] for step in range(4 * WINDOW)]
        real = sum(float(self.lengths.mean[rows].sum()) for rows in taken)
        cut, whole = sum(len(r) * self.bucket(r) for r in taken), len(taken) * batch * self.lengths.most
        return (
            f"{self.feature} in buckets of {', '.join(map(str, self.buckets))} tokens: padding {1 - real / cut:.0%}, "
            f"{1 - real / whole:.0%} without"
        )


def rounded(count: int, most: int) -> int:
    """`count` up to the next power of two, at most `most`."""
    return min(most, 1 << max(count - 1, 0).bit_length())
