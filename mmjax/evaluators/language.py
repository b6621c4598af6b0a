"""Texts that are given: how well each token is foreseen from the true ones before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mmjax.errors import ConfigError
from mmjax.evaluators.figure import Figure, Record, Tally, valid_rows

if TYPE_CHECKING:
    from mmjax.data.processor import Processor

Targets = Callable[[Mapping[str, Any]], tuple[Any, Any]]  # batch -> ids [B, ...] and which of them are foreseen
_FITTED, _AT_ONCE = 5_000, 512  # rows that the baseline is fitted on, and that are tokenised at a time


def token_counts(train: Any, processor: Processor, feature: str, targets: Targets) -> np.ndarray:
    """How often each token is a target in the rows of a training Source. Returns [V] int64.

    feature: of the batch, that `targets` reads: "text", "answer_text" or "chat".
    """
    rows = range(0, len(train), 1 + len(train) // _FITTED)
    counts = np.zeros(processor.tokenizer.vocab_size, np.int64)
    for start in range(0, len(rows), _AT_ONCE):
        records = [train.annotations(i) for i in rows[start : start + _AT_ONCE]]
        most = {f: max(1, *(len(r.get(name, ())) for r in records)) for f, name in _SAID.items()}
        batch = processor.arrays(records, np.zeros(len(records), np.uint64), frozenset({feature}), train=False, **most)
        ids, mask = targets(batch)
        counts += np.bincount(ids[mask], minlength=len(counts))
    if not counts.any():
        raise ConfigError(f"data.train: no record has a text to foresee. Expected {_EXPECTED[feature]}.")
    return counts


_SAID = {"captions": "texts", "questions": "qa"}  # argument of Processor.arrays: field of a record
_EXPECTED = {
    "text": "a 'texts' field",
    "answer_text": "a 'qa' field",
    "chat": "an assistant's turn in a 'messages' field",
}


class NextToken:
    """`task/token_accuracy` and `task/perplexity` over the target tokens of a set, each given the true ones before it.

    Perplexity is exp(NLL summed over all tokens / number of tokens), in nats. Baselines: always the most frequent
    token, and the frequencies of the tokens (each counted once more than it was seen) as a unigram model.

    Reads outputs `nll` and `hits` [B], sums over a row's targets (`losses.language.foreseen`).
    """

    def __init__(self, task: str, counts: np.ndarray, targets: Targets):
        """counts: of `token_counts`; targets: batch -> ids and mask [B, ...]."""
        self.task, self.frequent, self._targets = task, int(np.argmax(counts)), targets
        self._cost = np.log(counts.sum() + len(counts)) - np.log(counts + 1.0)
        self._hits, self._nll = Tally("most frequent token"), Tally("unigram")

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        ids, mask = self._targets(batch)
        for row, record in valid_rows(batch, annotations):
            tokens = ids[row][mask[row]]
            if len(tokens):
                self._nll.add(record, outputs["nll"][row], self._cost[tokens].sum(), weight=len(tokens))
                self._hits.add(record, outputs["hits"][row], np.sum(tokens == self.frequent), weight=len(tokens))

    def figures(self) -> list[Figure]:
        if not len(self._nll):
            raise ConfigError(f"{self.task}: no row of the test set has a text to foresee.")
        return [
            self._hits.figure(f"{self.task}/token_accuracy"),
            self._nll.figure(f"{self.task}/perplexity", percent=False, link="exp"),
        ]
