"""Folders: class folders are labels, text files beside the pictures are captions, anything in between is an error."""

import pytest

from mmjax.data.sources import SourceConfig, open_source
from mmjax.errors import ConfigError


def opened(folder, files, **options):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
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


def test_a_list_beside_the_pictures_is_left_aside_only_when_asked(tmp_path):
    files = {"dog/a.jpg": b"A", "cat/b.jpg": b"B", "train.csv": b"image,caption"}
    with pytest.raises(ConfigError, match="format to folder"):
        opened(tmp_path, files)
    assert len(opened(tmp_path, {}, format="folder")) == 2


def test_plain_pictures_have_no_label(tmp_path):
    assert opened(tmp_path / "x", {"a.jpg": b"A", "b.jpg": b"B"}).annotations(1) == {"id": "b.jpg"}
    assert opened(tmp_path / "y", {"all/a.jpg": b"A", "all/b.jpg": b"B"}).annotations(1) == {"id": "all/b.jpg"}


@pytest.mark.parametrize(
    "files,message",
    [
        ({"a.md": b"x"}, "no picture below .* 1 other files such as 'a.md'"),
        ({"a.jpg": b"A", "a.txt": b"x", "b.jpg": b"B"}, "'b.jpg' has none. Expected 'b.txt'"),
        ({"a.jpg": b"A", "a.txt": b"x", "b.txt": b"y"}, "'b.txt' has no picture"),
        ({"a.jpg": b"A", "a.txt": b"\n"}, "'a.txt' is empty"),
        ({"a.jpg": b"A", "a.txt": b"\xff\xfe"}, "'a.txt' is not UTF-8"),
        ({"a.jpg": b""}, "the file 'a.jpg' is empty"),
        ({"a.jpg": b"A", "dog/b.jpg": b"B", "cat/b.jpg": b"B"}, "'a.jpg' is in no class folder"),
        ({"images/a.jpg": b"A", "train.csv": b"image,caption"}, "a folder with train.csv"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, files, message):
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path, files)
