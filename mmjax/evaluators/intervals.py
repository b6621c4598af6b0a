"""Bootstrap intervals of ratios of sums (Efron and Tibshirani, 1993, ch. 13: percentile interval), and paired tests."""

from __future__ import annotations

import numpy as np

RESAMPLES, GROUPS, FLIPS = 1000, 10_000, 10_000
_CELLS = 4_000_000  # drawn numbers held at a time: 32 MB


def by_cluster(columns: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
    """[N, k] -> [C, k], the sums over rows of equal `clusters` [N], in the clusters' order; None leaves all rows."""
    if clusters is None:
        return columns
    names, index = np.unique(clusters, return_inverse=True)
    return np.stack([np.bincount(index, column, len(names)) for column in columns.T], axis=1)


def resample(columns: np.ndarray, *, seed: int = 0, times: int = RESAMPLES) -> np.ndarray:
    """Column sums of `times` draws of N rows with replacement. [N, k] -> [times, k].

    Equal rows are drawn together, by how often: the same distribution, and for right or wrong answers a handful of
    binomial numbers in place of N indices. More than GROUPS different rows are first added up in so many groups at
    random, which leaves the variance as it is.
    """
    columns, random = np.asarray(columns, np.float64), np.random.default_rng(seed)
    kinds, counts = np.unique(columns, axis=0, return_counts=True)
    if len(kinds) > GROUPS:
        kinds = by_cluster(columns, random.permutation(len(columns)) % GROUPS)
        counts = np.ones(GROUPS)
    count = int(counts.sum())
    rows = max(1, _CELLS // len(kinds))
    parts = [min(rows, times - start) for start in range(0, times, rows)]
    return np.concatenate([random.multinomial(count, counts / count, part) @ kinds for part in parts])


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
      clusters: [N], equal for rows that are drawn together; None is each row by itself.
      level: how much of the resampled values the interval holds.
    """
    scores = np.asarray(scores, np.float64)
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    sums, totals = resample(by_cluster(np.stack([scores, weights], axis=1), clusters), seed=seed).T
    return quantiles(sums / totals, level)


def quantiles(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of resampled values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    """Two-sided exact p-value that two ways are right equally often, from rows [N] of 0 and 1 (McNemar, 1947).

    Of the rows on which they differ, each is as likely to be right: a binomial test at one half.
    """
    from scipy.stats import binomtest

    gained, lost = int(np.sum(after > before)), int(np.sum(after < before))
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def swap_test(difference: np.ndarray, *, seed: int = 0, times: int = FLIPS) -> float:
    """Two-sided p-value that the sum of paired differences [N] is chance: signs drawn anew (Fisher, 1935).

    If neither way is better, before and after of a row could as well be swapped. The p-value counts the observed sum
    among the draws, so it is never below 1 / (times + 1).
    """
    difference = np.asarray(difference, np.float64)
    difference = difference[difference != 0]
    if not len(difference):
        return 1.0
    random, rows = np.random.default_rng(seed), max(1, _CELLS // len(difference))
    observed, extreme = abs(difference.sum()), 0
    for start in range(0, times, rows):
        kept = random.integers(0, 2, (min(rows, times - start), len(difference)), np.int8)
        sums = 2 * (kept @ difference) - difference.sum()
        extreme += int(np.sum(np.abs(sums) >= observed * (1 - 1e-12)))
    return (extreme + 1) / (times + 1)
