"""TFRecord files are read as TensorFlow reads them, without TensorFlow."""

import os
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from mmjax.data.ranges import Ranges
from mmjax.data.sources import SourceConfig
from mmjax.data.sources.opening import open_source
from mmjax.data.sources.tfrecord import TfRecords, parse_example
from mmjax.errors import ConfigError

JPEG = b"\xff\xd8\xff"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path_factory.mktemp("cache")))


def example(**features):
    """Features by name, "__" for "/"."""

    def feature(value):
        values = value if isinstance(value, list) else [value]
        values = [v.encode() if isinstance(v, str) else v for v in values]
        if values and isinstance(values[0], float):
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        if values and isinstance(values[0], int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    made = {name.replace("__", "/"): feature(value) for name, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=made))


def write(path, *examples):
    with tf.io.TFRecordWriter(str(path)) as file:
        for one in examples:
            file.write(one if isinstance(one, bytes) else one.SerializeToString())
    return path


def opened(path, **options):
    return open_source(SourceConfig(path=str(path), **options), "config.data.train")


def parsed(data):
    """By protobuf."""
    found = {}
    for name, feature in tf.train.Example.FromString(data).features.feature.items():
        kind = feature.WhichOneof("kind")
        if kind:
            found[name] = list(getattr(feature, kind).value)
    return found


def test_examples_are_parsed_as_protobuf_parses_them():
    rng = random.Random(0)
    for _ in range(100):
        features = {
            "bytes": [rng.randbytes(rng.choice([0, 1, 127, 128, 300])) for _ in range(rng.randrange(4))],
            "floats": [rng.uniform(-1e6, 1e6) for _ in range(rng.randrange(1, 200))],
            "ints": [rng.choice([0, 1, -1, 127, 128, 2**62, -(2**63), 2**63 - 1]) for _ in range(rng.randrange(1, 9))],
            "empty": [],
            "ä" * rng.randrange(1, 90): "text",
        }
        data = example(**features).SerializeToString()
        mine, theirs = parse_example(data, "here"), parsed(data)
        assert mine == theirs


def test_numbers_that_are_not_packed_are_read():
    # Int64List {1, -2} and FloatList {1.5}, each value with its own tag, as old writers have them
    ints = b"\x08\x01" + b"\x08" + b"\xfe" + b"\xff" * 8 + b"\x01"
    floats = b"\x0d" + struct.pack("<f", 1.5)
    data = b""
    for name, kind, values in ((b"i", 3, ints), (b"f", 2, floats)):
        feature = bytes([kind << 3 | 2, len(values)]) + values
        entry = b"\x0a\x01" + name + b"\x12" + bytes([len(feature)]) + feature
        data += b"\x0a" + bytes([len(entry)]) + entry
    data = b"\x0a" + bytes([len(data)]) + data
    assert parse_example(data, "here") == parsed(data) == {"i": [1, -2], "f": [1.5]}


def test_a_record_without_its_picture_parses_to_the_rest(tmp_path):
    rng = random.Random(1)
    records = []
    for _ in range(50):
        names = ["image", *rng.sample(["a", "caption", "zoo", "height", "jpeg"], rng.randrange(1, 5))]
        values = {name: name * rng.choice([1, 40, 3000]) for name in names}
        records.append(example(**values | {"image": JPEG + rng.randbytes(rng.choice([1, 120, 20_000]))}))
    path = write(tmp_path / "a.tfrecord", *records)
    mine = TfRecords([path], "image")
    for i, record in enumerate(records):
        data, hole = mine.told(i)
        whole = parsed(record.SerializeToString())
        picture = whole.pop("image")[0]
        rest = parse_example(data, "here", hole=hole)
        assert rest.pop("image") == []
        assert rest == whole and len(data) <= record.ByteSize() - len(picture)
        assert mine.whole(i) == record.SerializeToString()


def test_usual_names_are_found(tmp_path):
    made = {
        "image__encoded": JPEG + b"A",
        "image__filename": "a.jpg",
        "image__height": 3,
        "id": "the id",
        "image__class__label": 7,
        "image__class__text": "otter",
        "image__captions": ["one", "two"],
    }
    source = opened(write(tmp_path / "a.tfrecord", example(**made)))
    assert source[0] == {"id": "the id", "texts": ["one", "two"], "label": "otter", "image": JPEG + b"A"}
    assert source.annotations(0) == {"id": "the id", "texts": ["one", "two"], "label": "otter"}
    assert source.left_aside == {
        "feature 'image/class/label'": 1,
        "feature 'image/filename'": 1,
        "feature 'image/height'": 1,
    }


