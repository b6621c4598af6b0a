import numpy as np
import pytest

from mmjax.errors import ConfigError
from mmjax.evaluators.vqa import VQA


def qa(question, *answers):
    return {"question": question, "answers": list(answers)}


TRAIN = [
    {"qa": [qa("what colour is it?", "red"), qa("is it big?", "yes"), qa("is it red?", "no")]},
    {"qa": [qa("what colour is it?", "blue"), qa("what colour is it?", "Red"), qa("is it small?", "no")]},
    {"qa": [qa("what shape is it?", "cube")]},
]


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
