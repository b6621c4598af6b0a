import numpy as np
import pytest

from mmjax.errors import ConfigError
from mmjax.evaluators.language import NextToken, token_counts
from mmjax.tasks.captioning import Captioning
from mmjax.tasks.chat import Chat
from mmjax.tasks.vqa import VQA

COUNTS = np.array([0, 1, 6, 3])  # of four tokens; one more each: 1, 2, 7, 4 of 14
IDS = np.array([[0, 2, 3, 2], [1, 1, 2, 2], [3, 3, 3, 3], [2, 2, 2, 2]])
SUPERVISED = np.array([[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]], bool)
VALID = np.array([True, True, True, False])
OUTPUTS = {"nll": np.array([1.0, 3.0, 0.0, 99.0]), "hits": np.array([2, 0, 0, 3])}


def test_accuracy_and_perplexity_are_over_tokens_beside_what_their_frequencies_give():
    judge = NextToken("talk", COUNTS, Chat.targets)
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


class Said:
    """A source and a processor in one: row i says the token i % 4, and then one that is no target."""

    class tokenizer:
        vocab_size = 4

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return self.rows

    def annotations(self, i):
        return {"i": i}

    def arrays(self, records, keys, features, *, train, captions, questions):
        ids = np.array([[3, record["i"] % 4, 3] for record in records])
        counts = np.array([[False, True, False]] * len(records))
        (name,) = features
        if name == "chat":
            return {"chat": ids, "chat_supervised": counts}
        mask = {"text": "text_mask", "answer_text": "answer_mask"}[name]
        valid = {"text": "text_valid", "answer_text": "question_valid"}[name]
        return {name: ids[:, None], mask: counts[:, None], valid: np.ones((len(ids), 1), bool)}


@pytest.mark.parametrize(("feature", "task"), [("chat", Chat), ("text", Captioning), ("answer_text", VQA)])
def test_the_baseline_counts_the_tokens_that_are_learnt(feature, task):
    counts = token_counts(Said(1030), Said(0), feature, task.targets)
    assert counts.tolist() == [258, 258, 257, 257]
    assert 2500 < token_counts(Said(100_000), Said(0), feature, task.targets).sum() <= 5000


def test_sets_without_a_text_are_errors():
    with pytest.raises(ConfigError, match="talk: no row of the test set has a text"):
        NextToken("talk", COUNTS, Chat.targets).figures()
    with pytest.raises(ConfigError, match="data.train: no record has a text to foresee. Expected an assistant's turn"):
        token_counts(Said(0), Said(0), "chat", Chat.targets)
