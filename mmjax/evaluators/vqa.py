"""Answers to questions: accuracy beside what can be had without looking at the picture."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.errors import ConfigError
from mmjax.evaluators.figure import Figure, Record, Tally, annotations_of, valid_rows

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(n) for n, word in enumerate(WORDS)}
NUMBERS["none"] = "0"
ARTICLES = {"a", "an", "the"}


def normalise(answer: str) -> str:
    """As the VQA evaluation does it (visualqa.org): lower case, no punctuation or articles, digits for number words.

    Contractions need no table here: apostrophes go on both sides.
    """
    text = answer.lower().replace("'", "")
    text = re.sub(r"(?<=\d),(?=\d)", "", text)  # 1,000 -> 1000
    text = re.sub(r"\.(?!\d)", "", text)  # a stop, but not the point of 3.5
    words = re.sub(r'[;/\[\]"{}()=+\\_\-<>@`,?!]', " ", text).split()
    kept = [NUMBERS.get(word, word) for word in words if word not in ARTICLES]
    return " ".join(kept or words)


def accuracy(answer: str, truths: Sequence[str]) -> float:
    """How right an answer is, both sides normalised.

    Ten human answers: the VQA rule (Antol et al., 2015, sec. 5), min(1, matches / 3), averaged over the ten sets of
    nine. Any other number: 1 if it equals one of them.
    """
    answer = normalise(answer)
    matches = sum(normalise(truth) == answer for truth in truths)
    if len(truths) != 10:
        return float(matches > 0)
    return (matches * min(1.0, (matches - 1) / 3) + (10 - matches) * min(1.0, matches / 3)) / 10


class QuestionOnly:
    """Answers unseen: the most frequent training answer to the question, else to its first two words, else to any."""

    def __init__(self, train: Any):
        """train: a Source with `qa`, or its records."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for record in annotations_of(train):
            for qa in record.get("qa") or ():
                for key in self._keys(qa["question"]):
                    counts[key].update(map(normalise, qa["answers"]))
        self._answers = {key: answers.most_common(1)[0][0] for key, answers in counts.items() if answers}
        if not self._answers:
            raise ConfigError("data.train: no record has questions with answers. Expected a 'qa' field.")
        self.most_frequent = self._answers[""]

    def __call__(self, question: str) -> str:
        return next(self._answers[key] for key in self._keys(question) if key in self._answers)

    @staticmethod
    def _keys(question: str) -> tuple[str, str, str]:
        words = question.lower().split()
        return " ".join(words), " ".join(words[:2]) + " ...", ""


class VQA:
    """`task/accuracy`, also by kind (`_yes_no`, `_other`) where a set has both; see `accuracy` for the rule.

    Reads outputs `answer` [B, K] of str and annotations' `qa`. Beside it: what the question alone gives
    (`QuestionOnly`) or the most frequent answer where that is better; the latter is also a figure of its own,
    `task/most_frequent_answer`. Intervals draw whole pictures.
    """

    def __init__(self, task: str, *, train: Any = None):
        """train: a Source, a fitted `QuestionOnly`, or None (no baselines)."""
        self.task = task
        self.blind = train if train is None or isinstance(train, QuestionOnly) else QuestionOnly(train)
        names = ("question only", "most frequent answer") if self.blind else ()
        self._tallies = {kind: Tally(*names) for kind in ("", "_yes_no", "_other")}
        self._frequent = Tally()

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        for row, record in valid_rows(batch, annotations):
            questions = record.get("qa") or ()
            asked = int(np.sum(batch["question_valid"][row]))
            if asked != len(questions):
                raise ConfigError(
                    f"{self.task}: {record.get('id')}: asked {asked} of {len(questions)} questions. Expected all."
                )
            for qa, answer in zip(questions, outputs["answer"][row], strict=False):
                if qa["answers"]:
                    self._add(record, str(answer), qa)

    def _add(self, record: Record, answer: str, qa: dict[str, Any]) -> None:
        truths = qa["answers"]
        blind = (self.blind(qa["question"]), self.blind.most_frequent) if self.blind else ()
        scores = [accuracy(a, truths) for a in (answer, *blind)]
        yes_no = Counter(map(normalise, truths)).most_common(1)[0][0] in ("yes", "no")
        for kind in ("", "_yes_no" if yes_no else "_other"):
            self._tallies[kind].add(record, *scores)
        if self.blind:
            self._frequent.add(record, scores[2])

    def figures(self) -> list[Figure]:
        overall, yes_no, other = self._tallies.values()
        if not len(overall):
            raise ConfigError(f"{self.task}: no question of the test set has an answer. Expected a 'qa' field.")
        shown = self._tallies if len(yes_no) and len(other) else {"": overall}
        figures = [tally.figure(f"{self.task}/accuracy{kind}") for kind, tally in shown.items()]
        return figures + ([self._frequent.figure(f"{self.task}/most_frequent_answer")] if self.blind else [])
