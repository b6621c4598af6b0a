"""Several labels a picture: how well each class ranks the pictures that have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.errors import ConfigError
from mmjax.evaluators.figure import Figure, Record
from mmjax.table import columns

RESAMPLES = 200


def average_precision(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """sum_k (recall_k - recall_{k-1}) precision_k over the distinct scores, the highest first: no interpolation.

    Args:
      scores: [N]. truth: [N] bool.
      weights: [R, N], how often each row counts, in R resamplings; None counts each once.

    Returns:
      [R] float64 (R = 1 without weights); NaN where no counted row is true.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # equal scores come in together
    weights = np.ones((1, len(scores))) if weights is None else np.asarray(weights, np.float64)
    weights = weights[:, order]
    hits = np.cumsum(weights * truth[order], axis=1)[:, ends]
    seen = np.cumsum(weights, axis=1)[:, ends]
    precision = hits / np.maximum(seen, 1)  # rows drawn not at all come first: nothing seen, nothing hit
    with np.errstate(invalid="ignore"):
        return (np.diff(hits, axis=1, prepend=0) * precision).sum(axis=1) / hits[:, -1]


class MeanAveragePrecision:
    """`task/mean_average_precision`: over the classes that at least one picture of the set has.

    Baseline: the share of pictures that have the class, which is what a random order tends to. The interval draws whole
    pictures. Reads outputs `probability` [B, C] and batch `labels`, `labels_valid`; keeps both, [N, C], for a ranking
    needs them all. A label of the test set that no training picture has is no class.
    """

    def __init__(self, task: str, *, labels: Sequence[str]):
        """labels: class names in the order of the head."""
        self.task, self.labels = task, tuple(labels)
        self._scores: list[np.ndarray] = []
        self._truth: list[np.ndarray] = []

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        rows = np.asarray(batch["valid"] & batch["labels_valid"], bool)
        self._scores.append(np.asarray(outputs["probability"], np.float32)[rows])
        self._truth.append(np.asarray(batch["labels"], bool)[rows])

    def pages(self) -> dict[str, Any]:
        """`classes.txt`: average precision of each class; precision, recall and F1 at 0.5 (scikit-learn)."""
        from sklearn.metrics import classification_report

        scores, truth = np.concatenate(self._scores), np.concatenate(self._truth)
        seen = np.flatnonzero(truth.any(axis=0))
        ranked = [(self.labels[c], average_precision(scores[:, c], truth[:, c])[0], truth[:, c].sum()) for c in seen]
        rows = [(name, f"{precision:.3f}", f"{count:,}") for name, precision, count in ranked]
        # A column that is never true: of one column alone scikit-learn would report the class "false".
        said = classification_report(
            np.pad(truth[:, seen], ((0, 0), (0, 1))),
            np.pad(scores[:, seen] >= 0.5, ((0, 0), (0, 1))),
            labels=np.arange(len(seen)),
            target_names=[self.labels[c] for c in seen],
            zero_division=0,
            digits=3,
        )
        return {"classes.txt": f"{columns([('class', 'average precision', 'pictures'), *rows])}\n\n{said}"}

    def figures(self) -> list[Figure]:
        truth = np.concatenate(self._truth) if self._truth else np.zeros((0, len(self.labels)), bool)
        if not truth.any():
            raise ConfigError(f"{self.task}: no picture of the test set has labels. Expected a 'labels' field.")
        scores, seen = np.concatenate(self._scores), np.flatnonzero(truth.any(axis=0))
        count, random = len(truth), np.random.default_rng(0)
        drawn = random.multinomial(count, np.full(count, 1 / count), RESAMPLES)
        value = np.mean([average_precision(scores[:, c], truth[:, c])[0] for c in seen])
        resampled = np.array([average_precision(scores[:, c], truth[:, c], drawn) for c in seen])
        there = np.isfinite(resampled)  # a class may be missing from a resampling
        means = np.where(there, resampled, 0).sum(axis=0)[there.any(axis=0)] / there.sum(axis=0)[there.any(axis=0)]
        low, high = np.quantile(means, (0.025, 0.975))
        return [
            Figure(
                f"{self.task}/mean_average_precision",
                float(value),
                count,
                float(truth[:, seen].mean()),
                f"label frequency, {len(seen)} classes",
                (float(low), float(high)),
            )
        ]
