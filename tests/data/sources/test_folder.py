"""Folders: a list is opened; class folders are labels, texts beside pictures captions; anything in between is wrong."""

import json

import pytest

from mmjax.data.sources import SourceConfig
from mmjax.data.sources.opening import open_source
from mmjax.errors import ConfigError


def opened(folder, files, **options):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_source(SourceConfig(path=str(folder), **options), "config.data.train")


def test_class_folders_are_labels(tmp_path):
    source = opened(tmp_path, {"dog/b.jpg": b"B", "cat/x/a.PNG": b"A", ".hidden/c.jpg": b"C"})
    assert [source[i] for i in range(len(source))] == [
        {"id": "cat/x/a.PNG", "label": "cat", "image": b"A"},
        {"id": "dog/b.jpg", "label": "dog", "image": b"B"},
    ]


def test_texts_pair_by_the_whole_relative_path(tmp_path):
    files = {"p/1.png": b"P", "q/1.png": b"Q", "p/1.txt": b"one\n\n two \n", "q/1.txt": "drei €".encode()}
    source = opened(tmp_path, files)
    assert [source.annotations(i) for i in range(2)] == [
        {"id": "p/1.png", "texts": ["one", "two"]},
        {"id": "q/1.png", "texts": ["drei €"]},
    ]
    lines = opened(tmp_path, {}, group=False)
    assert [lines[i]["texts"] for i in range(len(lines))] == [["one"], ["two"], ["drei €"]]
    assert lines.fingerprint != source.fingerprint
    assert opened(tmp_path, {"p/1.txt": b"one\n\n twu \n"}).fingerprint != source.fingerprint


def test_a_folder_is_opened_through_its_one_list(tmp_path):
    pictures = {"images/a.jpg": b"A", "images/b.jpg": b"B"}
    source = opened(tmp_path / "x", {**pictures, "train.csv": b"image,caption\na.jpg,one\n"})
    assert [source[i] for i in range(len(source))] == [{"id": "a.jpg", "texts": ["one"], "image": b"A"}]
    nested = {
        "train2017/a.jpg": b"A",
        "annotations/list.json": json.dumps([{"image": "train2017/a.jpg", "caption": "x"}]),
    }
    assert opened(tmp_path / "y", nested)[0] == {"id": "train2017/a.jpg", "texts": ["x"], "image": b"A"}
    hub = {"a.jpg": b"A", "metadata.jsonl": b'{"file_name": "a.jpg", "text": "x", "more": 1}'}  # imagefolder
    assert opened(tmp_path / "z", hub)[0] == {"id": "a.jpg", "texts": ["x"], "image": b"A"}
    renamed = {"a.jpg": b"A", "metadata.jsonl": b'{"file_name": "a.jpg", "alt": "x"}'}
    assert opened(tmp_path / "w", renamed, fields={"text": "alt"})[0]["texts"] == ["x"]


def test_of_several_lists_one_is_chosen(tmp_path):
    files = {"dog/a.jpg": b"A", "cat/b.jpg": b"B", "train.csv": b"image,caption", "annotations/dev.jsonl": b"{}"}
    with pytest.raises(ConfigError, match="annotations/dev.jsonl, train.csv. Set .*path to .*format to folder"):
        opened(tmp_path / "x", files)
    plain = opened(tmp_path / "x", {}, format="folder")
    assert [plain.annotations(i)["label"] for i in range(2)] == ["cat", "dog"]
    assert plain.left_aside == {"'.csv' files": 1, "'.jsonl' files": 1}
    with pytest.raises(
        ConfigError, match=r"with deep/train/list.csv. Set config.data.train.path to the one to open\.$"
    ):
        opened(tmp_path / "y", {"deep/train/list.csv": b"image,caption", "deep/dev/readme.json": b"[1]"})


def test_json_about_one_picture_or_about_none_is_no_list(tmp_path):
    files = {"1.jpg": b"A", "1.txt": b"one", "1.json": b'{"image": "x", "caption": "one"}', "classes.json": b'["a"]'}
    source = opened(tmp_path, files)
    assert source[0] == {"id": "1.jpg", "texts": ["one"], "image": b"A"}
    assert source.left_aside == {"'.json' files": 2}


def test_case_of_extensions_does_not_matter(tmp_path):
    assert opened(tmp_path, {"a.JPG": b"A", "a.TXT": b"one"})[0] == {"id": "a.JPG", "texts": ["one"], "image": b"A"}


def test_plain_pictures_have_no_label(tmp_path):
    assert opened(tmp_path / "x", {"a.jpg": b"A", "b.jpg": b"B"}).annotations(1) == {"id": "b.jpg"}
    assert opened(tmp_path / "y", {"all/a.jpg": b"A", "all/b.jpg": b"B"}).annotations(1) == {"id": "all/b.jpg"}


@pytest.mark.parametrize(
    "files,message",
    [
        ({"a.md": b"x"}, "no picture below .* 1 .md files"),
        ({"a.wav": b"x", "b.wav": b"x", "c.mov": b"y"}, r"2 .wav files \(sound\), 1 .mov files \(video\)"),
        ({}, "which holds no file"),
        ({"train/a.jpg": b"A", "test/b.jpg": b"B"}, r"holds splits \(test, train\), not classes"),
        (
            {"train/cat/a.jpg": b"A", "train/dog/b.jpg": b"B"},
            r"holds splits \(train\), not classes. Set it to '.*train'",
        ),
        ({"a.jpg": b"A", "a.txt": b"x", "b.jpg": b"B"}, "'b.jpg' has none. Expected 'b.txt'"),
        ({"a.jpg": b"A", "a.txt": b"x", "b.txt": b"y"}, "'b.txt' has no picture"),
        ({"a.jpg": b"A", "a.txt": b"\n"}, "'a.txt' is empty"),
        ({"a.jpg": b"A", "a.txt": b"\xff\xfe"}, "'a.txt' is not UTF-8"),
        ({"a.jpg": b""}, "the file 'a.jpg' is empty"),
        ({"a.jpg": b"A", "dog/b.jpg": b"B", "cat/b.jpg": b"B"}, "'a.jpg' is in no class folder"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, files, message):
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path, files)
