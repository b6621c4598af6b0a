"""What can be answered without looking at the picture: from the question, as the training set answers it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmjax.errors import ConfigError
from mmjax.evaluators.answer_rules import normalise
from mmjax.evaluators.figure import annotations_of

_ANSWERS, _WORDS = 1000, 8192  # the most frequent ones that naive Bayes knows, which bound its table to 33 MB
_SMOOTHING = 0.1  # added to each count; on DAQUAR better than 0.01 by two points


class QuestionOnly:
    """Fitted on the training questions. Attributes: most_frequent: the answer that is given most often."""

    def __init__(self, train: Any):
        """train: a Source with `qa`, or its records."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        pairs: Counter[tuple[str, str]] = Counter()
        for record in annotations_of(train):
            for qa in record.get("qa") or ():
                for answer in map(normalise, qa["answers"]):
                    pairs[qa["question"], answer] += 1
        for (question, answer), count in pairs.items():
            for key in _keys(question):
                counts[key][answer] += count
        if not counts:
            raise ConfigError("data.train: no record has questions with answers. Expected a 'qa' field.")
        self._answers = {key: answers.most_common(1)[0][0] for key, answers in counts.items()}
        self.most_frequent = self._answers[""]
        self._bayes = NaiveBayes(pairs)

    def lookup(self, question: str) -> str:
        """The most frequent training answer to the question, else to its first two words, else to any."""
        return next(self._answers[key] for key in _keys(question) if key in self._answers)

    def by_words(self, question: str) -> str:
        """The likeliest answer by naive Bayes over the question's words: also to what was never asked before."""
        return self._bayes(question)


def _keys(question: str) -> tuple[str, str, str]:
    words = question.lower().split()
    return " ".join(words), " ".join(words[:2]) + " ...", ""


class NaiveBayes:
    """Multinomial naive Bayes: p(answer) times, for each word and each two words in a row, p(it | answer).

    Each is counted once a question. Rare words and answers are left out; so are those that training lacks.
    """

    def __init__(self, pairs: Counter[tuple[str, str]]):
        """pairs: {(question, answer): how often}."""
        answers, features = Counter(), Counter()
        for (question, answer), count in pairs.items():
            answers[answer] += count
            for feature in _features(question):
                features[feature] += count
        self._answers = [answer for answer, _ in answers.most_common(_ANSWERS)]
        self._place = {feature: i for i, (feature, _) in enumerate(features.most_common(_WORDS))}
        column = {answer: i for i, answer in enumerate(self._answers)}
        table = np.zeros((len(self._place), len(self._answers)), np.float32)
        for (question, answer), count in pairs.items():
            if answer in column:
                table[self._rows(question), column[answer]] += count
        total = table.sum(axis=0) + _SMOOTHING * len(table)
        self._given = np.log((table + _SMOOTHING) / total)  # [features, answers]
        frequency = np.array([answers[answer] for answer in self._answers], np.float64)
        self._prior = np.log(frequency / frequency.sum())

    def __call__(self, question: str) -> str:
        return self._answers[int(np.argmax(self._prior + self._given[self._rows(question)].sum(axis=0)))]

    def _rows(self, question: str) -> list[int]:
        return [self._place[feature] for feature in _features(question) if feature in self._place]


def _features(question: str) -> Iterator[str]:
    words = question.lower().split()
    yield from dict.fromkeys([*words, *map(" ".join, zip(words, words[1:], strict=False))])
