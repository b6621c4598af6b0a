import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_score

from mmjax.errors import ConfigError
from mmjax.evaluators.mean_average_precision import MeanAveragePrecision, average_precision


@pytest.mark.parametrize("levels", [3, 1000])
def test_average_precision_is_scikit_learns_also_with_ties_and_weights(levels):
    random = np.random.default_rng(levels)
    scores, truth = random.integers(0, levels, 60) / levels, random.random(60) < 0.2
    assert average_precision(scores, truth)[0] == pytest.approx(average_precision_score(truth, scores))
    weights = random.integers(0, 3, (5, 60))
    expected = [average_precision_score(truth, scores, sample_weight=w) for w in weights]
    np.testing.assert_allclose(average_precision(scores, truth, weights), expected)


def test_a_resampling_without_a_true_row_has_no_precision():
    got = average_precision(np.array([0.9, 0.1]), np.array([True, False]), np.array([[0, 2], [2, 0], [1, 1]]))
    assert np.isnan(got[0]) and got[1:].tolist() == [1, 1]


def test_the_mean_is_over_the_classes_that_the_set_has():
    random = np.random.default_rng(0)
    truth = random.random((50, 4)) < [0.5, 0.2, 0.0, 0.1]
    scores = random.random((50, 4)).astype(np.float32) + truth * 0.3
    valid, labelled = np.arange(50) < 47, np.arange(50) % 10 != 3
    judge = MeanAveragePrecision("objects", labels=tuple("abcd"))
    for rows in (slice(0, 30), slice(30, 50)):
        batch = {"labels": truth[rows], "labels_valid": labelled[rows], "valid": valid[rows]}
        judge.update({"probability": scores[rows]}, batch, [{}] * 50)
    (figure,) = judge.figures()
    kept = valid & labelled
    expected = np.mean([average_precision_score(truth[kept, c], scores[kept, c]) for c in (0, 1, 3)])
    assert (figure.name, figure.n) == ("objects/mean_average_precision", kept.sum())
    assert figure.value == pytest.approx(expected)
    assert figure.baseline == pytest.approx(truth[kept][:, [0, 1, 3]].mean())
    assert figure.interval[0] < figure.value < figure.interval[1]
    lines = [line.split() for line in judge.pages()["classes.txt"].splitlines()]
    told = {line[0]: line[1:] for line in lines if line and line[0] in "abcd" and len(line) == 3}
    assert told == {
        "abcd"[c]: [f"{average_precision_score(truth[kept, c], scores[kept, c]):.3f}", str(truth[kept, c].sum())]
        for c in (0, 1, 3)
    }
    (at_half,) = (line[1:] for line in lines if line[:1] == ["a"] and len(line) == 5)
    assert at_half[0] == f"{precision_score(truth[kept, 0], scores[kept, 0] >= 0.5):.3f}"


def test_the_baseline_is_what_a_random_order_tends_to():
    random = np.random.default_rng(0)
    truth = random.random(4000) < 0.3
    mean = np.mean([average_precision(random.random(4000), truth)[0] for _ in range(50)])
    assert mean == pytest.approx(truth.mean(), abs=0.01)


def test_a_set_without_labels_is_an_error():
    judge = MeanAveragePrecision("objects", labels=("a",))
    with pytest.raises(ConfigError, match="objects: no picture of the test set has labels"):
        judge.figures()


def test_the_page_of_a_single_class_is_about_the_pictures_that_have_it():
    judge = MeanAveragePrecision("objects", labels=("a",))
    truth, scores = np.array([[1], [1], [0], [0], [0]], bool), np.array([[0.9], [0.2], [0.8], [0.7], [0.1]])
    judge.update(
        {"probability": scores},
        {"labels": truth, "labels_valid": truth[:, 0] | True, "valid": np.ones(5, bool)},
        [{}] * 5,
    )
    lines = [x.split() for x in judge.pages()["classes.txt"].splitlines()]
    (line,) = (x for x in lines if x[:1] == ["a"] and len(x) == 5)
    assert line[1:] == ["0.333", "0.500", "0.400", "2"]
