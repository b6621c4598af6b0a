import numpy as np
import pytest

from mmjax.errors import ConfigError
from mmjax.evaluators.chat import Chat, fit_baseline

COUNTS = np.array([0, 1, 6, 3])  # of four tokens; one more each: 1, 2, 7, 4 of 14
IDS = np.array([[0, 2, 3, 2], [1, 1, 2, 2], [3, 3, 3, 3], [2, 2, 2, 2]])
SUPERVISED = np.array([[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]], bool)
VALID = np.array([True, True, True, False])
OUTPUTS = {"nll": np.array([1.0, 3.0, 0.0, 99.0]), "hits": np.array([2, 0, 0, 3])}


def test_accuracy_and_perplexity_are_over_tokens_beside_what_their_frequencies_give():
    judge = Chat("talk", COUNTS)
    for rows in (slice(0, 2), slice(2, 4)):
        batch = {"chat": IDS[rows], "chat_supervised": SUPERVISED[rows], "valid": VALID[rows]}
        judge.update({k: v[rows] for k, v in OUTPUTS.items()}, batch, [{}] * 2)
    accuracy, perplexity = judge.figures()
    assert (accuracy.name, accuracy.value, accuracy.n) == ("talk/token_accuracy", 2 / 4, 4)
    assert accuracy.baseline == 3 / 4  # token 2, three of 2 3 2 2
    assert perplexity.value == pytest.approx(np.exp(4.0 / 4)) and perplexity.n == 4 and not perplexity.percent
    assert perplexity.baseline == pytest.approx((7 / 14 * 4 / 14 * 7 / 14 * 7 / 14) ** (-1 / 4))
    for figure in (accuracy, perplexity):
        assert figure.interval[0] <= figure.value <= figure.interval[1]


class Talks:
    """A source and a processor in one, in which row i says the token i % 4."""

    class tokenizer:
        vocab_size = 4

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return self.rows

    def annotations(self, i):
        return i

    def conversations(self, records, pictures):
        ids = np.array([[i % 4, 3] for i in records])
        return {"chat": ids, "chat_supervised": np.array([[True, False]] * len(records))}


def test_the_baseline_counts_the_tokens_that_are_learnt():
    assert fit_baseline(Talks(1030), Talks(0)).tolist() == [258, 258, 257, 257]
    assert 2500 < fit_baseline(Talks(100_000), Talks(0)).sum() <= 5000


def test_sets_without_a_turn_of_the_assistant_are_errors():
    with pytest.raises(ConfigError, match="talk: no row of the test set has an assistant's turn"):
        Chat("talk", COUNTS).figures()
    with pytest.raises(ConfigError, match="data.train: no record has an assistant's turn"):
        fit_baseline(Talks(0), Talks(0))
