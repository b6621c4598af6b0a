"""Accuracy of one class a picture, and which class is taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.errors import ConfigError
from mmjax.evaluators.figure import Figure, Record, Tally, annotations_of, valid_rows


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
        chance = f"chance, 1 of {len(self.labels)}"
        self._tally = Tally(chance if self.majority is None else f"always '{self.majority}'")
        self._pairs: Counter[tuple[str, str]] = Counter()  # (truth, predicted)

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        for row, record in valid_rows(batch, annotations):
            label = int(batch["label"][row])
            truth = self.labels[label] if label >= 0 else record.get("label")
            if truth is not None:
                said = self.labels[int(outputs["class"][row])]
                baseline = 1 / len(self.labels) if self.majority is None else truth == self.majority
                self._tally.add(record, said == truth, baseline)
                self._pairs[truth, said] += 1

    def figures(self) -> list[Figure]:
        if not self._pairs:
            raise ConfigError(f"{self.task}: no picture of the test set has a label. Expected a 'label' field.")
        return [self._tally.figure(f"{self.task}/accuracy")]

    def confusion(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """[C, C] int64 counts, truth down and prediction across, and the C classes.

        Classes of the model that occur on neither side are left out; labels of the test set that the model cannot say
        come last.
        """
        seen = {name for pair in self._pairs for name in pair}
        names = [name for name in self.labels if name in seen] + sorted(seen - set(self.labels))
        place = {name: k for k, name in enumerate(names)}
        counts = np.zeros((len(names), len(names)), np.int64)
        for (truth, said), count in self._pairs.items():
            counts[place[truth], place[said]] = count
        return counts, tuple(names)

    def pages(self) -> dict[str, Any]:
        """`classes.txt`: precision, recall and F1 of each class (scikit-learn); `confusion.png`."""
        from sklearn.metrics import classification_report

        from mmjax import report

        counts, names = self.confusion()
        truth, said = np.repeat(np.nonzero(counts), counts[counts > 0], axis=1)
        text = classification_report(
            truth,
            said,
            labels=np.arange(len(names)),
            target_names=names,
            zero_division=0,
            digits=3,
        )
        return {"classes.txt": text, "confusion.png": report.draw_confusion(counts, names)}
