"""NLVR: six pictures an example, named for the split; a sentence never parts between training and validation."""

import hashlib
import json
from pathlib import Path

import pytest

from mmjax.data.sources import SourceConfig
from mmjax.data.sources.opening import open_source
from mmjax.data.splits import holdout
from mmjax.errors import ConfigError

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"


def example(identifier, sentence="There is a tower.", label="true", directory="2"):
    item = {"sentence": sentence, "label": label, "identifier": identifier, "directory": directory, "evals": {}}
    return {key: value for key, value in item.items() if value is not None}


def write(folder, items, name="dev.json"):
    for item in items:
        pictures = folder / "images" / item.get("directory", "")
        pictures.mkdir(parents=True, exist_ok=True)
        for order in range(6):
            file = f"{Path(name).stem}-{item.get('identifier')}-{order}.png"
            (pictures / file).write_bytes(file.encode())
    (folder / name).write_text("\n".join(map(json.dumps, items)))
    return folder / name


def opened(path):
    return open_source(SourceConfig(path=str(path)), "config.data.train")


def test_an_example_is_six_rows(tmp_path):
    write(tmp_path, [example("1572-0"), example("1572-1", label="false", directory=None)], "train.json")
    source = opened(tmp_path)  # the folder, through its file
    assert len(source) == 12 and source.left_aside == {"field 'evals'": 2}
    assert source[3] == {
        "id": "2/train-1572-0-3.png",
        "qa": [{"question": "There is a tower.", "answers": ["true"]}],
        "key": "there is a tower",
        "image": b"train-1572-0-3.png",
    }
    assert source[11]["id"] == "train-1572-1-5.png" and source[11]["qa"][0]["answers"] == ["false"]


def test_a_sentence_never_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    items = [example(f"{n}-{k}", f"There are {n % 10} towers" + "." * (n % 2)) for n in range(20) for k in range(2)]
    train, validation = holdout(opened(write(tmp_path, items)), 0.4)
    sides = [
        {one.annotations(i)["qa"][0]["question"].rstrip(".") for i in range(len(one))} for one in (train, validation)
    ]
    assert len(train) + len(validation) == 240 and not sides[0] & sides[1]


def box(*colors):
    return [{"color": color, "x_loc": k} for k, color in enumerate(colors)]


def test_a_drawing_under_two_sentences_keeps_them_together(tmp_path):
    rows = [
        ("a tower", [box("red"), box("blue", "black")]),
        ("a roof", [box("black", "blue")[::-1], box("red")]),  # other boxes: black is first here
        ("a wall", [box("blue", "black")[::-1], box("red")]),  # the first drawing, in another order
        ("a wall", [box("green")]),
        ("a door", [box("green")]),
        ("a gate", None),
    ]
    items = [
        {**example(f"{k}-0", sentence), **({"structured_rep": boxes} if boxes else {})}
        for k, (sentence, boxes) in enumerate(rows)
    ]
    source = opened(write(tmp_path, items))
    assert [source.annotations(6 * k)["key"] for k in range(6)] == ["a tower", "a roof"] + ["a tower"] * 3 + ["a gate"]


@pytest.mark.parametrize(
    "item,message",
    [
        (example("1-0", sentence=""), "dev.json, row 2: sentence: found ''"),
        ({**example("1-0"), "label": True}, "dev.json, row 2: label: found True, expected text"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, item, message):
    with pytest.raises(ConfigError, match=message):
        opened(write(tmp_path, [example("0-0"), item]))


def test_a_missing_order_is_named(tmp_path):
    file = write(tmp_path, [example("0-0")])
    (tmp_path / "images" / "2" / "dev-0-0-4.png").unlink()
    with pytest.raises(ConfigError, match="row 1: no file '2/dev-0-0-4.png'"):
        opened(file)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent: the real set is not read")
def test_the_real_set_is_read_whole():
    source = opened(SHARED / "nlvr" / "dev")
    notes = [source.annotations(i) for i in range(len(source))]
    assert len(notes) == 6 * 989 and len({note["key"] for note in notes}) == 233
    sides = {}
    for i, note in enumerate(notes):
        picture = hashlib.sha256(source[i]["image"]).digest()
        assert sides.setdefault(picture, note["key"]) == note["key"]
    assert sum(note["qa"][0]["answers"] == ["true"] for note in notes) == 6 * 547
    assert source[len(source) - 1]["image"][:4] == b"\x89PNG"
