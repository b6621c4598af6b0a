"""How far predicted numbers are off."""

from __future__ import annotations

import numpy as np

from mmjax.data.survey import number
from mmjax.errors import ConfigError
from mmjax.evaluators.figure import Figure, Record, Tally, valid_rows


class Errors:
    """`task/rmse` (root of the mean squared error) and `task/mae` (mean absolute error), in the unit of the labels.

    Baseline: always the mean of the training values. Reads outputs `value` [B] and the records' labels; rows whose
    label is no number are left out.
    """

    def __init__(self, task: str, *, mean: float):
        self.task, self.mean = task, mean
        baseline = f"the training mean, {mean:.4g}"
        self._squares, self._sizes = Tally(baseline), Tally(baseline)

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        for row, record in valid_rows(batch, annotations):
            truth = number(record.get("label") or "")
            if truth is not None:
                off, baseline = float(outputs["value"][row]) - truth, self.mean - truth
                self._squares.add(record, off**2, baseline**2)
                self._sizes.add(record, abs(off), abs(baseline))

    def figures(self) -> list[Figure]:
        if not len(self._sizes):
            raise ConfigError(f"{self.task}: no picture of the test set has a number as its label. Expected some.")
        return [
            self._squares.figure(f"{self.task}/rmse", percent=False, link="root"),
            self._sizes.figure(f"{self.task}/mae", percent=False),
        ]
