"""Several rows in one sequence: who lies with whom, and the arrays."""

import numpy as np
import pytest

from mmjax.data.lengths import Lengths
from mmjax.data.packing import Packing, pack
from mmjax.errors import ConfigError


def test_every_row_is_packed_once_within_the_budgets():
    sizes = np.random.default_rng(0).integers(0, 60, 500)
    sequences = pack(sizes, 64, rows=6, window=200)
    np.testing.assert_array_equal(np.sort(np.concatenate(sequences)), np.arange(500))
    for rows in sequences:
        assert sizes[rows].sum() <= 64 and len(rows) <= 6
        assert len(set(rows // 200)) == 1 and (np.diff(rows) > 0).all()
    again = pack(sizes, 64, rows=6, window=200)
    assert all(np.array_equal(a, b) for a, b in zip(sequences, again, strict=True))


def test_packing_fills_nearly_all_of_the_budget():
    lengths = np.random.default_rng(0).integers(5, 60, 1000)
    assert lengths.sum() / (128 * len(pack(lengths, 128, rows=32))) > 0.98
    assert sorted(s.tolist() for s in pack(np.array([5, 4, 3, 2]), 7, rows=8)) == [[0, 3], [1, 2]]
    assert len(pack(lengths, 200, rows=6)) == -(-1000 // 6)  # long and short rows together: no place is empty
    assert len(pack(np.ones(12, int), 100, rows=4)) == 3


def packing(longest, tokens=8, rows=3, seed=0):
    longest = np.array(longest, np.int32)
    return Packing("text", Lengths(longest, longest.astype(np.float32), 6), tokens, rows, 9, seed, "config.data.train")


def test_an_epoch_has_each_row_once_in_a_drawn_order_of_sequences():
    made = packing(np.random.default_rng(0).integers(2, 7, 50))
    steps = len(made.rows)  # of a batch of one sequence
    epochs = [[made.rows_at(e * steps + s, 1, 3) for s in range(steps)] for e in range(2)]
    orders = [np.concatenate([rows for rows, _ in epoch]) for epoch in epochs]
    for order, epoch, number in zip(orders, epochs, range(2), strict=True):
        assert sorted(order[order >= 0]) == list(range(50))
        assert all((e == number).all() for _, e in epoch)
    assert not np.array_equal(*orders) and sorted(map(tuple, orders[0])) == sorted(map(tuple, orders[1]))
    assert not np.array_equal(packing(made.lengths.longest, seed=1).rows, made.rows)
    assert made.rows_a_place == 50 / steps


def flat(lengths, valid):
    """Rows apart, as the processor makes them: row r has the ids 10 r, 10 r + 1, ..."""
    ids = np.full((len(lengths), 1, 6), 9, np.int32)
    for row, length in enumerate(lengths):
        ids[row, 0, :length] = 10 * row + np.arange(length)
    mask = np.arange(6) < np.array(lengths)[:, None, None]
    return {
        "text": ids, "text_mask": mask, "text_valid": mask[..., 0], "text_key": np.arange(len(lengths))[:, None],
        "row": np.arange(len(lengths), dtype=np.int32), "valid": np.array(valid),
        "image": ids[:, 0, :2].astype(np.uint8),
    }  # fmt: skip


def test_the_arrays_hold_the_rows_and_an_unreadable_one_leaves_its_place_empty():
    made = packing([3, 4, 2, 6])
    rows = np.array([[0, 1, -1], [2, -1, -1], [3, 2, 0]])  # of the global batch; this process has the first and last
    batch = made.lay(flat([3, 4, 6, 0, 2], [True, True, False, True, True]), rows, np.array([0, 2]))
    assert batch["text"].tolist() == [[0, 1, 2, 10, 11, 12, 13, 9], [40, 41, 9, 9, 9, 9, 9, 9]]
    assert batch["text_segment"].tolist() == [[1, 1, 1, 2, 2, 2, 2, 0], [3, 3, 0, 0, 0, 0, 0, 0]]
    assert batch["valid"].tolist() == [[True, True, False], [False, True, True]]
    assert batch["text_valid"].tolist() == [[True, True, False], [True, False, True]]
    assert batch["row"].tolist() == [[0, 1, 0], [2, 3, 4]] and batch["image"].shape == (2, 3, 2)
    assert batch["text_key"].tolist() == [[0, 1, 0], [2, 3, 4]] and "text_mask" not in batch


def test_padding_is_told_with_and_without():
    assert packing([3, 4, 2, 6, 0], tokens=8).describe(1, 0) == (
        "text packed: 5 rows in 2 sequences of 8 tokens and up to 3 rows: padding 6%, 50% without; 17% of the places "
        "for rows are empty"
    )


def test_a_row_that_fits_no_sequence_is_an_error():
    with pytest.raises(ConfigError, match=r"train.pack_tokens: found 5, but a row has 6 \(row 1\). Expected 6 or more"):
        packing([2, 6, 6], tokens=5)
