"""How right an answer is: by the VQA rule, word for word, or by its letters."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

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
