"""What an evaluator is, and what it gives: figures with a baseline beside each, and what each row gave to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from mmjax.evaluators.intervals import by_cluster, quantiles, resample

Record = dict[str, Any]


class Scores(NamedTuple):
    """What each row gave to a figure, value = sum(sums) / sum(weights): what a paired comparison needs of it.

    Attributes:
      ids: [N] of the rows, unique.
      units: [N]; rows of equal units are drawn together (a picture, or what the record's `key` says).
      sums, weights: [N] float64. Of 4 questions about a picture 3 right: 3 and 4.
      link: the value is the ratio (""), or its "exp" (perplexity) or "root" (root of the mean squared error).
    """

    ids: np.ndarray
    units: np.ndarray
    sums: np.ndarray
    weights: np.ndarray
    link: str = ""

    def value(self, sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The figure's value for (resampled) totals."""
        return {"": np.asarray, "exp": np.exp, "root": np.sqrt}[self.link](sums / weights)


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
      gain: 95 % paired bootstrap interval of value - baseline, over pictures; None where it cannot be had.
      scores: what each row gave; None where the figure is no ratio of sums over rows.
    """

    name: str
    value: float
    n: int
    baseline: float | None = None
    baseline_name: str = ""
    interval: tuple[float, float] | None = None
    percent: bool = True
    gain: tuple[float, float] | None = None
    scores: Scores | None = field(default=None, compare=False, repr=False)

    def cells(self) -> tuple[str, str, str, str, str, str]:
        """Name, value, interval, baseline, value - baseline, and n as text."""
        unit = " %" if self.percent else ""
        baseline = "" if self.baseline is None else f"{self.text(self.baseline)}{unit} ({self.baseline_name})"
        gain = "" if self.baseline is None else self.signed(self.value - self.baseline)
        if self.gain:
            gain += f" ({self.signed(self.gain[0])} to {self.signed(self.gain[1])})"
        return self.name, self.text(self.value) + unit, self.span(self.interval), baseline, gain, f"{self.n:,}"

    def row(self) -> str:
        """One line: `vqa/accuracy 87.3 % [86.1 to 88.4], question only 45.0 %, n = 1,000`."""
        name, value, interval, _, _, n = self.cells()
        unit = " %" if self.percent else ""
        baseline = "" if self.baseline is None else f", {self.baseline_name} {self.text(self.baseline)}{unit}"
        return f"{name} {value}" + (f" [{interval}]" if interval else "") + f"{baseline}, n = {n}"

    def text(self, value: float) -> str:
        """A value of this figure's kind, without its unit."""
        return f"{100 * value:.1f}" if self.percent else f"{value:.4g}"

    def signed(self, value: float) -> str:
        """A difference of such values."""
        return f"{100 * value:+.1f}" if self.percent else f"{value:+.4g}"

    def span(self, interval: tuple[float, float] | None) -> str:
        """ "86.1 to 88.4"."""
        return f"{self.text(interval[0])} to {self.text(interval[1])}" if interval else ""


class Tally:
    """Adds up, row by row, what a figure is the ratio of: the model's scores beside those of its baselines.

    The figure stands beside the better of the baselines. Intervals draw whole units: `key` of the record, else its id.
    """

    def __init__(self, *baselines: str):
        """baselines: their names, in the order in which `add` gets their scores."""
        self._names = baselines
        self._ids: list[str] = []
        self._units: list[str] = []
        self._rows: list[tuple[float, ...]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, record: Record, score: float, *baselines: float, weight: float = 1.0) -> None:
        """One more part of the record's row: of a right answer 1, of the weight 1."""
        name = str(record.get("id", len(self._ids)))
        self._ids.append(name)
        self._units.append(str(record.get("key") or name))
        self._rows.append((weight, score, *baselines))

    def figure(self, name: str, *, percent: bool = True, link: str = "") -> Figure:
        """link: see `Scores`; with one, less is better."""
        columns = np.array(self._rows, np.float64)
        ids, first, row = np.unique(np.array(self._ids, object), return_index=True, return_inverse=True)
        units = np.array(self._units, object)
        weights, sums = by_cluster(columns[:, :2], row).T
        order = np.argsort(first)
        scores = Scores(ids[order], units[first][order], sums[order], weights[order], link)
        total, own, *others = columns.sum(axis=0)
        value = float(scores.value(own, total))
        drawn = resample(by_cluster(columns, units))
        resampled = scores.value(drawn[:, 1], drawn[:, 0])
        interval = quantiles(resampled)
        if not self._names:
            return Figure(name, value, int(round(total)), None, "", interval, percent, None, scores)
        best = int(np.argmin(others) if link else np.argmax(others))
        gain = quantiles(resampled - scores.value(drawn[:, 2 + best], drawn[:, 0]))
        baseline = float(scores.value(others[best], total))
        return Figure(name, value, int(round(total)), baseline, self._names[best], interval, percent, gain, scores)


class Evaluator(Protocol):
    """Judges the predictions of one pass over a test set.

    It may also have `pages() -> {"confusion.png": [H, W, 3] uint8, "classes.txt": text}`: more than figures can say, as
    files that are named for the set and the task.
    """

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        """outputs, batch: arrays [B, ...]; annotations: the B records without their pictures, with unique `id`."""

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

    def pages(self) -> dict[str, Any]:
        return {name: page for part in self._parts for name, page in pages(part).items()}


def pages(evaluator: Evaluator) -> dict[str, Any]:
    """The evaluator's pages, where it has any."""
    return evaluator.pages() if hasattr(evaluator, "pages") else {}


def as_json(figures: Sequence[Figure]) -> dict[str, dict[str, Any]]:
    """{"task/metric": {"value", "n", "baseline", "baseline_name", "interval", "gain", "percent", "link"}}.

    Shares stay between 0 and 1.
    """
    return {
        figure.name: {
            "value": float(figure.value),
            "n": int(figure.n),
            "baseline": None if figure.baseline is None else float(figure.baseline),
            "baseline_name": figure.baseline_name,
            "interval": None if figure.interval is None else [float(x) for x in figure.interval],
            "gain": None if figure.gain is None else [float(x) for x in figure.gain],
            "percent": figure.percent,
            "link": figure.scores.link if figure.scores else "",
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
