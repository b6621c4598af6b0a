"""A json list of objects is the jsonl file of its items."""

import json

import pytest

from mmjax.data.sources import SourceConfig
from mmjax.data.sources.opening import open_source
from mmjax.errors import ConfigError

ITEMS = [
    {"image": "val2014/a.jpg", "caption": ["one", "two"], "image_id": "coco_1"},
    {"image": "val2014/b.jpg", "question": "what?", "question_id": 3, "answer": ["dog"] * 10, "dataset": "vqa"},
    {"image": "val2014/a.jpg", "caption": "three"},
]


def opened(folder, name, text, **options):
    (folder / "val2014").mkdir(exist_ok=True)
    for picture in "ab":
        (folder / "val2014" / f"{picture}.jpg").write_bytes(picture.encode())
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return open_source(SourceConfig(path=str(folder / name), **options), "config.data.train")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_the_jsonl_of_its_items(tmp_path, indent):
    lines = opened(tmp_path, "x.jsonl", "\n".join(map(json.dumps, ITEMS)))
    source = opened(tmp_path, "annotations/x.json", json.dumps(ITEMS, indent=indent))
    assert [source[i] for i in range(len(source))] == [lines[i] for i in range(len(lines))]
    assert source[0]["texts"] == ["one", "two", "three"] and source[1]["qa"][0]["answers"] == ["dog"] * 10
    assert source.left_aside == lines.left_aside == {
        "field 'image_id'": 1, "field 'question_id'": 1, "field 'dataset'": 1,
    }  # fmt: skip
    assert len(opened(tmp_path, "x.json", json.dumps(ITEMS), group=False)) == 3


def test_fields_say_what_other_names_mean(tmp_path):
    items = [{"where": "val2014/a.jpg", "alt": "x", "title": "y"}]
    source = opened(tmp_path, "x.json", json.dumps(items), fields={"image": "where", "text": "alt"})
    assert source.annotations(0) == {"id": "val2014/a.jpg", "texts": ["x"]}
    assert source.left_aside == {"field 'title'": 1}


@pytest.mark.parametrize(
    "item,message",
    [
        (["a.jpg"], r"x.json, row 4: found \['a.jpg'\], expected an object"),
        ({"image": "val2014/a.jpg"}, "x.json, row 4: only an image"),
        ({"image": "val2014/c.jpg", "caption": "x"}, "x.json, row 4: no file 'val2014/c.jpg'"),
        ({"image": "val2014/a.jpg", "caption": ""}, "x.json, row 4: caption: found ''"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, item, message):
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path, "x.json", json.dumps([*ITEMS, item]))
