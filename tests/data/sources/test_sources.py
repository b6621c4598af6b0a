"""Opening, sniffing, subsets and holding out; and the real sets, counted, where they are at hand."""

from pathlib import Path

import numpy as np
import pytest

from mmjax.data.sources import SourceConfig, Subset
from mmjax.data.sources.opening import open_source
from mmjax.errors import ConfigError

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"


class Pictures:
    """A source in memory: `contents` are the bytes of its pictures."""

    name, fingerprint, left_aside = "pictures", "0", {}

    def __init__(self, contents):
        self.contents = contents

    def __len__(self):
        return len(self.contents)

    def __getitem__(self, i):
        return {"id": str(i), "image": self.contents[i]}

    def annotations(self, i):
        return {"id": str(i)}


def test_a_subset_is_a_view():
    source = Pictures([b"a", b"b", b"c"])
    view = Subset(source, np.array([2, 0]))
    assert len(view) == 2 and view[0] == source[2] and view.annotations(1) == source.annotations(0)
    assert len({source.fingerprint, view.fingerprint, Subset(source, np.array([0, 2])).fingerprint}) == 3
    with pytest.raises(IndexError):
        Subset(source, np.array([3]))


@pytest.mark.parametrize(
    "name,text,options,message",
    [
        ("x.csv", "image,caption\n", {"path": ""}, r"config\.data\.train\.path: empty"),
        ("train.csv", "", {"path": "trian.csv"}, "no file or folder .*Did you mean 'train.csv'"),
        ("x.json", '{"images": [\n1]}', {}, r"is json with \(images\)"),
        ("x.json", '[{"image": "a.jpg"}]', {}, "x.json, row 1: only an image"),
        ("x.csv", '{"image": "a.jpg"}', {"format": "csv"}, "looks like jsonl"),
        ("x.csv", "image,caption\n", {"format": "folder"}, "is a file that looks like csv"),
        ("x.csv", "image,caption\n", {"split": "test"}, "csv has no splits"),
        ("x.parquet", "PAR1\0\0", {}, "not readable as parquet"),
    ],
)
def test_what_cannot_be_opened_says_what_it_looks_like(tmp_path, name, text, options, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        open_source(SourceConfig(**{"path": name, **options}), "config.data.train", str(tmp_path))


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent: the real sets are not read")
@pytest.mark.parametrize(
    "path,rows,texts,questions,labels",
    [
        ("flickr8k/train.csv", 6000, 30000, 0, 0),
        ("flickr8k/dev.csv", 1000, 5000, 0, 0),
        ("flickr8k_native/captions.tsv", 200, 1000, 0, 0),
        ("easy_vqa/train", 4000, 0, 38575, 0),
        ("daquar/train.jsonl", 794, 0, 6795, 0),
        ("cifar10/train", 5000, 0, 0, 10),
    ],
)
def test_real_sets_are_read_whole(path, rows, texts, questions, labels):
    source = open_source(SourceConfig(path=path), "config.data.train", str(SHARED))
    notes = [source.annotations(i) for i in range(len(source))]
    assert len(notes) == len({note["id"] for note in notes}) == rows
    assert sum(len(note.get("texts", [])) for note in notes) == texts
    assert sum(len(note.get("qa", [])) for note in notes) == questions
    assert len({note["label"] for note in notes if "label" in note}) == labels
    assert source[rows - 1]["image"][:2] in (b"\xff\xd8", b"\x89P")
