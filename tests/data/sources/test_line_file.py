"""Large annotation files: indexed, not held; the same source as the one that is read whole."""

import json

import numpy as np
import pytest

from mmjax.data.sources import SourceConfig, line_file
from mmjax.data.sources.opening import open_source
from mmjax.data.sources.pictures import Groups
from mmjax.errors import ConfigError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    for name in "abcd":
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
    return tmp_path


def both(monkeypatch, path, **options):
    """The source of a file, read whole, and indexed in pieces of a few rows."""
    whole = open_source(SourceConfig(path=str(path), **options), "config.data.train")
    for module in ("jsonl", "table"):
        monkeypatch.setattr(f"mmjax.data.sources.{module}.READ_WHOLE", 0)
    monkeypatch.setattr(line_file, "_CHUNK", 150)
    large = open_source(SourceConfig(path=str(path), **options), "config.data.train")
    assert type(large._lines) is line_file.LineFile
    return whole, large


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("end", ["\n", ""])
def test_an_indexed_jsonl_is_the_same_source(folder, monkeypatch, group, end):
    rows = [{"image": f"{'abcd'[i % 3]}.jpg", "caption": f'naïve "image": {i}'} for i in range(20)]
    rows[7]["caption"] = 'with "image": "d.jpg" in it'
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows)) + end)
    whole, large = both(monkeypatch, folder / "x.jsonl", group=group)
    assert len(whole) == len(large) == (3 if group else 20)
    assert [whole[i] for i in range(len(whole))] == [large[i] for i in range(len(large))]


@pytest.mark.parametrize("header", ["image,caption\n", ""])
@pytest.mark.parametrize("group", [True, False])
def test_an_indexed_table_is_the_same_source(folder, monkeypatch, header, group):
    texts = ["plain", '"a, b"', '"two\nlines"', '"a ""quoted"" word"', "été"]
    text = header + "".join(f"{'abcd'[i % 3]}.jpg,{texts[i % 5]}\n" for i in range(25))
    (folder / "x.csv").write_text(text)
    whole, large = both(monkeypatch, folder / "x.csv", group=group)
    assert [whole[i] for i in range(len(whole))] == [large[i] for i in range(len(large))]
    (folder / "y.tsv").write_text("image\ttitle\n" + "".join(f'{"ab"[i % 2]}.jpg\tsaid "{i}\n' for i in range(20)))
    monkeypatch.undo()
    monkeypatch.setenv("MMJAX_CACHE", str(folder / "cache"))
    whole, large = both(monkeypatch, folder / "y.tsv", group=group)
    assert [whole[i] for i in range(len(whole))] == [large[i] for i in range(len(large))]


def test_a_changed_file_is_indexed_anew(folder, monkeypatch):
    file = folder / "x.jsonl"
    file.write_text('{"image": "a.jpg", "caption": "one"}\n' * 3)
    _, large = both(monkeypatch, file, group=False)
    file.write_text('{"image": "b.jpg", "caption": "another"}\n' * 4)
    again = open_source(SourceConfig(path=str(file), group=False), "config.data.train")
    assert len(again) == 4 and again[3]["texts"] == ["another"] and again.fingerprint != large.fingerprint


def test_a_line_that_is_wrong_is_named_when_it_is_read(folder, monkeypatch):
    monkeypatch.setattr("mmjax.data.sources.jsonl.READ_WHOLE", 0)
    monkeypatch.setattr(line_file, "CHECKED", 1)  # the start looks at the first row only
    file = folder / "x.jsonl"
    file.write_text('{"image": "a.jpg", "caption": "one"}\n' * 900 + '{"image": "b.jpg", "caption": 3 4}\n')
    source = open_source(SourceConfig(path=str(file)), "config.data.train")
    assert source.annotations(0)["texts"] == ["one"] * 900
    with pytest.raises(ConfigError, match="x.jsonl, row 901: not json"):
        source[1]


def test_groups_keep_the_order_of_first_appearance():
    keys = np.array([9, 2, 9, 5, 2, 9], np.uint64)
    groups = Groups.of(keys)
    rows = [groups.order[a:b].tolist() for a, b in zip(groups.starts[:-1], groups.starts[1:], strict=True)]
    assert rows == [[0, 2, 5], [1, 4], [3]]
