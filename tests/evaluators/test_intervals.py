import numpy as np

from mmjax.evaluators import intervals
from mmjax.evaluators.intervals import bootstrap_interval


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
    monkeypatch.setattr(intervals, "_CELLS", 1000)
    assert bootstrap_interval(scores) == whole
    assert bootstrap_interval(scores, seed=1) != whole
