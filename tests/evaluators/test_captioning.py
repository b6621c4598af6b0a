import numpy as np
import pytest

from mmjax.errors import ConfigError
from mmjax.evaluators.caption_scores import bleu, bleu_counts, cider_d, meteor, meteor_counts, rouge_l
from mmjax.evaluators.caption_words import words
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
    exact, judged, *scores = evaluator.figures()
    assert (exact.name, exact.n, exact.value) == ("captioning/exact", 3, pytest.approx(1 / 3))
    assert (judged.name, judged.value) == ("captioning/all_attributes", pytest.approx(1 / 3))
    assert exact.baseline == pytest.approx(1 / 3) and exact.baseline_name == "always 'A red ball.'"
    assert judged.baseline == 0  # "ball." is no word of the scene: the judge gets the caption as written


def test_scores_are_of_the_whole_set_however_it_is_cut_into_batches():
    evaluator = Captioning("captioning", train="A red cube.")
    for rows in (slice(0, 1), slice(1, 4)):
        evaluator.update({"caption": SAID[rows]}, {"valid": VALID["valid"][rows]}, RECORDS[rows])
    figures = {figure.name: figure for figure in evaluator.figures()}
    said, references = [words(s) for s in SAID[:3]], [[words(t) for t in r["texts"]] for r in RECORDS[:3]]
    always = [words("a red cube")] * 3

    def corpus(captions):
        bleus = bleu(np.sum([bleu_counts(*pair) for pair in zip(captions, references, strict=True)], 0))
        matches = np.sum([meteor_counts(*pair) for pair in zip(captions, references, strict=True)], 0)
        return {
            "cider": cider_d(captions, references).mean(),
            **{f"bleu_{n + 1}": bleus[n] for n in range(4)},
            "rouge_l": np.mean([rouge_l(*pair) for pair in zip(captions, references, strict=True)]),
            "meteor_exact": meteor(matches),
        }

    for metric, value in corpus(said).items():
        figure = figures[f"captioning/{metric}"]
        assert (figure.value, figure.n) == (pytest.approx(value), 3)
        assert figure.baseline == pytest.approx(corpus(always)[metric])
        assert figure.baseline_name == "always 'A red cube.'"
    assert figures["captioning/cider"].interval and not figures["captioning/cider"].percent


def test_sets_without_captions_are_errors():
    with pytest.raises(ConfigError, match="captioning: no picture of the test set has captions"):
        Captioning("captioning").figures()
    with pytest.raises(ConfigError, match="data.train: no record has captions"):
        fit_baseline([{}])
