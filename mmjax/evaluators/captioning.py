"""Captions: is the generated sentence right?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from textwrap import shorten
from typing import Any

import numpy as np

from mmjax.errors import ConfigError
from mmjax.evaluators.figure import Figure, Record, Tally, annotations_of, valid_rows

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
        names = () if self.frequent is None else (f"always '{shorten(self.frequent, 32)}'",)
        self._hits = {metric: Tally(*names) for metric in ("exact", "all_attributes")[: 2 if judge else 1]}
        self._nll = Tally()

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        for row, record in valid_rows(batch, annotations):
            if "nll" in outputs:
                nll, tokens = np.asarray(outputs["nll"][row], np.float64)
                self._nll.add(record, nll, weight=tokens)
            said = str(outputs["caption"][row])
            if record.get("texts"):
                self._hits["exact"].add(record, is_exact(said, record), *self._baseline(is_exact, record))
            if self.judge:
                hits = self.judge(said, record), *self._baseline(self.judge, record)
                self._hits["all_attributes"].add(record, *hits)

    def figures(self) -> list[Figure]:
        for tally in self._hits.values():
            if not len(tally):
                raise ConfigError(f"{self.task}: no picture of the test set has captions. Expected a 'texts' field.")
        figures = [tally.figure(f"{self.task}/{metric}") for metric, tally in self._hits.items()]
        if len(self._nll):
            figures.append(self._nll.figure(f"{self.task}/perplexity", percent=False, link="exp"))
        return figures

    def _baseline(self, judge: Judge, record: Record) -> tuple[float, ...]:
        return () if self.frequent is None else (judge(self.frequent, record),)


def is_exact(caption: str, record: Record) -> bool:
    """Whether it is one of the record's captions."""
    return normalise(caption) in {normalise(text) for text in record["texts"]}
