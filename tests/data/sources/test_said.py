"""What rows say, in the shapes of public sets."""

import pytest

from mmjax.data.sources.said import meanings, said, strings
from mmjax.errors import ConfigError


@pytest.mark.parametrize(
    "value,texts",
    [
        (None, []),
        ("", []),
        (" x\n", ["x"]),
        ("ä".encode(), ["ä"]),
        (3, ["3"]),
        (["x", None, "", "y"], ["x", "y"]),
        ([{"raw": "x", "tokens": ["x"]}], ["x"]),
        ({"text": ["x", "y"], "id": [1, 2]}, ["x", "y"]),
    ],
)
def test_texts_are_found_in_a_value(value, texts):
    assert strings(value, "here") == texts


@pytest.mark.parametrize("value,message", [(b"\xff", "not UTF-8"), ({"words": "x"}, r"object of \(words\)")])
def test_what_is_no_text_is_named(value, message):
    with pytest.raises(ConfigError, match=f"row 3: .*{message}"):
        strings(value, "row 3")


def test_labels_are_classes():
    assert said({"label": 1}, "here", ["cat", "dog"]) == {"label": "dog"}
    assert said({"label": -1}, "here", ["cat", "dog"]) == {}
    assert said({"label": [1, 0]}, "here", ["cat", "dog"]) == {"labels": ["dog", "cat"]}
    assert said({"label": 1}, "here") == {"label": "1"}
    with pytest.raises(ConfigError, match="row 3: label 2, expected the number of a class below 2"):
        said({"label": 2}, "row 3", ["cat", "dog"])


def test_questions_have_their_answers():
    assert said({"question": "q", "answer": None}, "here") == {}  # a test set
    assert said({"question": ["q"], "answer": ["x", "y"]}, "here")["qa"] == [{"question": "q", "answers": ["x", "y"]}]
    with pytest.raises(ConfigError, match="row 3: 2 questions"):
        said({"question": ["q", "r"], "answer": ["x"]}, "row 3")


def test_names_beside_a_picture_are_left_aside():
    names = ["image", "file_name", "caption", "url"]
    assert meanings(names, "image", "here", {}) == ({"text": "caption"}, ("file_name", "url"))
    assert meanings(["jpg", "messages", "caption"], "jpg", "here", {}) == ({"messages": "messages"}, ("caption",))
    with pytest.raises(ConfigError, match="here: only an image"):
        meanings(["image", "url"], "image", "here", {})
