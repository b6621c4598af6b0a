"""What an evaluator is, and what it gives: figures with a baseline beside each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Record = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One number of a report.

    Attributes:
      name: `task/metric`.
      value: a share between 0 and 1 when `percent`.
      n: what was counted: questions, captions, pictures, pairs or tokens.
      baseline: what the named baseline reaches on the same rows; None where there is none.
      baseline_name: how the baseline answers.
      interval: 95 % bootstrap interval over pictures; None where it says nothing.
      percent: shown times 100.
    """

    name: str
    value: float
    n: int
    baseline: float | None = None
    baseline_name: str = ""
    interval: tuple[float, float] | None = None
    percent: bool = True

    def cells(self) -> tuple[str, str, str, str, str]:
        """Name, value, interval, baseline and n as text."""
        unit = " %" if self.percent else ""
        interval = f"{self._text(self.interval[0])} to {self._text(self.interval[1])}" if self.interval else ""
        baseline = "" if self.baseline is None else f"{self._text(self.baseline)}{unit} ({self.baseline_name})"
        return self.name, self._text(self.value) + unit, interval, baseline, f"{self.n:,}"

    def row(self) -> str:
        """One line: `vqa/accuracy 87.3 % [86.1 to 88.4], question only 45.0 %, n = 1,000`."""
        name, value, interval, _, n = self.cells()
        unit = " %" if self.percent else ""
        baseline = "" if self.baseline is None else f", {self.baseline_name} {self._text(self.baseline)}{unit}"
        return f"{name} {value}" + (f" [{interval}]" if interval else "") + f"{baseline}, n = {n}"

    def _text(self, value: float) -> str:
        return f"{100 * value:.1f}" if self.percent else f"{value:.4g}"


class Evaluator(Protocol):
    """Judges the predictions of one pass over a test set."""

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        """outputs, batch: arrays [B, ...]; annotations: the B records without their pictures."""

    def figures(self) -> list[Figure]:
        """The figures over all rows seen."""


class Both:
    """Two evaluators over the same predictions: the figures of the second after those of the first."""

    def __init__(self, first: Evaluator, second: Evaluator):
        self._parts = first, second

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        for part in self._parts:
            part.update(outputs, batch, annotations)

    def figures(self) -> list[Figure]:
        return [figure for part in self._parts for figure in part.figures()]


def as_json(figures: Sequence[Figure]) -> dict[str, dict[str, Any]]:
    """{"task/metric": {"value", "n", "baseline", "baseline_name", "interval"}}; shares stay between 0 and 1."""
    return {
        figure.name: {
            "value": float(figure.value),
            "n": int(figure.n),
            "baseline": None if figure.baseline is None else float(figure.baseline),
            "baseline_name": figure.baseline_name,
            "interval": None if figure.interval is None else [float(x) for x in figure.interval],
        }
        for figure in figures
    }


def annotations_of(source: Any) -> Iterator[Record]:
    """The records of a Source (or of any iterable of records), without reading a picture."""
    if hasattr(source, "annotations"):
        return (source.annotations(i) for i in range(len(source)))
    return iter(source)


def valid_rows(batch: dict[str, np.ndarray], annotations: Sequence[Record]) -> Iterable[tuple[int, Record]]:
    """(row, record) of the batch's real rows."""
    return [(int(row), annotations[row]) for row in np.flatnonzero(batch["valid"])]