@pytest.mark.parametrize(
    "features,said",
    [
        ({"caption": "x"}, {"texts": ["x"]}),
        ({"captions__text": ["x", "y"], "captions__id": [1, 2]}, {"texts": ["x", "y"]}),
        ({"text": "x", "label": 3}, {"texts": ["x"], "label": "3"}),
        ({"question": "q", "answers": ["x", "y"]}, {"qa": [{"question": "q", "answers": ["x", "y"]}]}),
        (
            {"questions": ["q", "r"], "answers": ["x", "y"]},
            {"qa": [{"question": "q", "answers": ["x"]}, {"question": "r", "answers": ["y"]}]},
        ),
        ({"label": "x", "id": "abc"}, {"label": "x", "id": "abc"}),
    ],
)
def test_every_shape_of_what_is_said_is_read(tmp_path, features, said):
    source = opened(write(tmp_path / "a.tfrecord", example(image=JPEG, **features)))
    assert source[0] == {"id": "0", "image": JPEG} | said


def test_fields_go_before_the_names(tmp_path):
    path = write(tmp_path / "a.tfrecord", example(image=JPEG, jpg_left=JPEG + b"B", caption="x", alt="y"))
    fields = {"image": "jpg_left", "text": "alt"}
    assert opened(path, fields=fields)[0] == {"id": "0", "texts": ["y"], "image": JPEG + b"B"}


def test_several_pictures_of_a_record_come_in_order(tmp_path):
    source = opened(write(tmp_path / "a.tfrecord", example(images=[JPEG + b"A", JPEG + b"B"], caption="x")))
    assert source[0]["images"] == [JPEG + b"A", JPEG + b"B"] and source[0]["image"] == JPEG + b"A"


def test_a_folder_holds_a_split_a_name(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for k in range(2):
            rows = [example(image=JPEG, caption=f"{split} {k} {j}") for j in range(count)]
            write(tmp_path / f"{split}-0000{k}-of-00002.tfrecord", *rows)
    assert [opened(tmp_path).annotations(i)["texts"] for i in range(6)] == [
        [f"train {k} {j}"] for k in range(2) for j in range(3)
    ]
    assert opened(tmp_path).left_aside == {"files of split 'test'": 2}
    assert len(opened(tmp_path / "test-{00000..00001}-of-00002.tfrecord")) == 4


def test_annotations_read_no_picture(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tfrecord", example(image=JPEG + b"P" * 5000, caption="x", zoo="y"))
    source, read = opened(path), []
    monkeypatch.setattr(Ranges, "read", lambda *at, read_=Ranges.read: read.append(at[-1]) or read_(*at))
    assert source.annotations(0) == {"id": "0", "texts": ["x"]}
    assert 0 < sum(read) < 100


def test_records_without_a_picture_are_left_aside(tmp_path):
    path = write(tmp_path / "a.tfrecord", *(example(image=data, caption=str(data)) for data in (JPEG, b"", [], JPEG)))
    source = opened(path)
    assert len(source) == 2 and source.left_aside == {"records without a picture": 2}


def test_damage_is_named(tmp_path):
    whole = write(tmp_path / "a.tfrecord", *(example(image=JPEG, caption=str(k)) for k in range(3))).read_bytes()
    length = struct.unpack_from("<Q", whole)[0] + 16
    for cut in (len(whole) - 1, 2 * length + 5):
        (tmp_path / "a.tfrecord").write_bytes(whole[:cut])
        with pytest.raises(ConfigError, match=r"a\.tfrecord: ends after \d+ bytes, amid a record"):
            opened(tmp_path / "a.tfrecord")
    (tmp_path / "a.tfrecord").write_bytes(whole[:length] + b"\x01" + whole[length + 1 :])
    with pytest.raises(ConfigError, match=rf"no record begins at byte {length} \(wrong checksum\)"):
        opened(tmp_path / "a.tfrecord")
    with tf.io.TFRecordWriter(str(tmp_path / "z.tfrecord"), "GZIP") as file:
        file.write(example(image=JPEG, caption="x").SerializeToString())
    with pytest.raises(ConfigError, match=r"z\.tfrecord: gzip.*gunzip"):
        opened(tmp_path / "z.tfrecord")
    write(tmp_path / "b.tfrecord", b"no example")
    with pytest.raises(ConfigError, match="no tf.train.Example"):
        opened(tmp_path / "b.tfrecord")
    write(tmp_path / "c.tfrecord", example(image=np.zeros(12, np.uint8).tobytes(), caption="x"))
    with pytest.raises(ConfigError, match=r"no picture in any of the features \(caption, image\)"):
        opened(tmp_path / "c.tfrecord")


def test_no_tensorflow_is_imported(tmp_path):
    path = write(tmp_path / "a.tfrecord", example(image=JPEG, caption="x"))
    code = (
        "import sys; from mmjax.data.sources import SourceConfig; from mmjax.data.sources.opening import open_source;"
        f"open_source(SourceConfig(path={str(path)!r}), 'config.data.train')[0];"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ}).returncode == 0
