"""Which files a path means."""

import re

import pytest

from mmjax.data.sources.shards import of_split, shards, split_of
from mmjax.errors import ConfigError

TAR = re.compile(r"\.tar$")


def found(root, written):
    return [str(file.relative_to(root)) for file in shards(root / written, written, TAR, "config.data.train")]


@pytest.fixture
def root(tmp_path):
    for name in ("a/00.tar", "a/01.tar", "a/02.txt", "a/10.tar", "b/x.tar", "b/y.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    "written,files",
    [
        ("b/x.tar", ["b/x.tar"]),
        ("a", ["a/00.tar", "a/01.tar", "a/10.tar"]),
        ("a/{00..01}.tar", ["a/00.tar", "a/01.tar"]),
        ("{a/01,b/x}.tar", ["a/01.tar", "b/x.tar"]),
        ("a/{0,1}0.tar::b", ["a/00.tar", "a/10.tar", "b/x.tar", "b/y.tar"]),
        ("./a/01.tar::b/{x,y}.tar", ["a/01.tar", "b/x.tar", "b/y.tar"]),
        ("a/{0..1}{0..0}.tar", ["a/00.tar", "a/10.tar"]),
    ],
)
def test_patterns_mean_files_in_order(root, written, files):
    assert found(root, written) == files


def test_numbers_keep_their_width(tmp_path):
    for k in range(8, 12):
        (tmp_path / f"{k:05d}.tar").touch()
    assert found(tmp_path, "{00008..00011}.tar") == ["00008.tar", "00009.tar", "00010.tar", "00011.tar"]


@pytest.mark.parametrize(
    "written,message", [("a/{00..02}.tar", r"no file '.*02\.tar', one of the 3"), ("a/{1..0}.tar", "counts down")]
)
def test_what_is_not_there_is_named(root, written, message):
    with pytest.raises(ConfigError, match=message):
        found(root, written)


@pytest.mark.parametrize(
    "name,split",
    [
        ("train-00000-of-00005.parquet", "train"),
        ("train-00000-of-00001-1a2b3c4d5e6f7a8b.parquet", "train"),
        ("validation_matched-00000-of-00005.parquet", "validation_matched"),
        ("mnist-train.tfrecord-00000-of-00001", "mnist-train"),
        ("coco_val_0003.tar", "val"),
        ("imagenet-train-000000.tar", "train"),
        ("test/0000.parquet", "test"),
        ("00000.tar", ""),
        ("retrained.tar", ""),
    ],
)
def test_a_split_is_what_a_file_is_named_for(tmp_path, name, split):
    assert split_of(tmp_path / name) == split


def test_a_split_is_chosen_and_the_others_are_counted(tmp_path):
    files = [tmp_path / f"{split}-0000{k}-of-00002.parquet" for split in ("test", "train") for k in range(2)]
    assert of_split(files, "", "config.data.train") == (files[2:], {"files of split 'test'": 2})
    assert of_split(files, "test", "config.data.train") == (files[:2], {"files of split 'train'": 2})
    assert of_split(files[:2], "", "config.data.train") == (files[:2], {})
    with pytest.raises(ConfigError, match=r"split: found 'tset', but the files are of: test, train.*'test'"):
        of_split(files, "tset", "config.data.train")
