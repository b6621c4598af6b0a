"""Several rows in one sequence: which ones, chosen once from their lengths, and their arrays.

    bos a dog eos | bos two red kites eos | bos ... pad        segments 1 1 1 1 2 2 2 2 2 3 ... 0

Pictures are not laid into one sequence: each is encoded by itself, and the text of segment s reads picture s. In the
model segments keep rows apart (`models/block.py: Tokens`), and positions start anew in each.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmjax.data import order
from mmjax.data.lengths import Lengths
from mmjax.errors import ConfigError

_EPOCH = -1  # of the shuffle before the packing: neighbours in the source are often alike


def pack(sizes: np.ndarray, budget: int, rows: int, window: int = 1024) -> list[np.ndarray]:
    """Which rows lie together in one sequence, a pure function of its arguments.

    Longest first, each row goes into the emptiest of as many sequences as there must be, or into the first that has
    room (Johnson, 1973), whichever takes fewer sequences.

    The former puts long and short rows together, which fills tokens and places alike; first fit is the tighter one
    where tokens alone count.

    Args:
      sizes: [n] int, tokens of each row, none above `budget`, the tokens of a sequence.
      rows: the most rows of a sequence.
      window: rows that are packed at a time: how far apart the rows of one sequence may have been.

    Returns:
      Sequences, each the numbers of its rows in ascending order. Every row is in exactly one.
    """
    sequences = []
    for start in range(0, len(sizes), window):
        own = sizes[start : start + window]
        least = max(-(-int(own.sum()) // budget), -(-len(own) // rows))
        emptiest, first = (_fitted(own, budget, rows, count) for count in (least, 0))
        best = emptiest if len(emptiest) <= len(first) else first
        sequences += [start + np.sort(held) for held in best]
    return sequences


def _fitted(sizes: np.ndarray, budget: int, rows: int, count: int) -> list[list[int]]:
    """Rows, longest first, each into the emptiest sequence, beginning with `count` of them; with 0 into the first that
    has room. A row that fits into none begins another.
    """
    room, places = np.full(len(sizes) + 1, budget), np.full(len(sizes) + 1, rows)
    held: list[list[int]] = [[] for _ in range(count)]
    for row in np.argsort(-sizes, kind="stable").tolist():
        fits = (room[: len(held)] >= sizes[row]) & (places[: len(held)] > 0)
        if fits.any():
            at = int((np.where(fits, room[: len(held)], -1) if count else fits).argmax())
        else:
            at = len(held)
            held.append([])
        held[at].append(row)
        room[at] -= sizes[row]
        places[at] -= 1
    return [numbers for numbers in held if numbers]


class Packing:
    """A `Layout` (`layouts.py`) whose sequences take the place of rows: an epoch shows each once, in a drawn order.

    Attributes:
      rows: [sequences, S] int64, the rows of each, -1 where it has fewer.
      tokens: L, of a sequence.
    """

    shapes = 1

    def __init__(self, feature: str, lengths: Lengths, tokens: int, rows: int, pad: int, seed: int, where: str):
        longest = int(lengths.longest.max())
        if longest > tokens:
            raise ConfigError(
                f"{where}.pack_tokens: found {tokens}, but a row has {longest} (row {lengths.longest.argmax()}). "
                f"Expected {longest} or more, or texts that are cut at fewer."
            )
        self.feature, self.lengths, self.tokens, self._pad = feature, lengths, tokens, pad
        count = len(lengths.longest)
        shuffled = order.permute(np.arange(count), count, seed, np.int64(_EPOCH))
        together = pack(lengths.longest[shuffled], tokens, rows)
        self.rows = np.full((len(together), rows), -1, np.int64)
        for sequence, numbers in zip(self.rows, together, strict=True):
            sequence[: len(numbers)] = shuffled[numbers]
        self.rows_a_place = count / len(self.rows)

    def rows_at(self, step: int, batch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """[batch, S] rows of the sequences of a step, -1 where there are fewer, and their epochs."""
        sequences, epochs = order.rows_at(step, batch, len(self.rows), seed)
        return self.rows[sequences], np.repeat(epochs[:, None], self.rows.shape[1], 1)

    def lay(self, batch: Mapping[str, np.ndarray], rows: np.ndarray, here: np.ndarray) -> dict[str, np.ndarray]:
        """Rows apart -> the sequences `here` of `rows` (shapes: the Batch table of mmjax/README.md).

        A row that is not valid leaves its place empty: no text, and `valid` is False.
        """
        places = rows[here] >= 0
        sequence, place = np.nonzero(places)
        mask = batch[f"{self.feature}_mask"].reshape(len(place), -1) & batch["valid"][:, None]
        if f"{self.feature}_valid" in batch:
            mask &= batch[f"{self.feature}_valid"]
        sizes = mask.sum(1)
        begins = np.cumsum(sizes) - sizes
        row = np.repeat(np.arange(len(sizes)), sizes)
        starts = begins - begins[np.searchsorted(sequence, sequence)]
        at = sequence[row], starts[row] + np.arange(len(row)) - begins[row]
        shape = (len(places), self.tokens)
        made = {f"{self.feature}_segment": np.zeros(shape, np.int32)}
        made[f"{self.feature}_segment"][at] = place[row] + 1
        for name, array in batch.items():
            if name == f"{self.feature}_mask":
                continue
            if name in (self.feature, f"{self.feature}_supervised"):
                made[name] = np.full(shape, self._pad if name == self.feature else 0, array.dtype)
                made[name][at] = array.reshape(mask.shape)[mask]
                continue
            if name.startswith("text_"):  # of the one text of a row
                array = array[:, 0]
            made[name] = np.zeros((*places.shape, *array.shape[1:]), array.dtype)
            made[name][sequence, place] = array
        return made

    def describe(self, batch: int, seed: int) -> str:
        """What share of the tokens, and of the places for pictures, is padding."""
        count, (sequences, places) = len(self.lengths.longest), self.rows.shape
        real = float(self.lengths.mean.sum())
        return (
            f"{self.feature} packed: {count:,} rows in {sequences:,} sequences of {self.tokens} tokens and up to "
            f"{places} rows: padding {1 - real / (sequences * self.tokens):.0%}, "
            f"{1 - real / (count * self.lengths.most):.0%} without; {1 - count / (sequences * places):.0%} of the "
            "places for rows are empty"
        )
