"""Holding out by picture, and pictures that are on both sides."""

import numpy as np
import pytest

from mmjax.data.sources import Subset
from mmjax.data.splits import contents, holdout, overlap
from mmjax.errors import ConfigError


class Pictures:
    """A source in memory: `contents` are the bytes of its pictures; a key may bind rows together."""

    left_aside = {}

    def __init__(self, contents, keys=None):
        self.contents, self.keys = contents, keys
        self.name, self.fingerprint = "pictures", repr((contents, keys))

    def __len__(self):
        return len(self.contents)

    def __getitem__(self, i):
        return {**self.annotations(i), "image": self.contents[i]}

    def annotations(self, i):
        return {"id": str(i), **({"key": self.keys[i]} if self.keys else {})}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path))


def test_holdout_is_a_partition_that_keeps_its_sides():
    contents = [f"picture {i}".encode() for i in range(1000)]
    train, validation = holdout(Pictures(contents), 0.2, seed=1)
    assert sorted([*train.rows, *validation.rows]) == list(range(1000))
    assert abs(len(validation) - 200) < 60
    # Rows that are added, or another order, move nobody.
    more = Pictures([b"new", *contents[::-1]])
    held = {more.contents[i] for i in holdout(more, 0.2, seed=1)[1].rows} - {b"new"}
    assert held == {contents[i] for i in validation.rows}
    assert set(holdout(Pictures(contents), 0.2, seed=2)[1].rows) != set(validation.rows)


def test_identical_pictures_are_held_out_together():
    contents = [f"picture {i % 50}".encode() for i in range(150)]
    train, validation = holdout(Pictures(contents), 0.3)
    assert not {contents[i] for i in train.rows} & {contents[i] for i in validation.rows}


def test_rows_of_one_key_are_held_out_together():
    keys = [f"sentence {i // 6}" for i in range(300)]
    train, validation = holdout(Pictures([f"{i}".encode() for i in range(300)], keys), 0.3)
    assert not {keys[i] for i in train.rows} & {keys[i] for i in validation.rows}


def test_holding_out_everything_or_nothing_is_an_error():
    with pytest.raises(ConfigError, match="leaves"):
        holdout(Pictures([b"a"]), 0.5)
    with pytest.raises(ConfigError, match="share of 1.5"):
        holdout(Pictures([b"a"]), 1.5)


def test_contents_are_read_once(monkeypatch):
    source = Pictures([b"a", b"b", b"a"])
    first = contents(source)
    assert first[0] == first[2] != first[1]
    monkeypatch.setattr(Pictures, "__getitem__", lambda *_: pytest.fail("read again"))
    assert np.array_equal(contents(source), first)
    assert np.array_equal(contents(Subset(source, np.array([2, 1]))), first[[2, 1]])


def test_pictures_on_both_sides_are_counted_and_named():
    said = []
    train, other = Pictures([b"a", b"b", b"c"]), Pictures([b"x", b"c", b"a", b"a"])
    assert overlap({"main": train}, {"dev": other}, said.append) == {("main", "dev"): 3}
    assert "3 of 4 rows" in said[0] and "'1', '2', '3'" in said[0]
    assert overlap({"main": train}, {"dev": Pictures([b"x"])}, said.append) == {("main", "dev"): 0}
    assert len(said) == 1
