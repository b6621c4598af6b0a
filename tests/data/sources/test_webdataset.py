"""Tar shards: every sample is what tarfile reads, without reading more than it needs, and nothing is lost silently."""

import io
import json
import os
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmjax.data.ranges import Ranges
from mmjax.data.sources import SourceConfig
from mmjax.data.sources.opening import open_source
from mmjax.data.sources.webdataset import members
from mmjax.errors import ConfigError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(path, files, **options):
    """files: (name, bytes or text) in order."""
    with tarfile.open(path, "w", **options) as tar:
        for name, data in files:
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def opened(path, **options):
    return open_source(SourceConfig(path=str(path), **options), "config.data.train")


def records(source):
    return [source[i] for i in range(len(source))]


def test_samples_are_members_of_one_key(tmp_path):
    write(
        tmp_path / "7.tar",
        [
            ("a.b/1.JPG", b"A"),
            ("a.b/1.txt", "a caption\n"),
            ("2.png", b"B"),
            ("2.json", json.dumps({"caption": ["one", "two"], "url": "x"})),
            ("./3.webp", b"C"),
            ("./3.cls", "5"),
            ("4.0.txt", "first"),
            ("4.10.txt", "third"),
            ("4.2.txt", "second"),
            ("4.jpeg", b"D"),
            ("5.1.png", b"F"),
            ("5.0.png", b"E"),
            ("5.json", json.dumps({"question": "which", "answers": ["x", "y"]})),
        ],
    )
    assert records(opened(tmp_path / "7.tar")) == [
        {"id": "7/a.b/1", "texts": ["a caption"], "image": b"A"},
        {"id": "7/2", "texts": ["one", "two"], "image": b"B"},
        {"id": "7/3", "label": "5", "image": b"C"},
        {"id": "7/4", "texts": ["first", "second", "third"], "image": b"D"},
        {"id": "7/5", "qa": [{"question": "which", "answers": ["x", "y"]}], "image": b"E", "images": [b"E", b"F"]},
    ]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(tmp_path, form):
    rng = random.Random(0)
    names = ["a", "folder/b", "d" * 90 + "/" + "e" * 90, "f" * 96]
    if form != tarfile.USTAR_FORMAT:
        names += ["g" * 101, "h" * 120 + "/" + "i" * 300, "ä" * 80, "日本/語", "j" * 600]
    files = [(f"{name}.jpg", rng.randbytes(rng.choice([0, 1, 511, 512, 513, 5000]))) for name in names]
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as tar:
        tar.add(tmp_path, "here", recursive=False)  # a folder, and links: no files of their own
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5
            tar.addfile(info, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = kind, "k" * 150 if form != tarfile.USTAR_FORMAT else "k"
            tar.addfile(link)
        info = tarfile.TarInfo("last")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"end"))
    ranges = Ranges([tmp_path / "x.tar"])
    found = [(name, ranges.read(0, offset, size)) for name, offset, size in members(tmp_path / "x.tar")]
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert found == [(m.name, tar.extractfile(m).read()) for m in tar if m.isreg()] != []


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_member_above_8_gib_is_passed_over(tmp_path, form):
    big, last = tarfile.TarInfo("big.bin"), tarfile.TarInfo("last.jpg")
    big.size, last.size = 9 << 30, 3
    header = big.tobuf(form)
    with open(tmp_path / "x.tar", "wb") as file:  # sparse: it takes no room
        file.write(header)
        file.seek(len(header) + big.size)
        file.write(last.tobuf(form) + b"end".ljust(512, b"\0"))
    assert list(members(tmp_path / "x.tar")) == [
        ("big.bin", len(header), 9 << 30),
        ("last.jpg", len(header) + (9 << 30) + 512, 3),
    ]


def test_tars_one_after_another_are_read_to_the_end(tmp_path):
    for k in range(2):
        write(tmp_path / f"{k}.tar", [(f"{k}.jpg", b"A"), (f"{k}.txt", "a")])
    (tmp_path / "both.tar").write_bytes((tmp_path / "0.tar").read_bytes() + (tmp_path / "1.tar").read_bytes())
    assert [record["id"] for record in records(opened(tmp_path / "both.tar"))] == ["both/0", "both/1"]


