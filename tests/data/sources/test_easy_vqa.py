"""easy_vqa: the folder and its json file are the same source."""

import json

import pytest

from mmjax.data.sources import SourceConfig
from mmjax.data.sources.opening import open_source
from mmjax.errors import ConfigError


def write(folder, entries):
    (folder / "images").mkdir(exist_ok=True)
    for name in "37":
        (folder / "images" / f"{name}.png").write_bytes(name.encode())
    (folder / "questions.json").write_text(json.dumps(entries))


def opened(path, **options):
    return open_source(SourceConfig(path=str(path), **options), "config.data.train")


def test_folder_and_file_are_the_same_source(tmp_path):
    write(tmp_path, [["what?", "circle", 7], ["is it?", "yes", 3], ["color?", "red", 7]])
    source = opened(tmp_path)
    assert [source[i]["id"] for i in range(len(source))] == ["7.png", "3.png"]
    assert source[0]["qa"] == [{"question": "what?", "answers": ["circle"]}, {"question": "color?", "answers": ["red"]}]
    assert source[1]["image"] == b"3"
    assert opened(tmp_path / "questions.json").fingerprint == source.fingerprint
    assert len(opened(tmp_path, group=False)) == 3


@pytest.mark.parametrize(
    "entries,message",
    [
        ([["what?", "circle", 7], ["what?", 3]], "questions.json, row 2: found"),
        ([["what?", "circle", 9]], "questions.json, row 1: no file '9.png'"),
        ([[1, 2, 3]], "questions.json, row 1: found"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, entries, message):
    write(tmp_path, entries)
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path)
