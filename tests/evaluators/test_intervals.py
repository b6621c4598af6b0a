import itertools
import math
import time

import numpy as np
import pytest

from mmjax.evaluators import intervals
from mmjax.evaluators.intervals import bootstrap_interval, mcnemar, swap_test


def test_equals_the_normal_interval_of_a_share():
    hits = np.arange(2000) % 10 < 3
    half = 1.96 * np.sqrt(0.3 * 0.7 / 2000)
    np.testing.assert_allclose(bootstrap_interval(hits), (0.3 - half, 0.3 + half), atol=0.003)


def test_whole_clusters_are_drawn():
    # Ten equal answers a picture say no more than one: the interval is that of 100 rows, not of 1,000.
    one = np.arange(100) % 2
    ten, picture = np.repeat(one, 10), np.repeat(np.arange(100), 10)
    width = np.diff(bootstrap_interval(ten, clusters=picture))
    np.testing.assert_allclose(width, np.diff(bootstrap_interval(one)), atol=0.02)
    np.testing.assert_allclose(width / np.diff(bootstrap_interval(ten)), np.sqrt(10), rtol=0.15)


def test_a_ratio_of_sums_weighs_rows():
    random = np.random.default_rng(0)
    weights = random.integers(1, 9, 500)
    low, high = bootstrap_interval(2.5 * weights, weights)
    np.testing.assert_allclose((low, high), 2.5)
    picked = [random.choice(500, 500) for _ in range(2000)]
    scores = weights * random.random(500)
    by_hand = np.quantile([scores[p].sum() / weights[p].sum() for p in picked], [0.025, 0.975])
    np.testing.assert_allclose(bootstrap_interval(scores, weights), by_hand, atol=0.004)


def test_the_seed_fixes_it_whatever_the_block_size(monkeypatch):
    scores = np.random.default_rng(0).random(300)
    whole = bootstrap_interval(scores)
    monkeypatch.setattr(intervals, "_CELLS", 30_000)
    assert bootstrap_interval(scores) == whole
    assert bootstrap_interval(scores, seed=1) != whole


def test_mcnemar_is_the_binomial_tail_of_the_rows_that_changed():
    before, after = np.zeros(30), np.zeros(30)
    after[:9], before[9:11], before[20:], after[20:] = 1, 1, 1, 1  # 9 gained, 2 lost, 10 right both times
    tail = sum(math.comb(11, k) for k in range(9, 12)) / 2**11
    assert mcnemar(before, after) == pytest.approx(2 * tail)
    assert mcnemar(before, before) == 1


def test_the_swap_test_agrees_with_all_signs_counted():
    difference = np.array([0.5, 1.0, -0.2, 0.7, 0.1, 0.9, -0.4, 0.3, 0.6, 0.2])
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    exact = np.mean(np.abs(signs @ difference) >= abs(difference.sum()) - 1e-12)
    assert swap_test(difference) == pytest.approx(exact, abs=0.006)
    right_or_wrong = np.r_[np.ones(9), -np.ones(2), np.zeros(50)]
    assert swap_test(right_or_wrong) == pytest.approx(mcnemar(right_or_wrong < 0, right_or_wrong > 0), abs=0.008)
    assert swap_test(np.zeros(5)) == 1 and 0 < swap_test(np.ones(100)) < 2e-4


def test_intervals_of_many_rows_take_no_longer_than_a_blink():
    hits = np.random.default_rng(0).random(200_000) < 0.3
    begun = time.process_time()
    bootstrap_interval(hits, clusters=np.arange(200_000) // 5)
    assert time.process_time() - begun < 1


def test_many_different_rows_have_the_normal_interval_too():
    scores = np.random.default_rng(0).exponential(size=30_000)
    half = 1.96 * scores.std() / np.sqrt(30_000)
    np.testing.assert_allclose(
        bootstrap_interval(scores), (scores.mean() - half, scores.mean() + half), atol=0.1 * half
    )
