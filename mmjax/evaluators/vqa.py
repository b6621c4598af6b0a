"""Answers to questions: accuracy beside what can be had without looking at the picture."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from mmjax.errors import ConfigError
from mmjax.evaluators.answer_rules import RULES, normalise
from mmjax.evaluators.figure import Figure, Record, Tally, valid_rows
from mmjax.evaluators.question_only import QuestionOnly


class VQA:
    """`task/accuracy`, also by kind (`_yes_no`, `_other`) where a set has both; `task/exact` and `task/anls`: `RULES`.

    Reads outputs `answer` [B, K] of str and annotations' `qa`. Beside each stands the best of three: the answer to
    this question in training, naive Bayes over its words, and the most frequent answer, which is also a figure of its
    own, `task/most_frequent_answer`. Intervals draw whole pictures.
    """

    def __init__(self, task: str, *, train: Any = None):
        """train: a Source, a fitted `QuestionOnly`, or None (no baselines)."""
        self.task = task
        self.blind = train if train is None or isinstance(train, QuestionOnly) else QuestionOnly(train)
        names = ("question only", "question only, by words", "most frequent answer") if self.blind else ()
        self._tallies = {name: Tally(*names) for name in ("accuracy", "accuracy_yes_no", "accuracy_other", *RULES)}
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
        said = (answer,)
        if self.blind:
            question = qa["question"]
            said += self.blind.lookup(question), self.blind.by_words(question), self.blind.most_frequent
        scores = {name: [rule(a, truths) for a in said] for name, rule in RULES.items()}
        yes_no = Counter(map(normalise, truths)).most_common(1)[0][0] in ("yes", "no")
        scores["accuracy_yes_no" if yes_no else "accuracy_other"] = scores["accuracy"]
        for name, each in scores.items():
            self._tallies[name].add(record, *each)
        if self.blind:
            self._frequent.add(record, scores["accuracy"][3])

    def figures(self) -> list[Figure]:
        if not len(self._tallies["accuracy"]):
            raise ConfigError(f"{self.task}: no question of the test set has an answer. Expected a 'qa' field.")
        kinds = {"accuracy_yes_no", "accuracy_other"}
        both = all(len(self._tallies[kind]) for kind in kinds)
        shown = {name: tally for name, tally in self._tallies.items() if both or name not in kinds}
        figures = [tally.figure(f"{self.task}/{name}") for name, tally in shown.items()]
        return figures + ([self._frequent.figure(f"{self.task}/most_frequent_answer")] if self.blind else [])
