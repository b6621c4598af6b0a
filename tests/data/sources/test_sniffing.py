"""The format of a path, told by its name and first bytes; what no format reads is named for what it is."""

import json

import pytest

from mmjax.data.sources.json_file import HEAD
from mmjax.data.sources.sniffing import FORMATS, by_name, sniff
from mmjax.errors import ConfigError

WHERE = "config.data.train"


def write(folder, name, content):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


ITEM = {"image": "a.jpg", "caption": "x"}
TURNS = {"image": "a.jpg", "conversations": [{"from": "human", "value": "x"}]}
SENTENCE = {"sentence": "x", "label": "true", "identifier": "1-0", "directory": "1"}
ASKED = {"questions": [{"question_id": 1, "image_id": 1, "question": "x"}]}
COCO = {"info": {}, "images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "x"}]}


@pytest.mark.parametrize(
    "name,content,kind",
    [
        ("x.json", json.dumps(COCO), "coco"),
        ("x.json", json.dumps(COCO, indent=2), "coco"),
        ("x.json", json.dumps({"annotations": COCO["annotations"], "images": COCO["images"]}), "coco"),
        ("x.json", json.dumps(ASKED), "vqav2"),
        ("x.json", json.dumps({"annotations": [{"question_id": 1, "image_id": 2}]}), "vqav2"),
        ("x.json", json.dumps([["what?", "dog", 1]]), "easy_vqa"),
        ("x.json", json.dumps([TURNS], indent=1), "conversations"),
        ("x.jsonl", json.dumps(TURNS), "conversations"),
        ("x.jsonl", json.dumps({"messages": [{"role": "user", "content": "x"}]}), "conversations"),
        ("x.json", json.dumps(SENTENCE), "nlvr"),
        ("x.json", json.dumps([ITEM]), "flat_json"),
        ("x.json", json.dumps([{"image": "a" * 100_000}]), "flat_json"),
        ("x.jsonl", json.dumps(ITEM), "jsonl"),
        ("x.txt", json.dumps(ITEM) + "\n" + json.dumps(ITEM), "jsonl"),
        ("x.csv", "image,caption\n", "csv"),
        ("x.tsv", "\ufeffa.jpg\t[a] caption", "csv"),
        ("x.tar", b"\0" * 1024, "webdataset"),
        ("x.parquet", b"PAR1", "parquet"),
        ("x.tfrecord-00000-of-00001", b"\0" * 8, "tfrecord"),
        ("d/questions.json", json.dumps([["what?", "dog", 1]]), "easy_vqa"),
        ("d/questions.json", json.dumps(ASKED), "vqav2"),
        ("d/annotations/captions_val2017.json", json.dumps(COCO), "coco"),
        ("d/00000.tar", b"\0" * 1024, "webdataset"),
        ("d/cat/a.jpg", b"A", "folder"),
        ("d/dataset_info.json", "{}", "tfds"),
        ("d/meta.json", '{"mmjax packed": 1}', "packed"),
    ],
)
def test_a_path_tells_its_format(tmp_path, name, content, kind):
    path = write(tmp_path, name, content)
    path = tmp_path / "d" if name.startswith("d/") else path
    assert {sniff(path, WHERE)[0].NAME, by_name(kind, path, WHERE).NAME} == {kind}


def test_formats_have_a_name_each_and_ask_without_fail(tmp_path):
    assert len({kind.NAME for kind in FORMATS}) == len(FORMATS)
    odd = [
        b"",
        b"[",
        b"{",
        b'{"',
        b"[[",
        b"[{",
        b'{"a":[{',
        b"}",
        b"\xff\xfe",
        b"\0" * 600,
        b'"',
        b"PK\3\4",
        b"\xef\xbb\xbf",
    ]
    (tmp_path / "empty").mkdir()
    for kind in FORMATS:
        for path in (tmp_path / "x", tmp_path / "x.json", tmp_path / "x.tar", tmp_path / "empty", tmp_path):
            for head in odd:
                assert kind.claims(path, head) in (True, False)


def test_a_pattern_of_shards_is_no_missing_file(tmp_path):
    write(tmp_path, "00000.tar", b"\0" * 1024)
    assert sniff(tmp_path / "{00000..00003}.tar", WHERE)[0].NAME == "webdataset"
    assert sniff(tmp_path / "00000.tar::more" / "00001.tar", WHERE)[0].NAME == "webdataset"


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("x.csv", "", "the file .*x.csv' is empty"),
        ("x.csv", " \n", "the file .*x.csv' is empty"),
        ("x.tar", "version https://git-lfs.github.com/spec/v1\n", "the pointer of Git LFS to a file. Fetch"),
        ("x.xlsx", b"PK\3\4\0\0", "a zip archive, or a spreadsheet. Unpack it, or save"),
        ("x.csv.gz", b"\x1f\x8b\x08abc", "compressed by gzip. Unpack it"),
        ("x.jpg", b"\xff\xd8\xff\xe0", "is one picture. Set it to the folder"),
        ("x.mp4", b"\0\0\0\x18ftyp", "is video, and none of .*csv, folder"),
        ("x.dat", b"\0\1\2", "is not a text file, and none of .*csv, folder"),
        ("x.json", '{"info": {}, "data": [1]}\n{', None),
        ("x.json", '{\n"info": {},\n"data": [1]}', r"is json with \(info, data\)"),
        ("x.json", "[1, 2]", r"begins with b'\[1, 2\]'"),
    ],
)
def test_what_no_format_reads_is_named(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    if message is None:  # a whole object in the first line: jsonl, which names what is wrong below
        assert sniff(path, WHERE)[0].NAME == "jsonl"
        return
    with pytest.raises(ConfigError, match=message):
        sniff(path, WHERE)


def test_a_missing_path_proposes_its_neighbour(tmp_path):
    write(tmp_path, "train.csv", "image,caption\n")
    with pytest.raises(ConfigError, match="no file or folder .*trian.csv'. Did you mean 'train.csv'"):
        sniff(tmp_path / "trian.csv", WHERE)
    with pytest.raises(ConfigError, match="There is no folder .*set config.data.root"):
        sniff(tmp_path / "x" / "train.csv", WHERE)


@pytest.mark.parametrize(
    "format,name,message",
    [
        ("josnl", "x.jsonl", "found 'josnl', expected auto or one of .*Did you mean 'jsonl'"),
        ("csv", "d", "found 'csv', but .*d' is a folder that looks like folder"),
        ("coco", "x.jsonl", "found 'coco', but .* is a file that looks like jsonl"),
        ("folder", "x.jsonl", "is a file that looks like jsonl"),
        ("csv", "x.jsonl", "found 'csv', but .* is a file that looks like jsonl"),
        ("csv", "x.nope", "no file or folder"),
        ("folder", "x.zip", "is a zip archive"),
    ],
)
def test_a_forced_format_must_be_possible(tmp_path, format, name, message):
    write(tmp_path, "x.jsonl", json.dumps(ITEM))
    write(tmp_path, "x.zip", b"PK\3\4\0\0")
    (tmp_path / "d").mkdir()
    with pytest.raises(ConfigError, match=message):
        by_name(format, tmp_path / name, WHERE)


def test_a_more_general_format_can_be_forced(tmp_path):
    assert by_name("jsonl", write(tmp_path, "x.jsonl", json.dumps(SENTENCE)), WHERE).NAME == "jsonl"
    write(tmp_path, "d/annotations/captions_val.json", json.dumps(COCO))
    assert by_name("folder", tmp_path / "d", WHERE).NAME == "folder"


def test_a_format_that_cannot_be_told_can_be_forced(tmp_path):
    path = write(tmp_path, "x.json", '{"info": "' + "x" * HEAD + '", "images": []}')
    with pytest.raises(ConfigError, match="is json with"):
        sniff(path, WHERE)
    assert by_name("coco", path, WHERE).NAME == "coco"
