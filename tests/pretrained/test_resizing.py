"""Positions are resized as torch does it; new tokens leave the old logits alone."""

from pathlib import Path

import numpy as np
import pytest

from mmjax.pretrained.resizing import add_rows, cubic_weights, resize_positions

GOLDENS = np.load(Path(__file__).parents[1] / "fixtures" / "resized_positions.npz")


@pytest.mark.parametrize("case", [key for key in GOLDENS if "_" in key])
def test_positions_are_those_of_torch(case):
    source, target = case.split("_")
    grid = tuple(map(int, target.split("x")))
    ours = resize_positions(GOLDENS[source], grid)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, GOLDENS[case], atol=1e-5)


def test_the_same_grid_is_left_as_it_is():
    table = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float32)
    np.testing.assert_array_equal(resize_positions(table, (4, 6)), table)


@pytest.mark.parametrize(("old", "new"), [(3, 7), (9, 4), (1, 5), (6, 6)])
def test_each_place_reads_a_share_of_one(old, new):
    np.testing.assert_allclose(cubic_weights(old, new).sum(1), 1, atol=1e-6)


def test_new_rows_are_the_mean_and_old_ones_stay():
    table = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    grown = add_rows(table, 0, 13)
    np.testing.assert_array_equal(grown[:10], table)
    np.testing.assert_allclose(grown[10:], np.broadcast_to(table.mean(0), (3, 4)), rtol=1e-5)
    np.testing.assert_array_equal(add_rows(table.T, 1, 13), grown.T)
