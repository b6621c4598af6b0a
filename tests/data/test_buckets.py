"""Batches of like lengths: each row once an epoch, few lengths, nothing cut that is real."""

import numpy as np
import pytest

from mmjax.data import order
from mmjax.data.buckets import WINDOW, Buckets
from mmjax.data.lengths import Lengths
from mmjax.errors import ConfigError

N, BATCH = WINDOW * 4 * 3, 4  # three windows an epoch
LONGEST = np.random.default_rng(0).integers(3, 33, N).astype(np.int32)


def buckets(given=(8, 16)):
    lengths = Lengths(LONGEST, LONGEST.astype(np.float32), 32)
    return Buckets("text", lengths, given, lambda step, batch, seed: order.rows_at(step, batch, N, seed), "c.buckets")


def test_every_row_comes_once_an_epoch_wherever_reading_begins():
    made = buckets()
    epoch = [made.rows_at(step, BATCH, 1)[0] for step in range(WINDOW * 3)]
    assert sorted(np.concatenate(epoch)) == list(range(N))
    for step in (40, 3, 17):
        np.testing.assert_array_equal(buckets().rows_at(step, BATCH, 1)[0], epoch[step])
    assert (made.rows_at(WINDOW * 3, BATCH, 1)[1] == 1).all()


def test_batches_are_of_like_lengths_in_no_order_of_length():
    made = buckets()
    lengths = [LONGEST[made.rows_at(step, BATCH, 1)[0]] for step in range(WINDOW)]
    assert np.mean([np.ptp(batch) for batch in lengths]) < 4 < np.ptp(LONGEST)
    most = [batch.max() for batch in lengths]
    assert most != sorted(most)
    found = {made.bucket(made.rows_at(step, BATCH, 1)[0]) for step in range(WINDOW)}
    assert found == {8, 16, 32} and made.shapes == 3


def test_the_length_is_that_of_the_global_batch_on_every_process():
    made = buckets()
    for rows in (np.array([0, 1]), np.argsort(LONGEST)[:2]):
        wide = {"text": np.zeros((1, 2, 32), int), "text_mask": np.zeros((1, 2, 32), bool), "image": np.zeros((1, 32))}
        cut = made.lay(wide, rows, np.array([1]))
        length = next(b for b in (8, 16, 32) if b >= LONGEST[rows].max())
        assert cut["text"].shape == cut["text_mask"].shape == (1, 2, length) and cut["image"].shape == (1, 32)


def test_padding_is_told_with_and_without():
    text = buckets().describe(BATCH, 1)
    assert text.startswith("text in buckets of 8, 16, 32 tokens: padding ")
    with_them, without = (int(word[:-1]) for word in text.replace(",", "").split() if word.endswith("%"))
    assert with_them < 30 and abs(without - 100 * (1 - LONGEST.mean() / 32)) < 2


@pytest.mark.parametrize("given", [(16, 8), (8, 32), (2, 8), (8, 8)])
def test_buckets_that_make_no_sense_are_errors(given):
    with pytest.raises(ConfigError, match=r"c.buckets: found .* expected ascending lengths from 3 to below 32"):
        buckets(given)
