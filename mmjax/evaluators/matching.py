"""Are true pairs told from wrong ones?"""

from __future__ import annotations

import numpy as np

from mmjax.errors import ConfigError
from mmjax.evaluators.figure import Figure, Record, Tally, valid_rows


class PairAccuracy:
    """Accuracy over (picture, caption) pairs: {match, match_truth, match_valid} [B, P].

    Baseline: the more frequent truth. A row's pairs are drawn together.
    """

    def __init__(self, task: str):
        self.task = task
        self._tally = Tally("always 'match'", "always 'no match'")

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        for row, record in valid_rows(batch, annotations):
            seen = outputs["match_valid"][row]
            truth = outputs["match_truth"][row][seen]
            right, count = np.sum(outputs["match"][row][seen] == truth), int(seen.sum())
            if count:
                self._tally.add(record, right, truth.sum(), count - truth.sum(), weight=count)

    def figures(self) -> list[Figure]:
        if not len(self._tally):
            raise ConfigError(f"{self.task}: no pair of the test set can be judged. Expected a 'texts' field.")
        return [self._tally.figure(f"{self.task}/accuracy")]
