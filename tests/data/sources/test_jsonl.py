"""jsonl: an object a line; every spelling of captions, questions and labels."""

import json

import pytest

from mmjax.data.sources import SourceConfig
from mmjax.data.sources.opening import open_source
from mmjax.errors import ConfigError


def opened(folder, *items, **options):
    (folder / "a.jpg").write_bytes(b"A")
    text = "\n".join(item if isinstance(item, str) else json.dumps(item) for item in items)
    (folder / "train.jsonl").write_text(text)
    return open_source(SourceConfig(path=str(folder / "train.jsonl"), **options), "config.data.train")


@pytest.mark.parametrize(
    "item,field,value",
    [
        ({"image": "a.jpg", "caption": "x"}, "texts", ["x"]),
        ({"image": "a.jpg", "text": "x"}, "texts", ["x"]),
        ({"file_name": "a.jpg", "captions": ["x", "y"]}, "texts", ["x", "y"]),
        ({"image": "a.jpg", "texts": ["x"]}, "texts", ["x"]),
        ({"image": "a.jpg", "sentences": ["x"]}, "texts", ["x"]),
        ({"image": "a.jpg", "question": "q", "answer": "x"}, "qa", [{"question": "q", "answers": ["x"]}]),
        ({"image": "a.jpg", "question": "q", "answers": ["x", "y"]}, "qa", [{"question": "q", "answers": ["x", "y"]}]),
        (
            {"image": "a.jpg", "question": "q", "answer": 3, "question_id": 7},
            "qa",
            [{"question": "q", "answers": ["3"]}],
        ),
        ({"image": "a.jpg", "label": "x"}, "label", "x"),
    ],
)
def test_every_spelling_is_read(tmp_path, item, field, value):
    assert opened(tmp_path, item)[0] == {"id": "a.jpg", field: value, "image": b"A"}


def test_lines_of_one_picture_are_one_row_unless_told_otherwise(tmp_path):
    items = [{"image": "a.jpg", "caption": "x"}, {"image": "a.jpg", "question": "q", "answer": "y"}]
    assert len(opened(tmp_path, *items)) == 1
    assert opened(tmp_path, *items).annotations(0) == {
        "id": "a.jpg",
        "texts": ["x"],
        "qa": [{"question": "q", "answers": ["y"]}],
    }
    assert len(opened(tmp_path, *items, group=False)) == 2


FINE = {"image": "a.jpg", "caption": "x"}


@pytest.mark.parametrize(
    "item,message",
    [
        ("{oops", "train.jsonl, row 2: not json"),
        ("[1, 2]", "row 2: found a json list"),
        ({"image": "a.jpg", "conversations": []}, r"row 2: only an image in \(image, conversations\)"),
        ({"image": "a.jpg", "caption": ""}, "row 2: caption: found ''"),
        ({"image": "a.jpg", "captions": []}, "row 2: caption: an empty list"),
        ({"image": [], "caption": "x"}, "row 2: image: an empty list"),
        ({"image": "a.jpg", "question": "q", "answers": [{"answer": "x"}]}, "row 2: answer: found"),
        ({"image": "b.jpg", "caption": "x"}, "row 2: no file 'b.jpg'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, item, message):
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path, FINE, item)
