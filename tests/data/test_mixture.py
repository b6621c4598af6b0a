"""Mixtures: exact shares at every step, each source whole in its epochs, and a pure function of the step."""

import numpy as np
import pytest

from mmjax.data.mixture import BLOCK, Mixture
from mmjax.errors import ConfigError


class Rows:
    left_aside = {"blank lines": 2}

    def __init__(self, name, n):
        self.name, self.fingerprint, self.n = name, f"{name}{n}", n

    def __len__(self):
        return self.n

    def annotations(self, i):
        assert 0 <= i < self.n
        return {"id": f"{self.name}{i}"}

    __getitem__ = annotations


def mixture(weights=(0, 0), sizes=(7, 21)):
    sources = {"a": Rows("a", sizes[0]), "b": Rows("b", sizes[1])}
    return Mixture(sources, dict(zip(sources, weights, strict=True)), "config.data.train")


def drawn(mixed, positions, batch, seed=3):
    rows = [mixed.rows_at(step, batch, seed)[0] for step in range(positions // batch)]
    return np.concatenate(rows)


@pytest.mark.parametrize("weights,share", [((0, 0), 0.25), ((1, 1), 0.5), ((9, 1), 0.9), ((1, 2), 1 / 3)])
def test_shares_are_exact_in_every_block_and_at_every_step(weights, share):
    mixed = mixture(weights)
    rows = drawn(mixed, 3 * BLOCK, 50)
    of_a = rows < 7
    for block in of_a.reshape(3, BLOCK):
        assert abs(block.mean() - share) <= 1 / BLOCK
    for examples in (0, 50, 1350, 3000):
        counted = of_a[:examples].mean() if examples else 0.0
        assert mixed.shares(examples, 3)["a"] == pytest.approx(counted)


def test_each_source_shows_all_its_rows_once_an_epoch_in_an_order_of_its_own():
    mixed = mixture((1, 1))
    rows = drawn(mixed, 2 * BLOCK, 100)
    a, b = rows[rows < 7], rows[rows >= 7] - 7
    for part, n in ((a, 7), (b, 21)):
        epochs = part[: n * (len(part) // n)].reshape(-1, n)
        assert (np.sort(epochs) == np.arange(n)).all()
        assert len({tuple(epoch) for epoch in epochs}) > len(epochs) / 2


def test_the_rows_of_a_step_depend_on_the_step_alone():
    mixed = mixture((3, 1))
    whole = drawn(mixed, 1000, 40)
    assert np.array_equal(mixture((3, 1)).rows_at(7, 40, 3)[0], whole[280:320])
    assert not np.array_equal(mixed.rows_at(7, 40, 4)[0], whole[280:320])


def test_rows_are_those_of_the_sources_one_after_the_other():
    mixed = mixture()
    assert len(mixed) == 28
    assert [mixed[i]["id"] for i in (0, 6, 7, 27)] == ["a0", "a6", "b0", "b20"]
    assert mixed.annotations(8)["id"] == "b1"
    assert mixed.span(6) == (0, 7) and mixed.span(7) == (7, 21)
    assert mixed.left_aside == {"a: blank lines": 2, "b: blank lines": 2}
    assert mixed.fingerprint != mixture((1, 1)).fingerprint


@pytest.mark.parametrize("weights,message", [((1, 0), "b.weight: missing"), ((1, 1e-6), "b.weight: below 1 in 1000")])
def test_a_source_without_a_share_is_an_error(weights, message):
    with pytest.raises(ConfigError, match=message):
        mixture(weights)
