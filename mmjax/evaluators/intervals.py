"""Bootstrap intervals of ratios of sums (Efron and Tibshirani, 1993, ch. 13: percentile interval)."""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000
_CELLS = 4_000_000  # drawn indices held at a time: 32 MB


def bootstrap_interval(
    scores: np.ndarray,
    weights: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of sum(scores) / sum(weights), by drawing whole clusters with replacement, 1,000 times.

    Questions about one picture are right or wrong together; drawing them one by one would give too narrow an interval,
    so the cluster is the picture (Field and Welsh, 2007).

    Args:
      scores: [N].
      weights: [N]; None is all ones.
      clusters: [N] int, equal for rows that are drawn together; None is each row by itself.
      level: how much of the resampled values the interval holds.
    """
    scores = np.asarray(scores, np.float64)
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    if clusters is not None:
        _, index = np.unique(clusters, return_inverse=True)
        scores, weights = np.bincount(index, scores), np.bincount(index, weights)
    count, random = len(scores), np.random.default_rng(seed)
    rows, ratios = max(1, _CELLS // count), []
    for start in range(0, RESAMPLES, rows):
        drawn = random.integers(0, count, (min(rows, RESAMPLES - start), count))
        ratios.append(scores[drawn].sum(axis=1) / weights[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(ratios), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
