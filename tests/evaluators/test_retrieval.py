import math

import numpy as np
import pytest

from mmjax.errors import ConfigError
from mmjax.evaluators import retrieval
from mmjax.evaluators.retrieval import RECALLS, Retrieval, chance

PICTURES, CAPTIONS, WIDTH = 23, 3, 6
RANDOM = np.random.default_rng(0)


def unit(shape):
    x = RANDOM.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


IMAGE = unit((PICTURES, WIDTH))
TEXT = IMAGE[:, None] + 0.9 * unit((PICTURES, CAPTIONS, WIDTH))
TEXT /= np.linalg.norm(TEXT, axis=-1, keepdims=True)
IMAGE_KEY, TEXT_KEY = np.arange(PICTURES) * 7, np.arange(PICTURES * CAPTIONS).reshape(PICTURES, CAPTIONS) * 11
IMAGE_KEY[9], IMAGE[9] = IMAGE_KEY[2], IMAGE[2]  # the same picture twice
TEXT_KEY[5, 0], TEXT[5, 0] = TEXT_KEY[14, 1], TEXT[14, 1]  # one caption under two pictures
IMAGE[17] = IMAGE[3]  # a tie between different pictures
TEXT[20, 2] = TEXT[8, 0]  # and between different captions
TEXT_VALID = RANDOM.random((PICTURES, CAPTIONS)) < 0.8
TEXT_VALID[[2, 5, 8, 9, 14, 20]] = True
TEXT_VALID[[11, 22]] = False  # pictures without captions; the last has the largest key


def run(gallery=0, batch=5, task="contrastive"):
    evaluator = Retrieval(task, gallery=gallery)
    for start in range(0, PICTURES, batch):
        rows = np.arange(start, start + batch)
        real = rows < PICTURES
        rows = np.where(real, rows, 0)  # padding repeats a picture
        outputs = {"image_embedding": IMAGE[rows], "text_embedding": TEXT[rows]}
        keys = {"image_key": IMAGE_KEY[rows], "text_key": TEXT_KEY[rows], "text_valid": TEXT_VALID[rows]}
        evaluator.update(outputs, {**keys, "valid": real}, [{}] * batch)
    return {figure.name.partition("/")[2]: figure for figure in evaluator.figures()}


def brute_force(gallery):
    """{direction: ranks}, pair by pair in Python floats."""
    texts = [(i, k) for i in range(PICTURES) for k in range(CAPTIONS) if TEXT_VALID[i, k]]
    said = {(IMAGE_KEY[i], TEXT_KEY[i, k]) for i, k in texts}

    def rank(candidates):
        """candidates: (score, right)."""
        best = max(score for score, right in candidates if right)
        wrong = [score for score, right in candidates if not right]
        ties = sum(abs(score - best) < 1e-6 for score in wrong)
        return 1 + sum(score > best and abs(score - best) >= 1e-6 for score in wrong) + ties / 2

    found = {"text_to_image": [], "image_to_text": []}
    for i, k in texts:
        start = min(i // gallery * gallery, PICTURES - gallery)
        scores = [
            (float(IMAGE[j] @ TEXT[i, k]), (IMAGE_KEY[j], TEXT_KEY[i, k]) in said)
            for j in range(start, start + gallery)
        ]
        found["text_to_image"].append(rank(scores))
    for i in sorted({i for i, _ in texts}):
        start = min(i // gallery * gallery, PICTURES - gallery)
        scores = [
            (float(IMAGE[i] @ TEXT[j, k]), (IMAGE_KEY[i], TEXT_KEY[j, k]) in said)
            for j, k in texts if start <= j < start + gallery
        ]  # fmt: skip
        found["image_to_text"].append(rank(scores))
    return found


@pytest.mark.parametrize("gallery", [0, 23, 5, 7, 1])
def test_equals_brute_force_with_ties_duplicates_and_a_broken_last_gallery(gallery):
    figures = run(gallery)
    suffix = f"_of_{gallery}" if gallery else ""
    for direction, ranks in brute_force(gallery or PICTURES).items():
        for k in RECALLS:
            figure = figures[f"{direction}_r{k}{suffix}"]
            assert figure.n == len(ranks)
            assert figure.value == pytest.approx(np.mean([rank <= k for rank in ranks])), (direction, k)


def test_neither_the_batch_nor_the_block_size_changes_a_figure(monkeypatch):
    figures = run()
    monkeypatch.setattr(retrieval, "_BLOCK", 100)
    assert run(batch=23) == run(batch=4) == figures


def test_duplicates_count_as_right():
    gallery = np.eye(2, dtype=np.float32)[[0, 0, 1]]
    assert retrieval.ranks(gallery[:1], gallery, np.array([[True, True, False]])) == 1
    assert retrieval.ranks(gallery[:1], gallery, np.array([[True, False, False]])) == 1.5
    assert run()["text_to_image_r1"].value > 0.3  # and the figures are no constants
    assert run()["text_to_image_r1"].value < run()["text_to_image_r10"].value


def test_a_collapsed_model_ends_in_the_middle():
    same = np.ones((8, 4), np.float32) / 2
    np.testing.assert_array_equal(retrieval.ranks(same, same, np.eye(8, dtype=bool)), 1 + 7 / 2)


def test_chance_is_that_of_a_random_order():
    assert chance(np.array([1]), 100, 10)[0] == pytest.approx(0.1)
    assert chance(np.array([5]), 5000, 10)[0] == pytest.approx(1 - math.comb(4995, 10) / math.comb(5000, 10))
    assert chance(np.array([3]), 5, 10)[0] == 1
    orders = np.argsort(RANDOM.random((20_000, 12)), axis=1)
    assert chance(np.array([2]), 12, 5)[0] == pytest.approx((orders[:, :5] < 2).any(axis=1).mean(), abs=0.015)


def test_random_embeddings_reach_their_baseline():
    evaluator = Retrieval("contrastive", gallery=20)
    batch = {
        "image_key": np.arange(400), "text_key": np.arange(2000).reshape(400, 5),
        "text_valid": np.ones((400, 5), bool), "valid": np.ones(400, bool),
    }  # fmt: skip
    evaluator.update({"image_embedding": unit((400, 32)), "text_embedding": unit((400, 5, 32))}, batch, [{}] * 400)
    for figure in evaluator.figures():
        assert figure.value == pytest.approx(figure.baseline, abs=0.08), figure.name


def test_a_gallery_larger_than_the_set_is_an_error():
    with pytest.raises(ConfigError, match=r"tasks.contrastive.gallery: 24 pictures, but the test set has 23"):
        run(24)
    with pytest.raises(ConfigError, match="no picture of the test set has a caption"):
        Retrieval("contrastive").figures()
