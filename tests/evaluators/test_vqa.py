import itertools

import numpy as np
import pytest

from mmjax.errors import ConfigError
from mmjax.evaluators.vqa import VQA, QuestionOnly, accuracy, anls, exact, normalise


def qa(question, *answers):
    return {"question": question, "answers": list(answers)}


TRAIN = [
    {"qa": [qa("what colour is it?", "red"), qa("is it big?", "yes"), qa("is it red?", "no")]},
    {"qa": [qa("what colour is it?", "blue"), qa("what colour is it?", "Red"), qa("is it small?", "no")]},
    {"qa": [qa("what shape is it?", "cube")]},
]


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


def test_question_only_falls_back_to_two_words_and_then_to_any():
    blind = QuestionOnly(TRAIN)
    assert blind("What colour  is it?") == "red"
    assert blind("what colour was it?") == "red"
    assert blind("is it round?") == "no"
    assert blind("who?") == blind.most_frequent == "red"


RECORDS = [
    {"id": "0", "qa": [qa("what colour is it?", "red"), qa("is it big?", "no")]},
    {"id": "1", "qa": [qa("how many?", "two")]},
    {"id": "2", "qa": [qa("what shape is it?", "ball"), qa("is it small?", "yes")]},
    {"id": "padding", "qa": [qa("what?", "padding")]},
]
ANSWERS = np.array([["Red", "no"], ["2", ""], ["cube", "yes"], ["padding", ""]], dtype=object)
VALID = np.array([True, True, True, False])
ASKED = np.array([[1, 1], [1, 0], [1, 1], [1, 0]], bool)


def test_accuracy_overall_and_by_kind_beside_the_blind_answers():
    evaluator = VQA("vqa", train=TRAIN)
    for rows in (slice(0, 2), slice(2, 4)):
        batch = {"valid": VALID[rows], "question_valid": ASKED[rows]}
        evaluator.update({"answer": ANSWERS[rows]}, batch, RECORDS[rows])
    figures = {figure.name: figure for figure in evaluator.figures()}
    assert {name: (f.n, round(f.value, 6), f.baseline) for name, f in figures.items()} == {
        "vqa/accuracy": (5, 0.8, pytest.approx(0.2)),  # blind: red, yes, red, cube, no
        "vqa/accuracy_yes_no": (2, 1.0, pytest.approx(0)),
        "vqa/accuracy_other": (3, round(2 / 3, 6), pytest.approx(1 / 3)),
        "vqa/exact": (5, 0.6, pytest.approx(0.2)),  # "2" is not "two"
        "vqa/anls": (5, 0.6, pytest.approx(0.2)),
        "vqa/most_frequent_answer": (5, 0.2, None),
    }


def test_intervals_draw_pictures_not_questions():
    records = [{"id": str(i), "qa": [qa("q?", "red")] * 8} for i in range(10)]
    evaluator = VQA("vqa")
    answers = np.array([["red"] * 8, ["blue"] * 8] * 5, dtype=object)
    batch = {"valid": np.ones(10, bool), "question_valid": np.ones((10, 8), bool)}
    evaluator.update({"answer": answers}, batch, records)
    low, high = evaluator.figures()[0].interval
    assert high - low > 0.5  # ten pictures, not eighty questions (0.22)


def test_a_question_that_was_not_asked_is_an_error():
    batch = {"valid": VALID, "question_valid": ASKED[::-1]}
    with pytest.raises(ConfigError, match="vqa: 0: asked 1 of 2 questions"):
        VQA("vqa").update({"answer": ANSWERS}, batch, RECORDS)


def test_sets_without_questions_are_errors():
    with pytest.raises(ConfigError, match="vqa: no question of the test set has an answer"):
        VQA("vqa").figures()
    with pytest.raises(ConfigError, match="data.train: no record has questions"):
        QuestionOnly([{}])
