"""Are true pairs told from wrong ones?"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmjax.evaluators.figure import Figure
from mmjax.evaluators.intervals import bootstrap_interval


class PairAccuracy:
    """Accuracy over (picture, caption) pairs: {match, match_truth, match_valid} [B, P].

    Baseline: the more frequent truth.
    """

    def __init__(self, task: str):
        self.task = task
        self._right: list[np.ndarray] = []
        self._truth: list[np.ndarray] = []

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Any]) -> None:
        for b in np.flatnonzero(batch["valid"]):
            seen = outputs["match_valid"][b]
            self._right.append((outputs["match"][b] == outputs["match_truth"][b])[seen])
            self._truth.append(outputs["match_truth"][b][seen])

    def figures(self) -> list[Figure]:
        sums = np.array([r.sum() for r in self._right], float)
        counts = np.array([len(r) for r in self._right], float)
        true_share = np.concatenate(self._truth).mean() if self._truth else 0.0
        return [
            Figure(
                f"{self.task}/accuracy",
                sums.sum() / max(counts.sum(), 1),
                int(counts.sum()),
                max(true_share, 1 - true_share),
                "majority",
                bootstrap_interval(sums, counts),
            )
        ]
