"""Answers as classes: how they are spelt the same, which one a question has, and the list that a head can say."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence


def normalise(text: str) -> str:
    """Lower case, single spaces, none at the ends."""
    return " ".join(text.lower().split())


def most_frequent(answers: Sequence[str]) -> str:
    """The answer given most often, spelt by `normalise`; of equals the one given first; "" without answers."""
    counts = collections.Counter(a for a in map(normalise, answers) if a)
    return counts.most_common(1)[0][0] if counts else ""


def drawn(answers: Sequence[str], chance: float | None) -> str:
    """One of the answers, by a number in [0, 1), spelt by `normalise`; None, or no answers: as `most_frequent`."""
    if chance is None or not answers:
        return most_frequent(answers)
    return normalise(answers[int(chance * len(answers))])


def answer_list(counts: Mapping[str, int], largest: int) -> tuple[str, ...]:
    """The `largest` most frequent answers, most frequent first; equals in the order of the alphabet."""
    return tuple(sorted(counts, key=lambda a: (-counts[a], a))[:largest])


def count(questions: Iterable[Mapping]) -> collections.Counter[str]:
    """How many questions have each answer as their most frequent one."""
    counts = collections.Counter(most_frequent(q["answers"]) for q in questions)
    counts.pop("", None)
    return counts
