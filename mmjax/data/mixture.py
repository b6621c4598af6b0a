"""Several sources as one: each gives its share of the rows, exactly, at every step and after any resume."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.data.order import permute
from mmjax.data.sources import Record, Source
from mmjax.errors import ConfigError

BLOCK = 1000  # positions within which the shares are exact to one row


class Mixture:
    """The rows of its sources one after the other, as a source; in training they come by weight.

    Of every BLOCK positions in a row, source i takes `quotas[i]`, spread by a keyed permutation, and goes through its
    own rows in an order of its own: an epoch of a source ends when its rows have been seen, whatever the others do.

    Attributes:
      sources: by name.
      quotas: [sources] rows of each in BLOCK.
      firsts: [sources + 1] number of the first row of each.
    """

    def __init__(self, sources: Mapping[str, Source], weights: Mapping[str, float], where: str):
        """weights: relative shares, 0 in all of them for the numbers of rows."""
        self.sources = dict(sources)
        self.name = " + ".join(source.name for source in sources.values())
        sizes = [len(source) for source in sources.values()]
        self.firsts = np.r_[0, np.cumsum(sizes)].astype(np.int64)
        given = [float(weights[name]) for name in sources]
        if any(given) and not all(given):
            missing = next(name for name in sources if not weights[name])
            raise ConfigError(f"{where}.{missing}.weight: missing, but another source of the stream has one.")
        self.quotas = _quotas(np.array(given if any(given) else sizes, np.float64))
        for name, quota in zip(sources, self.quotas, strict=True):
            if not quota:
                raise ConfigError(
                    f"{where}.{name}.weight: below 1 in {BLOCK} of the stream's rows. Expected more, or no such source."
                )
        text = "\n".join(f"{n} {q} {s.fingerprint}" for (n, s), q in zip(sources.items(), self.quotas, strict=True))
        self.fingerprint = hashlib.sha256(f"mixture\n{text}".encode()).hexdigest()
        self.left_aside = {f"{n}: {w}": c for n, s in sources.items() for w, c in s.left_aside.items()}

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def __getitem__(self, i: int) -> Record:
        return self._at("__getitem__", i)

    def annotations(self, i: int) -> Record:
        return self._at("annotations", i)

    def _at(self, method: str, i: int) -> Record:
        k = int(np.searchsorted(self.firsts, i, side="right")) - 1
        source: Any = list(self.sources.values())[k]
        return getattr(source, method)(int(i - self.firsts[k]))

    def span(self, row: int) -> tuple[int, int]:
        """(first row, rows) of the source that a row is of."""
        k = int(np.searchsorted(self.firsts, row, side="right")) - 1
        return int(self.firsts[k]), int(self.firsts[k + 1] - self.firsts[k])

    def rows_at(self, step: int, batch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of training step `step` -> (rows [batch] int64, epochs of the row's source [batch] int64)."""
        of, count = self._slots(np.int64(step) * batch + np.arange(batch, dtype=np.int64), seed)
        rows, epochs = np.empty(batch, np.int64), np.empty(batch, np.int64)
        for k in range(len(self.sources)):
            here = of == k
            n = int(self.firsts[k + 1] - self.firsts[k])
            epochs[here] = count[here] // n
            rows[here] = self.firsts[k] + permute(count[here] % n, n, seed + 1 + k, epochs[here])
        return rows, epochs

    def _slots(self, position: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """positions [B] -> (which source, how many rows of it came before), each [B]."""
        of, count = np.empty_like(position), np.empty_like(position)
        for block in np.unique(position // BLOCK):
            slots = permute(np.arange(BLOCK), BLOCK, seed, block)
            sources = np.searchsorted(np.cumsum(self.quotas), slots, side="right")
            before = np.empty(BLOCK, np.int64)
            for k, quota in enumerate(self.quotas):
                before[sources == k] = block * quota + np.arange(quota)
            here = position // BLOCK == block
            of[here], count[here] = sources[position[here] % BLOCK], before[position[here] % BLOCK]
        return of, count

    def shares(self, examples: int, seed: int) -> dict[str, float]:
        """{source: its share of the first `examples` positions}: what training has really seen."""
        whole, rest = divmod(examples, BLOCK)
        of, _ = self._slots(whole * BLOCK + np.arange(rest, dtype=np.int64), seed)
        counts = whole * self.quotas + np.bincount(of, minlength=len(self.quotas))
        return {name: float(count / max(examples, 1)) for name, count in zip(self.sources, counts, strict=True)}


def _quotas(weights: np.ndarray) -> np.ndarray:
    """Whole numbers that sum to BLOCK, as near to the weights as can be (largest remainders)."""
    exact = weights / weights.sum() * BLOCK
    quotas = np.floor(exact).astype(np.int64)
    quotas[np.argsort(quotas - exact, kind="stable")[: BLOCK - quotas.sum()]] += 1
    return quotas
