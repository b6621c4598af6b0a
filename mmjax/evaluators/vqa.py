"""Answers to questions: accuracy beside what can be had without looking at the picture."""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.errors import ConfigError
from mmjax.evaluators.figure import Figure, Record, Tally, annotations_of, valid_rows

_ARTICLES = {"a", "an", "the"}
_DIGITS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
           "seven": "7", "eight": "8", "nine": "9", "ten": "10"}  # fmt: skip
# Written with one apostrophe less they get it back; "its", "were" or "well" stay what they are.
_CONTRACTIONS = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd
they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've
who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've couldn't've
hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
"""
_RESTORED = {
    form[:i] + form[i + 1 :]: form for form in _CONTRACTIONS.split() for i, letter in enumerate(form) if letter == "'"
}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


@functools.lru_cache(maxsize=100_000)
def normalise(answer: str) -> str:
    """As the VQA evaluation does it (visualqa.org): punctuation, lower case, digits for number words, articles,
    contractions. It takes punctuation out beside a space, and anywhere in an answer with a number like 1,000; elsewhere
    it puts a space in its place.
    """
    answer = " ".join(answer.split())
    text, number = answer, re.search(r"\d,\d", answer)
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if beside_space or number else " ")
    text = re.sub(r"\.(?!\d)", "", text)  # a stop, but not the point of 3.5
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def accuracy(answer: str, truths: Sequence[str]) -> float:
    """How right an answer is, both sides normalised.

    Ten human answers: the VQA rule (Antol et al., 2015, sec. 5), min(1, matches / 3), averaged over the ten sets of
    nine. Any other number: 1 if it equals one of them. (The published script leaves answers as they are where all ten
    truths are one string; here they are normalised there too.)
    """
    answer = normalise(answer)
    matches = sum(normalise(truth) == answer for truth in truths)
    if len(truths) != 10:
        return float(matches > 0)
    return (matches * min(1.0, (matches - 1) / 3) + (10 - matches) * min(1.0, matches / 3)) / 10


def exact(answer: str, truths: Sequence[str]) -> float:
    """1 if the answer is one of the truths as they stand, but for case and spaces."""
    return float(_plain(answer) in map(_plain, truths))


def anls(answer: str, truths: Sequence[str]) -> float:
    """Normalised Levenshtein similarity to the nearest truth, 0 below one half (Biten et al., 2019, eq. 1)."""
    return max((_similarity(_plain(answer), _plain(truth)) for truth in truths), default=0.0)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(a: str, b: str) -> float:
    if a == b:
        return 1.0
    longest = max(len(a), len(b))
    if 2 * abs(len(a) - len(b)) >= longest:
        return 0.0
    above = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        row = [i]
        for j, other in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (letter != other)))
        above = row
    distance = above[-1] / longest
    return 1 - distance if distance < 0.5 else 0.0


RULES = {"accuracy": accuracy, "exact": exact, "anls": anls}


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
    """`task/accuracy`, also by kind (`_yes_no`, `_other`) where a set has both; `task/exact` and `task/anls`: `RULES`.

    Reads outputs `answer` [B, K] of str and annotations' `qa`. Beside each: what the question alone gives
    (`QuestionOnly`) or the most frequent answer where that is better; the latter is also a figure of its own,
    `task/most_frequent_answer`. Intervals draw whole pictures.
    """

    def __init__(self, task: str, *, train: Any = None):
        """train: a Source, a fitted `QuestionOnly`, or None (no baselines)."""
        self.task = task
        self.blind = train if train is None or isinstance(train, QuestionOnly) else QuestionOnly(train)
        names = ("question only", "most frequent answer") if self.blind else ()
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
        said = (answer, self.blind(qa["question"]), self.blind.most_frequent) if self.blind else (answer,)
        scores = {name: [rule(a, truths) for a in said] for name, rule in RULES.items()}
        yes_no = Counter(map(normalise, truths)).most_common(1)[0][0] in ("yes", "no")
        scores["accuracy_yes_no" if yes_no else "accuracy_other"] = scores["accuracy"]
        for name, each in scores.items():
            self._tallies[name].add(record, *each)
        if self.blind:
            self._frequent.add(record, scores["accuracy"][2])

    def figures(self) -> list[Figure]:
        if not len(self._tallies["accuracy"]):
            raise ConfigError(f"{self.task}: no question of the test set has an answer. Expected a 'qa' field.")
        kinds = {"accuracy_yes_no", "accuracy_other"}
        both = all(len(self._tallies[kind]) for kind in kinds)
        shown = {name: tally for name, tally in self._tallies.items() if both or name not in kinds}
        figures = [tally.figure(f"{self.task}/{name}") for name, tally in shown.items()]
        return figures + ([self._frequent.figure(f"{self.task}/most_frequent_answer")] if self.blind else [])
