"""Captions: how near is the written sentence to those of people?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from textwrap import shorten
from typing import Any

import numpy as np

from mmjax.errors import ConfigError
from mmjax.evaluators.caption_scores import bleu, bleu_counts, cider_d, meteor, meteor_counts, rouge_l
from mmjax.evaluators.caption_words import words
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
    """`task/exact`, `cider`, `bleu_1` to `bleu_4`, `rouge_l`, `meteor_exact`; `all_attributes` when there is a judge.

    Exact: the caption equals one of the picture's captions (see `normalise`). CIDEr-D, BLEU, ROUGE-L: the values of the
    COCO caption evaluation (`caption_scores`). `meteor_exact` is METEOR without stems, synonyms and paraphrases, and
    is below METEOR. All attributes: `judge(caption, record)`, for sets that know what is in their pictures.

    Reads outputs `caption` [B] of str; keeps the words. The baseline says the most frequent training caption to every
    picture. BLEU and METEOR are of the whole set, and have no interval.
    """

    def __init__(self, task: str, *, train: Any = None, judge: Judge | None = None):
        """train: a Source, a fitted caption, or None (no baseline)."""
        self.task, self.judge = task, judge
        self.frequent = train if train is None or isinstance(train, str) else fit_baseline(train)
        self._names = () if self.frequent is None else (f"always '{shorten(self.frequent, 32)}'",)
        self._hits = {metric: Tally(*self._names) for metric in ("exact", "all_attributes")[: 2 if judge else 1]}
        self._records: list[Record] = []  # ids and keys of the captioned rows; their words:
        self._said: list[list[str]] = []
        self._references: list[list[list[str]]] = []

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        for row, record in valid_rows(batch, annotations):
            said = str(outputs["caption"][row])
            if record.get("texts"):
                self._hits["exact"].add(record, is_exact(said, record), *self._baseline(is_exact, record))
                self._records.append({name: record[name] for name in ("id", "key") if name in record})
                self._said.append(words(said))
                self._references.append([words(text) for text in record["texts"]])
            if self.judge:
                hits = self.judge(said, record), *self._baseline(self.judge, record)
                self._hits["all_attributes"].add(record, *hits)

    def figures(self) -> list[Figure]:
        for tally in self._hits.values():
            if not len(tally):
                raise ConfigError(f"{self.task}: no picture of the test set has captions. Expected a 'texts' field.")
        figures = [tally.figure(f"{self.task}/{metric}") for metric, tally in self._hits.items()]
        said = [self._said]
        if self.frequent is not None:
            said.append([words(self.frequent)] * len(self._said))
        of_each, of_set = zip(*(_scores(captions, self._references) for captions in said), strict=True)
        for metric in of_each[0]:
            tally = Tally(*self._names)
            for record, *scores in zip(self._records, *(each[metric] for each in of_each), strict=True):
                tally.add(record, *scores)
            figures.append(tally.figure(f"{self.task}/{metric}", percent=metric != "cider"))
        for metric, value in of_set[0].items():
            versus = (of_set[1][metric], *self._names) if self._names else ()
            figures.append(Figure(f"{self.task}/{metric}", value, len(self._said), *versus))
        return figures

    def _baseline(self, judge: Judge, record: Record) -> tuple[float, ...]:
        return () if self.frequent is None else (judge(self.frequent, record),)


def _scores(said: list[list[str]], references: list[list[list[str]]]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """{metric: of each caption}, where the set's is the mean; {metric: of the set}."""
    pairs = list(zip(said, references, strict=True))
    each = {"cider": cider_d(said, references), "rouge_l": np.array([rouge_l(*pair) for pair in pairs])}
    counts = np.sum([bleu_counts(*pair) for pair in pairs], 0)
    whole = {f"bleu_{n}": float(value) for n, value in enumerate(bleu(counts), 1)}
    whole["meteor_exact"] = float(meteor(np.sum([meteor_counts(*pair) for pair in pairs], 0)))
    return each, whole


def is_exact(caption: str, record: Record) -> bool:
    """Whether it is one of the record's captions."""
    return normalise(caption) in {normalise(text) for text in record["texts"]}
