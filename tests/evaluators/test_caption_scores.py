"""Against pycocoevalcap's values (tests/fixtures/make_caption_scores.py), and against slow second versions."""

import functools
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmjax.evaluators.caption_scores import (
    _align,
    bleu,
    bleu_counts,
    cider_d,
    meteor,
    meteor_counts,
    ngrams,
    rouge_l,
)
from mmjax.evaluators.caption_words import words


@functools.cache
def fixture():
    return json.loads((Path(__file__).parents[1] / "fixtures" / "caption_scores.json").read_text())


def pairs():
    return zip(fixture()["captions"], fixture()["references"], strict=True)


def test_words_are_those_of_the_penn_treebank_tokenizer():
    for sentence, wanted in fixture()["sentences"]:
        assert words(sentence) == wanted, sentence


def test_bleu_is_that_of_pycocoevalcap():
    counts = np.sum([bleu_counts(said, references) for said, references in pairs()], 0)
    np.testing.assert_allclose(bleu(counts), fixture()["bleu"], rtol=0, atol=1e-6)


def test_rouge_l_is_that_of_pycocoevalcap():
    each = [rouge_l(said, references) for said, references in pairs()]
    np.testing.assert_allclose(each, fixture()["rouge_l_each"], rtol=0, atol=1e-6)
    assert np.mean(each) == pytest.approx(fixture()["rouge_l"], abs=1e-6)


def test_cider_d_is_that_of_pycocoevalcap():
    each = cider_d(fixture()["captions"], fixture()["references"])
    np.testing.assert_allclose(each, fixture()["cider_d_each"], rtol=0, atol=1e-6)
    assert np.mean(each) == pytest.approx(fixture()["cider_d"], abs=1e-6)


def test_meteor_is_that_of_its_exact_stage():
    counts = np.array([meteor_counts(said, references) for said, references in pairs()])
    np.testing.assert_allclose(meteor(counts), fixture()["meteor_exact_each"], rtol=0, atol=1e-6)
    assert meteor(counts.sum(0)) == pytest.approx(fixture()["meteor_exact"], abs=1e-6)


def test_alignments_have_most_matches_and_fewest_chunks():
    """All alignments, one after the other."""
    draw = np.random.default_rng(0)
    for _ in range(200):
        said, reference = (list(draw.choice(list("abc"), draw.integers(1, 6))) for _ in range(2))
        best = (0, 0)
        for places in itertools.product([None, *range(len(reference))], repeat=len(said)):
            taken = [j for j in places if j is not None]
            fits = all(j is None or reference[j] == word for j, word in zip(places, said, strict=True))
            if len(set(taken)) == len(taken) and fits:
                before = [None, *places[:-1]]
                chunks = sum(j is not None and (b is None or j != b + 1) for b, j in zip(before, places, strict=True))
                best = min(best, (-len(taken), chunks))
        assert _align(said, reference) == (-best[0], best[1]), (said, reference)


def test_bleu_and_cider_by_hand():
    assert ngrams(["a", "b", "a"], [1, 2]) == Counter({("a",): 2, ("b",): 1, ("a", "b"): 1, ("b", "a"): 1})
    counts = bleu_counts(["a", "a", "b"], [["a", "b", "c", "d"], ["b"]])  # four words are nearest to three
    assert counts.tolist() == [2, 1, 0, 0, 3, 2, 1, 0, 3, 4]
    np.testing.assert_allclose(bleu(counts)[:2], np.exp(-1 / 3) * np.array([2 / 3, (2 / 3 / 2) ** 0.5]), rtol=1e-6)
    # Two pictures of one word each that share none: the cosine of unigrams is 1, of longer ones 0.
    np.testing.assert_allclose(cider_d([["x"], ["z"]], [[["x"]], [["y"]]]), [10 / 4, 0])


@pytest.mark.parametrize("said", [[], ["zebra"]])
def test_a_caption_with_nothing_right_has_no_score_and_no_error(said):
    references = [["a", "dog"]]
    assert rouge_l(said, references) == 0 and float(meteor(meteor_counts(said, references))) == 0
    assert cider_d([said, ["a"]], [references, references])[0] == 0
    assert bleu(bleu_counts(said, references))[0] < 1e-6
