"""Accuracy of one class a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.errors import ConfigError
from mmjax.evaluators.figure import Figure, Record, annotations_of, valid_rows
from mmjax.evaluators.intervals import bootstrap_interval


def fit_baseline(train: Any) -> str:
    """The most frequent label of a training Source (or of its records)."""
    counts = Counter(record["label"] for record in annotations_of(train) if record.get("label") is not None)
    if not counts:
        raise ConfigError("data.train: no record has a label: there is no most frequent one. Expected a 'label' field.")
    return counts.most_common(1)[0][0]


class Accuracy:
    """`task/accuracy`: share of labelled pictures whose predicted class is their label.

    Reads outputs `class` [B] int and batch `label` [B] int. A picture whose label is none of `labels` counts as wrong;
    one without a label is left out.
    """

    def __init__(self, task: str, *, labels: Sequence[str], train: Any = None):
        """labels: class names in the order of the head; train: a Source, a fitted label, or None (then: chance)."""
        self.task, self.labels = task, tuple(labels)
        self.majority = train if train is None or isinstance(train, str) else fit_baseline(train)
        self._predicted: list[int] = []
        self._truth: list[str] = []

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        for row, record in valid_rows(batch, annotations):
            label = int(batch["label"][row])
            truth = self.labels[label] if label >= 0 else record.get("label")
            if truth is not None:
                self._predicted.append(int(outputs["class"][row]))
                self._truth.append(truth)

    def figures(self) -> list[Figure]:
        hits, truth = self._hits()
        if self.majority is None:
            baseline, name = 1 / len(self.labels), f"chance, 1 of {len(self.labels)}"
        else:
            baseline, name = float(np.mean(truth == self.majority)), f"always '{self.majority}'"
        return [
            Figure(f"{self.task}/accuracy", float(hits.mean()), len(hits), baseline, name, bootstrap_interval(hits))
        ]

    def per_class(self) -> list[tuple[str, int, float]]:
        """(label, how many pictures, accuracy on them), the most frequent first."""
        hits, truth = self._hits()
        return [(name, n, float(hits[truth == name].mean())) for name, n in Counter(truth.tolist()).most_common()]

    def _hits(self) -> tuple[np.ndarray, np.ndarray]:
        if not self._truth:
            raise ConfigError(f"{self.task}: no picture of the test set has a label. Expected a 'label' field.")
        predicted = np.array([self.labels[c] for c in self._predicted], dtype=object)
        truth = np.array(self._truth, dtype=object)
        return (predicted == truth).astype(float), truth
