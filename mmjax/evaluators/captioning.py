"""Captions: is the generated sentence right?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from textwrap import shorten
from typing import Any

import numpy as np

from mmjax.errors import ConfigError
from mmjax.evaluators.figure import Figure, Record, annotations_of, valid_rows
from mmjax.evaluators.intervals import bootstrap_interval

Judge = Callable[[str, Record], bool]


def normalise(caption: str) -> str:
    """Lower case, single spaces, no stop at the end."""
    return " ".join(caption.lower().split()).rstrip(" .")


def fit_baseline(train: Any) -> str:
    """The most frequent caption of a training Source (or of its records), as it is first written."""
    counts: Counter[str] = Counter()
    written: dict[str, str] = {}
    for record in annotations_of(train):
        for text in record.get("texts") or ():
            counts[normalise(text)] += 1
            written.setdefault(normalise(text), text)
    if not counts:
        raise ConfigError(
            "data.train: no record has captions: there is no most frequent one. Expected a 'texts' field."
        )
    return written[counts.most_common(1)[0][0]]


class Captioning:
    """`task/exact`, and `task/all_attributes` when there is a judge, and `task/perplexity` when outputs have `nll`.

    Exact: the caption equals one of the picture's captions (see `normalise`). All attributes: `judge(caption, record)`,
    for sets that know what is in their pictures. Reads outputs `caption` [B] of str, and `nll` [B, 2]: summed negative
    log-likelihood (nats) of the row's reference tokens, and how many they are. The baseline says the most frequent
    training caption to every picture.
    """

    def __init__(self, task: str, *, train: Any = None, judge: Judge | None = None):
        """train: a Source, a fitted caption, or None (no baseline)."""
        self.task, self.judge = task, judge
        self.frequent = train if train is None or isinstance(train, str) else fit_baseline(train)
        self._hits: dict[str, list[tuple[float, float]]] = {"exact": []} | ({"all_attributes": []} if judge else {})
        self._nll: list[np.ndarray] = []

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        for row, record in valid_rows(batch, annotations):
            if "nll" in outputs:
                self._nll.append(np.asarray(outputs["nll"][row], np.float64))
            said = str(outputs["caption"][row])
            if record.get("texts"):
                self._hits["exact"].append((_exact(said, record), self._baseline(_exact, record)))
            if self.judge:
                self._hits["all_attributes"].append((self.judge(said, record), self._baseline(self.judge, record)))

    def figures(self) -> list[Figure]:
        figures = []
        for metric, pairs in self._hits.items():
            if not pairs:
                raise ConfigError(f"{self.task}: no picture of the test set has captions. Expected a 'texts' field.")
            hits, baseline = np.array(pairs, float).T
            versus = (
                (None, "")
                if self.frequent is None
                else (float(baseline.mean()), f"always '{shorten(self.frequent, 32)}'")
            )
            figures.append(
                Figure(f"{self.task}/{metric}", float(hits.mean()), len(hits), *versus, bootstrap_interval(hits))
            )
        if self._nll:
            sums, counts = np.array(self._nll).T
            low, high = np.exp(bootstrap_interval(sums, counts))
            value = float(np.exp(sums.sum() / counts.sum()))
            interval = (float(low), float(high))
            figures.append(
                Figure(f"{self.task}/perplexity", value, int(counts.sum()), interval=interval, percent=False)
            )
        return figures

    def _baseline(self, judge: Judge, record: Record) -> float:
        return np.nan if self.frequent is None else judge(self.frequent, record)


def _exact(caption: str, record: Record) -> bool:
    return normalise(caption) in {normalise(text) for text in record["texts"]}
