"""TFRecord files of tf.train.Examples: one, a folder of them, or a pattern; TensorFlow is not needed.

The places of the records, and of the picture in each, are read once, into an index. Features are found by the usual
names (`image/encoded`, `image/text`, `image/class/text`, `captions/text`, and those of `fields.NAMES`) or by `fields`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmjax.data.index import content_hash, index, parallel
from mmjax.data.ranges import Ranges, is_remote
from mmjax.data.sources import Record, Source, SourceConfig
from mmjax.data.sources.fields import NAMES
from mmjax.data.sources.said import LineByLine, meanings, said, strings
from mmjax.data.sources.shards import in_folder, of_split, shards
from mmjax.errors import ConfigError

NAME = "tfrecord"
ENDING = re.compile(r"\.tfrec(ord)?s?\b")
# What writers of Examples call things, before the names that everybody uses (`fields.NAMES`); the first that is there.
USUAL: Mapping[str, tuple[str, ...]] = {
    "text": ("image/text", "image/caption", "image/captions", "captions/text", "caption/text"),
    "question": ("questions", "image/question"),
    "answer": ("image/answer", "image/answers", "answers/answer"),
    "label": ("image/class/text", "image/class/label", "image/label"),
}
PICTURES = ("image/encoded", "image_raw", "image_bytes", "encoded_image", "jpg", "jpeg", "png", *NAMES["image"])
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM")
NO_HOLE = (0, 0)


def claims(path: Path, head: bytes) -> bool:
    """A name with .tfrecord in it, or a folder of them that TensorFlow Datasets does not describe."""
    if ENDING.search(path.name):
        return True
    return not head and bool(in_folder(path, ENDING)) and not (path / "dataset_info.json").exists()


def open_source(path: Path, config: SourceConfig, where: str) -> Source:
    """Opens TFRecord files."""
    if config.root:
        raise ConfigError(f"{where}.root: found '{config.root}', but TFRecord files hold their pictures. Leave it out.")
    files, left_aside = of_split(shards(path, config.path, ENDING, where), config.split, where)
    first = _first_record(files[0])
    picture = config.fields.get("image") or next((name for name in PICTURES if _is_picture(first.get(name))), "")
    if not _is_picture(first.get(picture)):
        raise ConfigError(
            f"{where}.path: no picture in {_shown(picture, first)} of {files[0].name}. Expected the bytes of a jpeg, "
            "png, webp, gif or bmp file in image/encoded or image; for another name set fields={'image': '...'}."
        )
    records = TfRecords(files, picture)
    identity = f"tfrecord {sorted(config.fields.items())} {content_hash(files)}"
    source = ExampleSource(
        path.name, records, picture, records.names, config.fields, identity, left_aside=left_aside | records.left_aside
    )
    return source if config.group else LineByLine(source)


def usual(names: Collection[str], fields: Mapping[str, str]) -> dict[str, str]:
    """`fields`, with what is found by the names in USUAL."""
    found = {what: next((name for name in known if name in names), "") for what, known in USUAL.items()}
    return {what: name for what, name in found.items() if name} | dict(fields)


def _first_record(file: Path) -> dict[str, list[Any]]:
    for offset, length in _records(file):
        return parse_example(Ranges([file]).read(0, offset, length), str(file))
    raise ConfigError(f"{file}: no records. Expected a TFRecord file of tf.train.Examples.")


def _is_picture(value: list[Any] | None) -> bool:
    return bool(value) and isinstance(value[0], bytes) and value[0].startswith(_MAGIC)


def _shown(picture: str, example: Mapping[str, list[Any]]) -> str:
    if picture in example:
        return f"'{picture}', which begins with {example[picture][:1]!r:.40},"
    return (
        f"'{picture}', which is not one " if picture else "any "
    ) + f"of the features ({', '.join(sorted(example))})"


class Records(Protocol):
    """Serialized Examples at random, safe in threads."""

    def __len__(self) -> int: ...
    def whole(self, i: int) -> bytes: ...

    def told(self, i: int) -> tuple[bytes, tuple[int, int]]:
        """Record i without the picture, and the hole (where, how many bytes) that this leaves, for `parse_example`."""
        ...


class ExampleSource:
    """Examples that hold a picture each, as a Source.

    Args:
      names: of all features.
      identity: of the content and of the settings.
      classes: {feature: names of the classes}, where a label is a number.
      many: features that are lists, of labels, even of one.
    """

    def __init__(
        self,
        name: str,
        records: Records,
        picture: str,
        names: Collection[str],
        fields: Mapping[str, str],
        identity: str,
        *,
        classes: Mapping[str, Sequence[str]] = {},  # noqa: B006
        many: Collection[str] = (),
        left_aside: Mapping[str, int] = {},  # noqa: B006
    ):
        self.name, self._records, self._picture = name, records, picture
        self._meanings, unused = meanings(sorted(names), picture, name, usual(names, fields))
        label = self._meanings.get("label", "")
        self._classes, self._single = classes.get(label, ()), ("question",) if label in many else ("question", "label")
        self._wanted = frozenset(self._meanings.values()) | {"id"}
        unused = {f"feature '{unknown}'": len(records) for unknown in unused if unknown not in self._wanted}
        self.left_aside = {**left_aside, **unused}
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._records)

    def annotations(self, i: int) -> Record:
        data, hole = self._records.told(i)
        return self._record(i, parse_example(data, self._at(i), self._wanted, hole))

    def __getitem__(self, i: int) -> Record:
        example = parse_example(self._records.whole(i), self._at(i), self._wanted | {self._picture})
        pictures = example.get(self._picture, [])
        record = self._record(i, example, max(1, len(pictures)))
        if pictures:
            record["image"] = pictures[0]
        if len(pictures) > 1:
            record["images"] = pictures
        return record

    def _at(self, i: int) -> str:
        return f"{self.name}, record {i}"

    def _record(self, i: int, example: dict[str, list[Any]], pictures: int = 1) -> Record:
        item: dict[str, Any] = {what: example[name] for what, name in self._meanings.items() if name in example}
        for what in self._single:
            if len(item.get(what, ())) == 1:
                item[what] = item[what][0]
        name = strings(example["id"], self._at(i)) if example.get("id") else []
        return {"id": name[0] if name else str(i), **said(item, self._at(i), self._classes, pictures)}


class TfRecords:
    """The records of TFRecord files that have a picture, through an index of their places.

    Attributes:
      names: of all features in them.
      left_aside: see `Source`.
    """

    def __init__(self, files: Sequence[Path], picture: str):
        self._ranges, self._index = Ranges(files), _indexed(files, picture)
        self._rows = np.flatnonzero(self._index["hole"] > 2)  # an empty value takes two bytes
        without = len(self._index["hole"]) - len(self._rows)
        self.left_aside = {"records without a picture": without} if without else {}
        self.names: list[str] = json.loads(self._index["names"].tobytes())

    def __len__(self) -> int:
        return len(self._rows)

    def _place(self, i: int) -> tuple[int, ...]:
        row = self._rows[i]
        return tuple(int(self._index[name][row]) for name in ("file", "offset", "length", "hole_at", "hole"))

    def whole(self, i: int) -> bytes:
        file, offset, length, _, _ = self._place(i)
        return self._ranges.read(file, offset, length)

    def told(self, i: int) -> tuple[bytes, tuple[int, int]]:
        file, offset, length, at, hole = self._place(i)
        before = self._ranges.read(file, offset, at)
        return before + self._ranges.read(file, offset + at + hole, length - at - hole), (at, hole)


def _indexed(files: Sequence[Path], picture: str) -> dict[str, np.ndarray]:
    def build() -> dict[str, np.ndarray]:
        parts = parallel(_places, [(file, picture) for file in files], "index of the TFRecord files", unit="file")
        table = np.concatenate([table for table, _ in parts])
        names = sorted({name for _, names in parts for name in names})
        numbers = np.repeat(np.arange(len(files), dtype=np.int32), [len(table) for table, _ in parts])
        columns = dict(zip(("offset", "length", "hole_at", "hole"), table.T, strict=True))
        return {"file": numbers, **columns, "names": np.frombuffer(json.dumps(names).encode(), np.uint8)}

    return index(f"tfrecord 1 {picture}", files, build)


def _places(item: tuple[Path, str]) -> tuple[np.ndarray, set[str]]:
    """-> [records, 4] int64: where a record begins, its bytes, where in it the picture begins, its bytes; all names."""
    file, picture = item
    rows, names = [], set()
    with _mapped(file) as data:
        for offset, length in _records(file, data):
            at = hole = 0
            with _named(f"{file}, byte {offset}"):
                for name, _, begin, end in _features(data, offset, offset + length, NO_HOLE):
                    names.add(name)
                    if name == picture:
                        at, hole = begin - offset, end - begin
            rows.append((offset, length, at, hole))
    return np.array(rows, np.int64).reshape(-1, 4), names


@contextlib.contextmanager
def _mapped(file: Path) -> Iterator[bytes | mmap.mmap]:
    """The bytes of a file; of a local one only the pages that are touched are read."""
    if is_remote(file) or not os.path.getsize(file):
        yield file.read_bytes()
        return
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _records(file: Path, data: bytes | mmap.mmap | None = None) -> Iterator[tuple[int, int]]:
    """(where its bytes begin, how many) of each record; the checksum of each length is verified."""
    if data is None:
        with _mapped(file) as data:
            yield from _records(file, data)
        return
    at, end = 0, len(data)
    if data[:2] == b"\x1f\x8b":
        raise ConfigError(
            f"{file}: gzip, which has no random access. Expected an uncompressed TFRecord file; unpack it with gunzip."
        )
    while at < end:
        if at + 12 > end:
            raise ConfigError(f"{file}: ends after {end} bytes, amid a record. It was cut off; fetch it again.")
        length, checksum = struct.unpack_from("<QI", data, at)
        if masked_crc32c(data[at : at + 8]) != checksum:
            what = "The file is damaged; fetch it again." if at else "Expected a TFRecord file."
            raise ConfigError(f"{file}: no record begins at byte {at} (wrong checksum). {what}")
        if at + 16 + length > end:
            raise ConfigError(f"{file}: ends after {end} bytes, amid a record. It was cut off; fetch it again.")
        yield at + 12, length
        at += 16 + length


def _table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [c >> 1 ^ (0x82F63B78 if c & 1 else 0) for c in table]
    return table


_CRC = _table()


def masked_crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), rotated and moved as TFRecord has it (tensorflow/core/lib/hash/crc32c.h)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def parse_example(
    data: bytes, at: str, wanted: Collection[str] | None = None, hole: tuple[int, int] = NO_HOLE
) -> dict[str, list[Any]]:
    """A serialized tf.train.Example -> {feature: its bytes, floats or integers}.

    Args:
      at: the record, for messages.
      wanted: the features that are read; None reads all.
      hole: (where, how many bytes) of the record are cut out of `data`: the values of one feature, which is then empty.
    """
    with _named(at):
        return {
            name: _values(data, kind, begin, end)
            for name, kind, begin, end in _features(data, 0, len(data), hole)
            if wanted is None or name in wanted
        }


@contextlib.contextmanager
def _named(at: str) -> Iterator[None]:
    try:
        yield
    except (IndexError, KeyError, ValueError) as error:
        raise ConfigError(f"{at}: no tf.train.Example ({error}). Expected only those.") from None


# tensorflow/core/example/feature.proto: Example.features = 1; Features.feature = 1, a map (key = 1, value = 2);
# Feature.{bytes_list = 1, float_list = 2, int64_list = 3}, each with value = 1.


def _features(data: Any, begin: int, end: int, hole: tuple[int, int]) -> Iterator[tuple[str, int, int, int]]:
    """(name, kind of list, where the list begins and ends) of each feature of an Example."""
    for _, *features in _fields(data, begin, end, hole):
        for _, *feature in _fields(data, *features, hole):
            entry = {number: place for number, *place in _fields(data, *feature, hole)}
            name = data[slice(*entry[1])].decode()
            for kind, *values in _fields(data, *entry.get(2, (0, 0)), hole):
                yield name, kind, *values


def _fields(data: Any, at: int, end: int, hole: tuple[int, int]) -> Iterator[tuple[int, int, int]]:
    """(number, where its content begins and ends) of each field of a protobuf message."""
    while at < end:
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 2:
            length, begin = _varint(data, at)
            at = begin + length - (hole[1] if begin <= hole[0] < begin + length else 0)
        elif wire == 0:
            begin, at = at, _varint(data, at)[1]
        elif wire in (1, 5):
            begin, at = at, at + (8 if wire == 1 else 4)
        else:
            raise ValueError(f"wire type {wire}")
        if at > end:
            raise ValueError("a field goes on beyond its message")
        yield tag >> 3, begin, at


def _varint(data: Any, at: int) -> tuple[int, int]:
    value, shift, byte = 0, 0, data[at]
    while byte >= 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        byte = data[at]
    return value | byte << shift, at + 1


def _values(data: bytes, kind: int, begin: int, end: int) -> list[Any]:
    parts = [(a, b) for number, a, b in _fields(data, begin, end, NO_HOLE) if number == 1]
    if kind == 1:
        return [data[a:b] for a, b in parts]
    if kind == 2:
        return [float(x) for a, b in parts for x in np.frombuffer(data[a:b], "<f4")]
    whole = []
    for at, b in parts:  # one number a part, or all of them in one
        while at < b:
            value, at = _varint(data, at)
            whole.append(value - (1 << 64) if value >> 63 else value)
    return whole
