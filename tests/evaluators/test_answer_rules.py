import itertools

import numpy as np
import pytest

from mmjax.evaluators.answer_rules import accuracy, anls, exact, normalise


def test_normalises_as_the_vqa_evaluation_does():
    """Its rules, case by case: what its published script gives for these answers."""
    pairs = {
        "The  Dog.": "dog", "two": "2", "1,000": "1000", "3.5": "3.5", "None": "0", "yes!": "yes", "10:30": "10:30",
        "dont": "don't", "don't": "don't", "its": "its", "it's": "it's", "wouldntve": "wouldntve",
        "wouldnt've": "wouldn't've", "yall'd've": "y'all'd've", "OClock": "o'clock", "were": "were",
        "blue-green": "blue green", "blue - green": "blue green", "blue -green": "blue green", "a, b": "b",
        "a/b": "b", "1,000-2": "10002", "the": "", "(red)": "red", "st. john's": "st john's",
        "an apple, ten": "apple 10",
    }  # fmt: skip
    assert {text: normalise(text) for text in pairs} == pairs


def test_exact_match_and_anls_by_their_definitions():
    assert exact("A  Cat", ["a cat"]) == 1 and exact("cat", ["a cat"]) == 0 and exact("2", ["two"]) == 0
    assert anls("kitten", ["sitting", "x"]) == pytest.approx(1 - 3 / 7)
    assert anls("cat", ["dog"]) == 0 and anls("ab", ["abcd"]) == 0  # half or more is wrong

    def slow(a, b):
        return max(len(a), len(b)) if not a or not b else min(
            slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0])
        )  # fmt: skip

    draw = np.random.default_rng(0)
    for _ in range(60):
        a, b = ("".join(draw.choice(list("ab"), draw.integers(1, 6))) for _ in range(2))
        share = slow(a, b) / max(len(a), len(b))
        assert anls(a, [b]) == pytest.approx(1 - share if share < 0.5 else 0), (a, b)


@pytest.mark.parametrize("matches", range(11))
def test_ten_answers_follow_the_leave_one_out_rule(matches):
    truths = ["cat"] * matches + ["dog"] * (10 - matches)
    nines = [nine for nine in itertools.combinations(truths, 9)]
    assert accuracy("a cat", truths) == pytest.approx(np.mean([min(1, nine.count("cat") / 3) for nine in nines]))


def test_other_numbers_of_answers_take_any_match():
    assert accuracy("Two", ["2"]) == 1
    assert accuracy("two", ["three", "two"]) == 1
    assert accuracy("two", ["three"]) == 0
