"""How far predicted numbers are off."""

from __future__ import annotations

import numpy as np

from mmjax.data.survey import number
from mmjax.errors import ConfigError
from mmjax.evaluators.figure import Figure, Record, valid_rows
from mmjax.evaluators.intervals import bootstrap_interval


class Errors:
    """`task/rmse` (root of the mean squared error) and `task/mae` (mean absolute error), in the unit of the labels.

    Baseline: always the mean of the training values. Reads outputs `value` [B] and the records' labels; rows whose
    label is no number are left out.
    """

    def __init__(self, task: str, *, mean: float):
        self.task, self.mean = task, mean
        self._predicted: list[float] = []
        self._truth: list[float] = []

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        for row, record in valid_rows(batch, annotations):
            truth = number(record.get("label") or "")
            if truth is not None:
                self._predicted.append(float(outputs["value"][row]))
                self._truth.append(truth)

    def figures(self) -> list[Figure]:
        if not self._truth:
            raise ConfigError(f"{self.task}: no picture of the test set has a number as its label. Expected some.")
        truth = np.array(self._truth)
        off, baseline = np.array(self._predicted) - truth, self.mean - truth
        low, high = np.sqrt(bootstrap_interval(off**2))
        rest = len(truth), f"the training mean, {self.mean:.4g}"
        rmse, least = (float(np.sqrt(np.mean(x**2))) for x in (off, baseline))
        mae, middle = (float(np.mean(np.abs(x))) for x in (off, baseline))
        return [
            Figure(f"{self.task}/rmse", rmse, rest[0], least, rest[1], (float(low), float(high)), percent=False),
            Figure(f"{self.task}/mae", mae, rest[0], middle, rest[1], bootstrap_interval(np.abs(off)), percent=False),
        ]
