"""json one thing at a time is what json.loads gives; its first bytes tell what it is, wherever they are cut off."""

import json
import random
import time

import pytest

from mmjax.data.sources.json_file import entries, first_keys, is_list, objects, outline
from mmjax.errors import ConfigError


def anything(rng, depth):
    simple = [None, True, 3, -1.5e3, "", 'a "quoted" \\ text', "€\n", "{[,:]}"]
    if depth == 0 or rng.random() < 0.4:
        return rng.choice(simple)
    items = [anything(rng, depth - 1) for _ in range(rng.randrange(4))]
    return items if rng.random() < 0.5 else {f"k{i} \"'": item for i, item in enumerate(items)}


@pytest.mark.parametrize("indent", [None, 1])
def test_entries_are_what_json_loads(tmp_path, indent):
    rng = random.Random(0)
    file = tmp_path / "x.json"
    for _ in range(200):
        value = anything(rng, 4)
        if not isinstance(value, (list, dict)):
            continue
        file.write_text("\ufeff" + json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
        found = list(entries(file, "x"))
        if isinstance(value, list):
            assert found == [("", item) for item in value]
        else:
            pairs = ([(k, item) for item in v] if isinstance(v, list) else [(k, v)] for k, v in value.items())
            assert found == [pair for some in pairs for pair in some]


@pytest.mark.parametrize("text", ["", "x", '"x"', "[1, 2", "[1 2]", "[1,]", '{"a" 1}', '{"a": 1', '{"a": 1} {"b": 2}'])
def test_what_is_no_json_is_named(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json: .* Expected a list\."):
        list(entries(tmp_path / "x.json", "a list"))


def test_a_list_of_objects_and_an_object_a_line_are_the_same(tmp_path):
    items = [{"a": 1}, {"b": "two\nlines"}]
    (tmp_path / "x.json").write_text(json.dumps(items, indent=2))
    (tmp_path / "x.jsonl").write_text("\n\n".join(map(json.dumps, items)))
    listed, lines = (list(objects(tmp_path / name, "objects")) for name in ("x.json", "x.jsonl"))
    assert [item for _, _, item in listed] == [item for _, _, item in lines] == items
    assert [at for _, at, _ in listed] == ["x.json, row 1", "x.json, row 2"]
    assert [row for row, _, _ in lines] == [1, 3]
    assert is_list(tmp_path / "x.json") and not is_list(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n[1]')
    with pytest.raises(ConfigError, match=r"x\.jsonl, row 2: found \[1\], expected objects"):
        list(objects(tmp_path / "x.jsonl", "objects"))


@pytest.mark.parametrize(
    "text,expected",
    [
        ('{"info": {"x": 1}, "images": [{"id": 1, "b": {"c": [{"d": 2}]}}, {"e": 3}], "n": 4}',
         {"info": (), "images": ("id", "b"), "n": ()}),
        ('[{"image": "a:b", "turns": [{"from": 1}]}, {"other": 1}]', {"": ("image", "turns")}),
        ('{"a": 1}\n{"b": 2}', {"a": ()}),
        ("[[1, 2]]", {}),
        ("image,caption\n", {}),
        ('"a"', {}),
        ("", {}),
    ],
)  # fmt: skip
def test_the_outline_of_a_file(text, expected):
    assert outline(text.encode()) == expected
    for end in range(len(text)):  # cut off anywhere, it knows no more, and what it knows is so
        for key, keys in outline(text[:end].encode()).items():
            assert key in expected and keys == expected[key][: len(keys)]
    assert first_keys(b'[{"a": 1, "b": 2}]') == first_keys(b'{"a": 1, "b": 2}\n{"c": 1}') == ("a", "b")


def test_a_long_text_that_is_cut_off_takes_no_time():
    start = time.process_time()
    assert outline(b'{"a": "' + b'\\"x' * 20_000) == {"a": ()}
    assert time.process_time() - start < 2  # by the naive pattern: 19 s
