"""Bytes at places, of disks and of buckets alike."""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils.epath import backend, gpath
from fsspec.implementations.memory import MemoryFileSystem

from mmjax.data.ranges import Ranges, is_remote, open_binary, path_of, size_of
from mmjax.data.sources import SourceConfig, parquet, tfrecord, webdataset
from mmjax.data.sources.tfrecord import masked_crc32c
from mmjax.errors import ConfigError


class Bucket(MemoryFileSystem):
    """gs:// in memory."""

    store, pseudo_dirs, protocol, cachable = {}, [""], "gs", False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    filesystem = Bucket()
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: filesystem)
    yield filesystem
    Bucket.store.clear()


def test_ranges_of_a_bucket_are_those_of_a_disk(bucket, tmp_path):
    data = bytes(range(256)) * 20
    bucket.pipe("gs://b/folder/x.bin", data)
    (tmp_path / "x.bin").write_bytes(data)
    files = [path_of("gs://b/folder/x.bin"), tmp_path / "x.bin"]
    assert [is_remote(file) for file in files] == [True, False]
    assert [size_of(file) for file in files] == [len(data)] * 2
    ranges = Ranges(files)
    for k in range(2):
        assert ranges.read(k, 300, 40) == data[300:340]
        with open_binary(files[k]) as file:
            assert (file.seek(-5, 2), file.read()) == (len(data) - 5, data[-5:])
        with pytest.raises(ConfigError, match="The file changed while it is in use"):
            ranges.read(k, len(data) - 3, 4)


def test_more_files_than_are_kept_open(tmp_path, monkeypatch):
    monkeypatch.setattr("mmjax.data.ranges.KEPT_OPEN", 2)
    files = [tmp_path / str(k) for k in range(5)]
    for k, file in enumerate(files):
        file.write_bytes(bytes([k]) * 10)
    ranges = Ranges(files)
    assert [ranges.read(k, 3, 2) for k in (0, 4, 1, 2, 3, 4, 0)] == [bytes([k]) * 2 for k in (0, 4, 1, 2, 3, 4, 0)]
    assert len(ranges._kept) == 2


def open_remote(module, path):
    return module.open_source(path_of(path), SourceConfig(path=path), "config.data.train")


def test_every_container_is_read_from_a_bucket(bucket):
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        for name, data in (("a.jpg", b"A"), ("a.txt", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    bucket.pipe("gs://b/tars/0.tar", tar.getvalue())
    for path in ("gs://b/tars", "gs://b/tars/{0..0}.tar", "gs://b/tars/0.tar"):
        assert webdataset.claims(path_of(path), b"")
        assert open_remote(webdataset, path)[0] == {"id": "0/a", "texts": ["x"], "image": b"A"}

    table = io.BytesIO()
    pq.write_table(pa.table({"image": [b"A"], "caption": ["x"]}), table)
    bucket.pipe("gs://b/data/train-00000-of-00001.parquet", table.getvalue())
    for path in ("gs://b/data", "gs://b/data/train-00000-of-00001.parquet"):
        assert open_remote(parquet, path)[0] == {"id": "train-00000-of-00001/0", "texts": ["x"], "image": b"A"}

    def field(number, data):
        return bytes([number << 3 | 2, len(data)]) + data

    features = b""
    for name, value in ((b"image", b"\xff\xd8\xffA"), (b"caption", b"x")):
        features += field(1, field(1, name) + field(2, field(1, field(1, value))))
    record = field(1, features)
    length = len(record).to_bytes(8, "little")
    bucket.pipe("gs://b/records/a.tfrecord", length + masked_crc32c(length).to_bytes(4, "little") + record + bytes(4))
    for path in ("gs://b/records", "gs://b/records/a.tfrecord"):
        source = open_remote(tfrecord, path)
        assert source[0] == {"id": "0", "texts": ["x"], "image": b"\xff\xd8\xffA"}
        assert source.annotations(0) == {"id": "0", "texts": ["x"]}
