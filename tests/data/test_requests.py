"""What is to be predicted: sets as for training, pictures alone, questions without answers."""

import json

import pytest

from mmjax.data.requests import open_requests
from mmjax.errors import ConfigError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        (tmp_path / "images" / f"{name}.png").write_bytes(name.encode())
    return tmp_path


def opened(path, root=""):
    source = open_requests(str(path), root, "--input")
    return [source.annotations(i) for i in range(len(source))], source


def test_questions_without_answers(folder):
    rows = [{"file_name": f"{name}.png", "question": f"what is {name}?", "user": 3} for name in "ab"]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    records, source = opened(folder / "q.jsonl")
    assert records[1] == {"id": "b.png", "qa": [{"question": "what is b?", "answers": []}]}
    assert source[1]["image"] == b"b"  # images/ is found beside the list
    (folder / "q.tsv").write_text("image\tquestion\na.png\twhat, here?\n")
    assert opened(folder / "q.tsv")[0] == [{"id": "a.png", "qa": [{"question": "what, here?", "answers": []}]}]


def test_pictures_alone_and_one_that_is_missing(folder):
    (folder / "plain.csv").write_text("filepath\na.png\nabsent.png\n")
    records, source = opened(folder / "plain.csv", str(folder / "images"))
    assert records == [{"id": "a.png"}, {"id": "absent.png"}] and source[0]["image"] == b"a"
    with pytest.raises(FileNotFoundError):
        source[1]


def test_sets_with_answers_and_folders_are_read_as_for_training(folder):
    (folder / "qa.csv").write_text("image,question,answer\na.png,what?,this\na.png,where?,here\nabsent.png,is it?,no\n")
    records, _ = opened(folder / "qa.csv")
    assert [len(r["qa"]) for r in records] == [2, 1] and records[0]["qa"][1]["answers"] == ["here"]
    assert [r["id"] for r in opened(folder / "images")[0]] == ["a.png", "b.png"]


def test_rows_that_differ_are_named(folder):
    (folder / "q.jsonl").write_text('{"image": "a.png", "question": "what?"}\n{"image": "b.png"}\n')
    with pytest.raises(ConfigError, match="q.jsonl, row 2: has .image.*expected image and question"):
        opened(folder / "q.jsonl")
    (folder / "q.jsonl").write_text('{"image": "a.png"}\n{"image"')
    with pytest.raises(ConfigError, match="q.jsonl, row 2: not JSON"):
        opened(folder / "q.jsonl")