def pair(key):
    return [(f"{key}.jpg", key.encode()), (f"{key}.txt", f"caption {key}")]


def test_shards_follow_one_another_whatever_names_them(tmp_path):
    for k in range(3):
        write(tmp_path / f"{k:03d}.tar", pair("x") + pair(f"y{k}"))
    (tmp_path / "stats.json").write_text("{}")
    ids = ["000/x", "000/y0", "001/x", "001/y1", "002/x", "002/y2"]
    for path in (tmp_path, tmp_path / "{000..002}.tar", f"{tmp_path}/000.tar::{tmp_path}/{{001,002}}.tar"):
        assert [record["id"] for record in records(opened(path))] == ids
    base = open_source(SourceConfig(path="000.tar::{001..002}.tar"), "config.data.train", str(tmp_path))
    assert [base.annotations(i)["texts"][0] for i in range(6)] == [f"caption {i.split('/')[1]}" for i in ids]


def test_annotations_read_no_picture(tmp_path, monkeypatch):
    write(tmp_path / "0.tar", [("a.jpg", b"P" * 1000), ("a.txt", "short")])
    source, read = opened(tmp_path / "0.tar"), []
    monkeypatch.setattr(os, "pread", lambda fd, size, at, pread=os.pread: read.append(size) or pread(fd, size, at))
    assert source.annotations(0) == {"id": "0/a", "texts": ["short"]}
    assert read == [5]
    assert source[0]["image"] == b"P" * 1000


def test_what_is_not_used_is_counted(tmp_path):
    write(
        tmp_path / "0.tar",
        [
            *pair("fine"),
            ("fine.json", '{"url": "x"}'),
            ("fine.seg.png", b"mask"),
            ("dark.jpg", b"A"),
            ("mute.txt", "b"),
            ("empty.jpg", b""),
            ("empty.txt", "c"),
            ("silent.jpg", b"D"),
            ("silent.txt", b""),
            ("README", "about"),
            ("._fine.jpg", b"what macOS adds"),
            ("sound.flac", b"E"),
        ],
    )
    source = opened(tmp_path / "0.tar")
    assert records(source) == [{"id": "0/fine", "texts": ["caption fine"], "image": b"fine"}]
    assert source.left_aside == {
        "'.seg.png' members": 1,
        "'.flac' members": 1,
        "members that belong to no sample": 2,
        "samples without a picture": 3,
        "samples without a caption, json or cls": 2,
        "json beside txt": 1,
    }


def test_fields_name_members_and_keys_of_the_json(tmp_path):
    said = json.dumps({"alt": "from json", "caption": "not this"})
    write(tmp_path / "0.tar", [("a.photo.png", b"A"), ("a.png", b"B"), ("a.txt", "from txt"), ("a.json", said)])
    assert opened(tmp_path / "0.tar")[0] == {"id": "0/a", "texts": ["from txt"], "image": b"B"}
    fields = {"image": "photo.png", "text": "alt"}
    assert opened(tmp_path / "0.tar", fields=fields)[0] == {"id": "0/a", "texts": ["from json"], "image": b"A"}
    with pytest.raises(ConfigError, match=r"fields: the image is 'foto\.png', but no member ends so"):
        opened(tmp_path / "0.tar", fields={"image": "foto.png"})
    with pytest.raises(ConfigError, match=r"fields: found 'txt', expected some of image, text"):
        opened(tmp_path / "0.tar", fields={"txt": "alt"})
    with pytest.raises(ConfigError, match=r"0\.tar, 'a\.json': no 'altt'"):
        opened(tmp_path / "0.tar", fields={"text": "altt"})[0]


