import numpy as np
import pytest

from mmjax.errors import ConfigError
from mmjax.evaluators.captioning import Captioning, fit_baseline

TRAIN = [{"texts": ["A red ball.", "a ball"]}, {"texts": ["a  red ball"]}, {}]
RECORDS = [
    {"texts": ["a red ball", "one ball"], "scene": "red ball"},
    {"texts": ["A blue cube ."], "scene": "blue cube"},
    {"texts": ["a red cube"], "scene": "red cube"},
    {"texts": ["padding"], "scene": "padding"},
]
SAID = np.array(["One ball", "a cube that is blue", "a red ball", "padding"], dtype=object)
VALID = {"valid": np.array([True, True, True, False])}


def names_all(caption, record):
    return all(word in caption.split() for word in record["scene"].split())


def test_exact_and_judged_captions_stand_beside_the_most_frequent_one():
    evaluator = Captioning("captioning", train=TRAIN, judge=names_all)
    for rows in (slice(0, 2), slice(2, 4)):
        evaluator.update({"caption": SAID[rows]}, {"valid": VALID["valid"][rows]}, RECORDS[rows])
    exact, judged = evaluator.figures()
    assert (exact.name, exact.n, exact.value) == ("captioning/exact", 3, pytest.approx(1 / 3))
    assert (judged.name, judged.value) == ("captioning/all_attributes", pytest.approx(1 / 3))
    assert exact.baseline == pytest.approx(1 / 3) and exact.baseline_name == "always 'A red ball.'"
    assert judged.baseline == 0  # "ball." is no word of the scene: the judge gets the caption as written


def test_perplexity_is_the_exponential_of_the_mean_over_tokens():
    evaluator = Captioning("captioning")
    nll = np.array([[6.0, 3], [1.0, 1], [2.0, 2], [99.0, 1]])
    evaluator.update({"caption": SAID, "nll": nll}, VALID, RECORDS)
    exact, perplexity = evaluator.figures()
    assert exact.baseline is None
    assert perplexity.value == pytest.approx(np.exp(9 / 6)) and perplexity.n == 6 and not perplexity.percent
    assert perplexity.interval[0] <= perplexity.value <= perplexity.interval[1]


def test_sets_without_captions_are_errors():
    with pytest.raises(ConfigError, match="captioning: no picture of the test set has captions"):
        Captioning("captioning").figures()
    with pytest.raises(ConfigError, match="data.train: no record has captions"):
        fit_baseline([{}])
