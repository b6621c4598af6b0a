"""Conversations: how well the assistant's given words are foreseen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmjax.errors import ConfigError
from mmjax.evaluators.figure import Figure, Record, Tally, valid_rows

if TYPE_CHECKING:
    from mmjax.data.processor import Processor

_FITTED, _AT_ONCE = 5_000, 512  # conversations that the baseline is fitted on, and that are tokenised at a time


def fit_baseline(train: Any, processor: Processor) -> np.ndarray:
    """How often each token is one to learn in the conversations of a training Source. Returns [V] int64."""
    rows = range(0, len(train), 1 + len(train) // _FITTED)
    counts = np.zeros(processor.tokenizer.vocab_size, np.int64)
    for start in range(0, len(rows), _AT_ONCE):
        records = [train.annotations(i) for i in rows[start : start + _AT_ONCE]]
        arrays = processor.conversations(records, pictures=False)
        counts += np.bincount(arrays["chat"][arrays["chat_supervised"]], minlength=len(counts))
    if not counts.any():
        raise ConfigError("data.train: no record has an assistant's turn. Expected a 'messages' field.")
    return counts


class Chat:
    """`task/token_accuracy` and `task/perplexity` over the supervised tokens, each given the true ones before it.

    Perplexity is exp of the mean negative log-likelihood (nats) a token. Baselines: always the most frequent token, and
    the frequencies of the tokens (each counted once more than it was seen) as a unigram model.

    Reads outputs `nll` and `hits` [B], sums over a row's tokens, and batch `chat`, `chat_supervised` [B, L].
    """

    def __init__(self, task: str, counts: np.ndarray):
        """counts: of `fit_baseline`."""
        self.task, self.frequent = task, int(np.argmax(counts))
        self._cost = np.log(counts.sum() + len(counts)) - np.log(counts + 1.0)
        self._hits, self._nll = Tally("most frequent token"), Tally("unigram")

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        for row, record in valid_rows(batch, annotations):
            tokens = batch["chat"][row][batch["chat_supervised"][row]]
            if len(tokens):
                self._nll.add(record, outputs["nll"][row], self._cost[tokens].sum(), weight=len(tokens))
                self._hits.add(record, outputs["hits"][row], np.sum(tokens == self.frequent), weight=len(tokens))

    def figures(self) -> list[Figure]:
        if not len(self._nll):
            raise ConfigError(f"{self.task}: no row of the test set has an assistant's turn. Expected 'messages'.")
        return [
            self._hits.figure(f"{self.task}/token_accuracy"),
            self._nll.figure(f"{self.task}/perplexity", percent=False, link="exp"),
        ]
