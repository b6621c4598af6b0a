"""Choices: texts of a row are drawn without replacement; equal texts and files have equal keys; sides are found."""

import numpy as np
import pytest

from mmjax.data.choices import TEXT, bytes_key, names_a_side, pick, text_key
from mmjax.data.order import row_keys


def test_texts_are_drawn_without_replacement_by_a_rows_own_key():
    options, keys = [["a", "b", "c"], ["d"], [], ["e", "f"]] * 50, row_keys(0, np.zeros(200, np.int64), np.arange(200))
    taken, valid = pick(options, keys, TEXT, 2, True, "")
    assert valid[:4].tolist() == [[True, True], [True, False], [False, False], [True, True]]
    for row, of in zip(taken, options, strict=True):
        said = [text for text in row if text]
        assert len(row) == 2 and len(said) == min(len(of), 2) == len({*said} & {*of})
    assert {row[0] for row in taken[::4]} == {"a", "b", "c"}
    alone, _ = pick(options[8:9], keys[8:9], TEXT, 2, True, "")
    assert alone[0] == taken[8]
    assert pick(options, keys, TEXT, 2, False, "")[0][:2] == [["a", "b"], ["d", ""]]


def test_keys_tell_texts_and_files_apart():
    assert text_key("A dog ") == text_key("a  DOG") != text_key("a cat")
    assert bytes_key(b"A") == bytes_key(b"A") != bytes_key(b"a")
    made = [text_key(str(i)) for i in range(1000)]
    assert len({*made}) == 1000
    assert -(2**31) <= min(made) < 0 < max(made) < 2**31


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the LEFT one", True),
        ("right-hand side", True),
        ("leftmost", True),
        ("a bright light", False),
        ("copyright", False),
    ],
)
def test_only_words_for_sides_forbid_a_flip(text, expected):
    assert names_a_side({"texts": ["x", text]}) is expected
    assert names_a_side({"qa": [{"question": "where?", "answers": ["x", text]}]}) is expected
    assert names_a_side({"qa": [{"question": text, "answers": []}]}) is expected
