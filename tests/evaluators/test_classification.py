import numpy as np
import pytest

from mmjax.errors import ConfigError
from mmjax.evaluators.classification import Accuracy, fit_baseline

LABELS = ("bird", "cat", "dog")
TRAIN = [{"label": label} for label in ("dog", "cat", "dog", "bird", None)] + [{}]


def feed(evaluator, predicted, truth, batch=4):
    """truth: label strings; "owl" is no label of the model, None is no label at all. The last batch is padded."""
    padded = -len(truth) % batch
    records = [{} if t is None else {"label": t} for t in truth] + [{"label": "cat"}] * padded
    label = [LABELS.index(r["label"]) if r.get("label") in LABELS else -1 for r in records]
    valid = np.arange(len(records)) < len(truth)
    predicted = np.array(list(predicted) + [1] * padded)
    for start in range(0, len(records), batch):
        rows = slice(start, start + batch)
        evaluator.update(
            {"class": predicted[rows]}, {"label": np.array(label)[rows], "valid": valid[rows]}, records[rows]
        )


def test_accuracy_counts_each_labelled_picture_once():
    truth = ["dog", "cat", "dog", "owl", None, "bird", "dog", "cat", "cat", "dog"]
    predicted = [2, 1, 0, 2, 1, 0, 2, 2, 1, 1]
    evaluator = Accuracy("animals", labels=LABELS, train=TRAIN)
    feed(evaluator, predicted, truth)
    (figure,) = evaluator.figures()
    pairs = [(LABELS[p], t) for p, t in zip(predicted, truth, strict=True) if t is not None]
    assert figure.name == "animals/accuracy" and figure.n == 9
    assert figure.value == pytest.approx(sum(p == t for p, t in pairs) / 9)
    assert figure.baseline == pytest.approx(4 / 9) and figure.baseline_name == "always 'dog'"
    assert figure.interval[0] < figure.value < figure.interval[1]
    counts, names = evaluator.confusion()
    assert names == ("bird", "cat", "dog", "owl")
    by_hand = np.zeros((4, 4), int)
    for said, true in pairs:
        by_hand[names.index(true), names.index(said)] += 1
    np.testing.assert_array_equal(counts, by_hand)


def test_the_report_of_the_classes_is_that_of_all_rows():
    from sklearn.metrics import classification_report

    truth = ["dog", "cat", "dog", "owl", "bird", "dog", "cat"]
    predicted = [2, 1, 0, 2, 0, 2, 2]
    evaluator = Accuracy("animals", labels=LABELS, train=TRAIN)
    feed(evaluator, predicted, truth)
    pages = evaluator.pages()
    said = [LABELS[p] for p in predicted]
    whole = classification_report(truth, said, digits=3, zero_division=0)
    assert pages["classes.txt"].split() == whole.split()
    assert pages["confusion.png"].dtype == np.uint8


def test_chance_stands_in_where_no_training_set_is_given():
    evaluator = Accuracy("animals", labels=LABELS)
    feed(evaluator, [0, 0], ["bird", "cat"])
    assert evaluator.figures()[0].baseline == pytest.approx(1 / 3)


def test_a_fitted_baseline_is_taken_as_it_is():
    assert fit_baseline(TRAIN) == "dog"
    assert Accuracy("animals", labels=LABELS, train="cat").majority == "cat"


def test_sets_without_labels_are_errors():
    with pytest.raises(ConfigError, match="animals: no picture of the test set has a label"):
        Accuracy("animals", labels=LABELS).figures()
    with pytest.raises(ConfigError, match="data.train: no record has a label"):
        fit_baseline([{}])