def test_conversations_in_the_json_are_messages(tmp_path):
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "this"}]
    write(tmp_path / "0.tar", [("a.png", b"A"), ("a.json", json.dumps({"id": 1, "conversations": turns}))])
    assert opened(tmp_path / "0.tar").annotations(0)["messages"] == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "this"}]},
    ]


def test_a_row_a_line_where_rows_are_not_grouped(tmp_path):
    write(tmp_path / "0.tar", [*pair("a"), ("b.jpg", b"B"), ("b.json", '{"captions": ["one", "two"]}')])
    source = opened(tmp_path / "0.tar", group=False)
    assert [(record["image"], record["texts"]) for record in records(source)] == [
        (b"a", ["caption a"]),
        (b"B", ["one"]),
        (b"B", ["two"]),
    ]
    assert source.annotations(2) == {"id": "0/b", "texts": ["two"]}
    assert source.fingerprint != opened(tmp_path / "0.tar").fingerprint


def test_the_fingerprint_is_that_of_content_and_settings(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        write(folder / "0.tar", pair("a"))
    assert opened(here).fingerprint == opened(there).fingerprint == opened(here / "0.tar").fingerprint
    assert opened(here, fields={"text": "txt"}).fingerprint != opened(here).fingerprint
    write(there / "0.tar", [("a.jpg", b"a"), ("a.txt", "caption b")])
    assert opened(here).fingerprint != opened(there).fingerprint
    assert opened(there)[0]["texts"] == ["caption b"]  # and the index is not the old one


def test_threads_read_what_one_reads(tmp_path, monkeypatch):
    monkeypatch.setattr("mmjax.data.ranges.KEPT_OPEN", 2)
    for k in range(5):
        write(tmp_path / f"{k}.tar", [file for j in range(20) for file in pair(f"{k}-{j}")])
    source = opened(tmp_path)
    order = random.Random(0).choices(range(100), k=2000)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.__getitem__, order)) == [source[i] for i in order]


def test_only_the_end_of_a_shard_may_be_missing(tmp_path):
    whole = write(tmp_path / "whole.tar", pair("a") + pair("b")).read_bytes()
    end = 4 * 1024  # four members of a header and a block
    for cut in (end, end + 512):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        assert len(opened(tmp_path / "cut.tar")) == 2
    for cut in (end - 1, end - 508, end - 512, end - 600, 3000):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(ConfigError, match=r"cut\.tar: ends after \d+ bytes.*cut off; fetch it again"):
            opened(tmp_path / "cut.tar")


def test_what_cannot_be_read_is_named(tmp_path):
    write(tmp_path / "packed.tar.gz", pair("a"))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    for name in ("x.tar.gz", "x.tar"):
        (tmp_path / name).write_bytes(packed.getvalue())
        with pytest.raises(ConfigError, match=r"a packed tar.*unpack it with `gunzip"):
            opened(tmp_path / name)
    damaged = bytearray(write(tmp_path / "damaged.tar", pair("a")).read_bytes())
    damaged[1024 + 5] ^= 1
    (tmp_path / "damaged.tar").write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"damaged\.tar: no tar header at byte 1024.*damaged"):
        opened(tmp_path / "damaged.tar")
    write(tmp_path / "twice.tar", pair("a") + pair("a"))
    with pytest.raises(ConfigError, match=r"holds 'a\.jpg' a second time"):
        opened(tmp_path / "twice.tar")
    write(tmp_path / "json.tar", [("a.jpg", b"A"), ("a.json", "{oops")])
    with pytest.raises(ConfigError, match=r"json\.tar, 'a\.json': not json"):
        opened(tmp_path / "json.tar")[0]
    write(tmp_path / "latin.tar", [("a.jpg", b"A"), ("a.txt", b"caf\xe9")])
    with pytest.raises(ConfigError, match=r"latin\.tar, 'a\.txt': not UTF-8"):
        opened(tmp_path / "latin.tar")[0]
    write(tmp_path / "mute.tar", [("a.jpg", b"A")])
    with pytest.raises(ConfigError, match="no rows.*samples without a caption"):
        opened(tmp_path / "mute.tar")
