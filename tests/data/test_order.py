"""The row order: a permutation, a new one for each epoch and seed, and without leftover order."""

import time

import numpy as np
import pytest

from mmjax.data.order import permute, row_keys, rows_at, uniforms

GOLDEN = [1170, 4603, 3463, 1718, 3990, 798, 2865, 30]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 17, 100, 1023, 1024, 1025, 6000, 65537])
def test_each_row_comes_exactly_once_an_epoch(n):
    for seed, epoch in ((0, 0), (1, 3), (-5, 2**33)):
        assert np.array_equal(np.sort(permute(np.arange(n), n, seed, np.full(n, epoch))), np.arange(n))


def test_one_position_is_permuted_as_it_is_within_the_whole():
    whole = permute(np.arange(1000), 1000, 7, 2)
    assert [int(permute(np.array([i]), 1000, 7, 2)[0]) for i in (0, 1, 500, 999)] == whole[[0, 1, 500, 999]].tolist()


def test_epochs_and_seeds_give_unrelated_orders():
    n = 4000
    orders = [permute(np.arange(n), n, seed, epoch) for seed in range(4) for epoch in range(4)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(n)
            assert np.sum(first == second) < 8  # Poisson of mean 1


@pytest.mark.parametrize("n", [500, 4096, 10_007])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_no_order_is_left(n, seed):
    x = permute(np.arange(n), n, seed, 0)
    bound = 5 / np.sqrt(n)
    assert abs(np.corrcoef(x, np.arange(n))[0, 1]) < bound
    for lag in (1, 2, 3, int(np.sqrt(n)), int(np.sqrt(n)) + 1, n // 2):
        assert abs(np.corrcoef(x[lag:], x[:-lag])[0, 1]) < 5 / np.sqrt(n - lag)
        near = np.abs(x[lag:] - x[:-lag]) == 1  # neighbours of the source that are `lag` apart in the order: 2 expected
        assert near.sum() < 12
    step = np.bincount((np.diff(x) % n) * 16 // n, minlength=16)  # differences spread evenly over the circle
    assert ((step - n / 16) ** 2 / (n / 16)).sum() < 45  # chi-square of 15 degrees: above 45 once in 10,000


def test_small_sets_take_every_order_equally_often():
    orders, counts = np.unique([permute(np.arange(4), 4, 3, e) for e in range(4800)], axis=0, return_counts=True)
    assert len(orders) == 24
    assert counts.min() > 130 and counts.max() < 280  # 200 expected, standard deviation 14


def test_rows_at_follows_the_global_index_across_epochs():
    n, batch = 10, 4
    rows = np.concatenate([rows_at(s, batch, n, 5)[0] for s in range(5)])
    epochs = np.concatenate([rows_at(s, batch, n, 5)[1] for s in range(5)])
    assert epochs.tolist() == [0] * 10 + [1] * 10
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()


def test_order_is_golden():
    """Old runs must resume on the same rows: a change here is a change of the checkpoint's meaning."""
    assert rows_at(3, 8, 6000, 0)[0].tolist() == GOLDEN


def test_uniforms_are_uniform_and_unrelated():
    keys = row_keys(0, np.repeat(np.arange(10), 1000), np.tile(np.arange(1000), 10))
    assert len(np.unique(keys)) == 10_000
    u = uniforms(keys, 1, 3)
    assert u.min() >= 0 and u.max() < 1
    counts = np.histogram(u[:, 0], 20, (0, 1))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 50
    assert np.abs(np.corrcoef(np.concatenate([u, uniforms(keys, 2, 3)], 1).T) - np.eye(6)).max() < 0.05
    assert np.array_equal(uniforms(keys[5:6], 1, 3), u[5:6])  # a row's numbers do not depend on its batch


def test_a_million_rows_take_less_than_a_second():
    index = np.arange(500_000)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        permute(index, 123_456_789, 0, 1)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.5
