"""webdataset: tar shards in which members of one key make a sample (`0001.jpg`, `0001.txt`, `0001.json`).

    path: one .tar, a folder of them, `shards/{00000..00099}.tar`, or several of these joined by `::`

The key is a member's path up to the first dot of its base name, the rest is the field. Read are a picture (jpg, jpeg,
png, webp, gif, bmp), txt, json ({"caption": ...}, {"question": ..., "answer": ...}, ...) and cls; `0001.0.txt` and
`0001.1.txt` are two captions, `0001.0.jpg` and `0001.1.jpg` two pictures. `fields` may name others: {"image":
"photo.jpg", "text": "alt"} for `0001.photo.jpg` and the key of the json. A json beside a txt repeats it, with where it
was found, in the sets that img2dataset makes: it is only read where `fields` names a key of it.

The headers are read once, into an index; pictures and captions are then read from where they lie.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mmjax.data.index import content_hash, index, parallel
from mmjax.data.ranges import Ranges, open_binary, size_of
from mmjax.data.sources import Record, Source, SourceConfig
from mmjax.data.sources.fields import NAMES
from mmjax.data.sources.said import LineByLine, meanings, said, strings
from mmjax.data.sources.shards import in_folder, is_pattern, of_split, shards
from mmjax.errors import ConfigError

NAME = "webdataset"
ENDING = re.compile(r"\.tar$")
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
_BLOCK = 512
_PACKED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\x28\xb5\x2f\xfd": "unzstd", b"\xfd7zXZ": "unxz"}


def claims(path: Path, head: bytes) -> bool:
    """A tar, packed or not, a pattern of tars, or a folder of them."""
    if is_pattern(path):
        return ".tar" in os.fspath(path)
    if re.search(r"\.(tar(\.\w+)?|tgz)$", path.name) or head[257:262] == b"ustar":
        return True
    return not head and bool(in_folder(path, ENDING))


def open_source(path: Path, config: SourceConfig, where: str) -> Source:
    """Opens tar shards."""
    if config.root:
        raise ConfigError(f"{where}.root: found '{config.root}', but tar shards hold their pictures. Leave it out.")
    files, left_aside = of_split(shards(path, config.path, ENDING, where), config.split, where)
    source = TarSource(path.name, files, config, left_aside, where)
    return source if config.group else LineByLine(source)


def members(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, where its bytes begin, how many) of each file in a tar, in order: ustar, GNU long names and pax.

    Only headers are read. Zero blocks are passed over, so tars that were put one after another are read to the end.

    Raises:
      ConfigError: it is packed, no tar, damaged, or ends amid a member (not for a mere lack of the blocks at its end).
    """
    end = size_of(path)
    with open_binary(path) as file:

        def read(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        at, name, size = 0, "", -1  # name and size: what a header before the member's own says of it
        while at < end:
            header = read(at, _BLOCK)
            if header == bytes(len(header)):
                at += _BLOCK
                continue
            if len(header) < _BLOCK or not _is_header(header):
                raise ConfigError(_no_header(path, at, end, header))
            kind, data = header[156:157], at + _BLOCK
            length = _number(header[124:136]) if size < 0 or kind in b"LKxg" else size
            if kind in b"123456":  # links, devices, folders and pipes: no bytes of their own
                length = 0
            at = data + -(-length // _BLOCK) * _BLOCK
            if at > end:
                raise ConfigError(
                    f"{path}: ends after {end} bytes amid '{name or _name(header)}', which goes on to byte {at}. The "
                    "shard was cut off; fetch it again."
                )
            if kind == b"L":
                name = _text(read(data, length))
                continue
            if kind == b"x":
                said_before = dict(_pax(read(data, length)))
                name = said_before.get("path", name)
                size = int(said_before.get("size", size))
                continue
            if kind in b"Kg":
                continue
            own = name or _name(header)
            if kind in b"0\0" + b"7" and not own.endswith("/"):
                yield own, data, length
            name, size = "", -1


def _is_header(header: bytes) -> bool:
    try:
        written = _number(header[148:156])
    except ValueError:
        return False
    own = header[148:156]
    if sum(header) - sum(own) + 8 * 32 == written:
        return True
    signed = np.frombuffer(header, np.int8).sum(dtype=int) - np.frombuffer(own, np.int8).sum(dtype=int)
    return int(signed) + 8 * 32 == written  # some old tars added up signed bytes


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # 8 GiB and more, in GNU tars
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b"\0 ") or b"0", 8)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _name(header: bytes) -> str:
    name = _text(header[:100])
    # ustar has room for the folders at 345; GNU, which writes "ustar  ", has times there.
    folders = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{folders}/{name}" if folders else name


def _pax(records: bytes) -> Iterator[tuple[str, str]]:
    """Records of "length key=value\\n", the length that of the whole record."""
    while records:
        length = int(records.split(b" ", 1)[0])
        key, _, value = records[:length].split(b" ", 1)[1].removesuffix(b"\n").partition(b"=")
        yield _text(key), _text(value)
        records = records[length:]


def _no_header(path: Path, at: int, end: int, header: bytes) -> str:
    for magic, tool in _PACKED.items():
        if not at and header.startswith(magic):
            return (
                f"{path}: a packed tar, which has no random access. Expected an uncompressed one (pictures are packed "
                f"already); unpack it with `{tool} {path.name}`."
            )
    if len(header) < _BLOCK and at:
        return f"{path}: ends after {end} bytes, amid the header at byte {at}. The shard was cut off; fetch it again."
    return f"{path}: no tar header at byte {at}. Expected a tar" + ("; the shard is damaged." if at else ".")


def _shard(path: Path) -> dict[str, np.ndarray]:
    """The samples of a shard in the order of their first member, their members in the order of the tar.

    first [samples + 1] into the members; keys: the bytes of all keys, key_first [samples + 1] into them; offset, size,
    field [members]; fields: json, the names that `field` numbers; loose [1]: members that belong to no sample.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    names: dict[str, int] = {}
    loose = 0
    for name, offset, size in members(path):
        folder, _, base = name.removeprefix("./").rpartition("/")
        stem, _, field = base.lower().partition(".")
        if not stem or not field:  # hidden, or without an ending
            loose += 1
            continue
        key = (f"{folder}/" if folder else "") + base[: len(stem)]
        names.setdefault(field, len(names))
        if field in samples.setdefault(key, {}):
            raise ConfigError(f"{path}: holds '{name}' a second time. Expected one member of a name.")
        samples[key][field] = (offset, size)
    rows = [(offset, size, names[field]) for sample in samples.values() for field, (offset, size) in sample.items()]
    table = np.array(rows, np.int64).reshape(-1, 3)
    keys = [key.encode("utf-8", "surrogateescape") for key in samples]
    return {
        "first": np.cumsum([0, *map(len, samples.values())], dtype=np.int64),
        "keys": np.frombuffer(b"".join(keys), np.uint8),
        "key_first": np.cumsum([0, *map(len, keys)], dtype=np.int64),
        "offset": table[:, 0],
        "size": table[:, 1],
        "field": table[:, 2].astype(np.int32),
        "fields": np.frombuffer(json.dumps(list(names)).encode(), np.uint8),
        "loose": np.array([loose]),
    }


def _index(files: Sequence[Path]) -> dict[str, np.ndarray]:
    """`_shard` of all of them, one after another, and shard [samples]."""
    parts = parallel(_shard, files, "index of the tar shards", unit="shard")
    names: dict[str, int] = {}
    for part in parts:
        own = json.loads(part["fields"].tobytes())
        part["field"] = np.array([names.setdefault(name, len(names)) for name in own], np.int32)[part["field"]]
    counts = [len(part["first"]) - 1 for part in parts]
    return {
        "shard": np.repeat(np.arange(len(parts), dtype=np.int32), counts),
        "first": _joined([part["first"] for part in parts]),
        "key_first": _joined([part["key_first"] for part in parts]),
        **{name: np.concatenate([part[name] for part in parts]) for name in ("keys", "offset", "size", "field")},
        "loose": np.sum([part["loose"] for part in parts], 0),
        "fields": np.frombuffer(json.dumps(list(names)).encode(), np.uint8),
    }


def _joined(firsts: list[np.ndarray]) -> np.ndarray:
    """Positions in parts -> positions in all of them one after another."""
    before = np.cumsum([0, *(first[-1] for first in firsts)])
    return np.concatenate([first[:-1] + start for first, start in zip(firsts, before, strict=False)] + [before[-1:]])


class TarSource:
    """The samples of tar shards that have a picture and something said of it."""

    def __init__(self, name: str, files: list[Path], config: SourceConfig, left_aside: Mapping[str, int], where: str):
        self.name = name
        self._ranges, self._fields = Ranges(files), dict(config.fields)
        self._index = index("tar samples 1", files, lambda: _index(files))
        self._names: list[str] = json.loads(self._index["fields"].tobytes())
        if unknown := [what for what in self._fields if what not in NAMES]:
            raise ConfigError(f"{where}.fields: found '{unknown[0]}', expected some of {', '.join(NAMES)}.")
        picture = self._fields.get("image", "").lower()
        if picture and picture not in self._names:
            raise ConfigError(
                f"{where}.fields: the image is '{picture}', but no member ends so. Found {', '.join(self._names)}."
            )
        self._roles = [self._role(name) for name in self._names]
        self._meanings: dict[tuple[str, ...], dict[str, str]] = {}
        self._rows, left = self._chosen()
        self.left_aside = {**left_aside, **left}
        settings = f"{sorted(config.fields.items())}"
        self.fingerprint = hashlib.sha256(f"tar {settings} {content_hash(files)}".encode()).hexdigest()

    def _role(self, name: str) -> str:
        """What members of a name are: "image", "text", "json", "label" or nothing. `fields` goes before the ending."""
        for role, given in self._fields.items():
            if given.lower() == name:
                return role
        number, _, kind = name.rpartition(".")
        role = "image" if kind in PICTURES else {"txt": "text", "cls": "label", "json": "json"}.get(kind, "")
        return role if (not number or number.isdecimal()) and role not in self._fields else ""

    def _chosen(self) -> tuple[np.ndarray, dict[str, int]]:
        """([rows] int64: the samples that are used, what is left aside)."""
        first, field = self._index["first"][:-1], self._index["field"]
        roles = np.array(self._roles)
        full = self._index["size"] > 0

        def has(role: str) -> np.ndarray:
            return np.logical_or.reduceat((roles == role)[field] & full, first) if len(first) else np.zeros(0, bool)

        picture, text, written = has("image"), has("text"), has("json")
        told = text | written | has("label")
        self._json_beside = any(given.lower() not in self._names for given in self._fields.values())
        left = {f"'.{name}' members": int((field == k).sum()) for k, name in enumerate(self._names) if not roles[k]}
        left["members that belong to no sample"] = int(self._index["loose"][0])
        left["samples without a picture"] = int((~picture).sum())
        left["samples without a caption, json or cls"] = int((picture & ~told).sum())
        left["json beside txt"] = 0 if self._json_beside else int((picture & text & written).sum())
        return np.flatnonzero(picture & told), {what: count for what, count in left.items() if count}

    def __len__(self) -> int:
        return len(self._rows)

    def _members(self, i: int) -> dict[str, list[tuple[str, int, int]]]:
        """{role: [(name, offset, size)]} of row i."""
        begin, end = self._index["first"][self._rows[i] : self._rows[i] + 2].tolist()
        fields, offsets, sizes = (self._index[name][begin:end].tolist() for name in ("field", "offset", "size"))
        found: dict[str, list[tuple[str, int, int]]] = {}
        for field, offset, size in zip(fields, offsets, sizes, strict=True):
            if size:
                found.setdefault(self._roles[field], []).append((self._names[field], offset, size))
        return found

    def __getitem__(self, i: int) -> Record:
        found = self._members(i)
        record = self._annotations(i, found)
        shard = int(self._index["shard"][self._rows[i]])
        pictures = [self._ranges.read(shard, offset, size) for _, offset, size in _pictures(found["image"])]
        record["image"] = pictures[0]
        if len(pictures) > 1:
            record["images"] = pictures
        return record

    def annotations(self, i: int) -> Record:
        return self._annotations(i, self._members(i))

    def _annotations(self, i: int, found: dict[str, list[tuple[str, int, int]]]) -> Record:
        row = int(self._rows[i])
        shard = int(self._index["shard"][row])
        begin, end = self._index["key_first"][row : row + 2].tolist()
        key = self._index["keys"][begin:end].tobytes().decode("utf-8", "replace")
        name = self._ranges.files[shard].name
        at = f"{name}, '{key}"
        item = {}
        if "json" in found and ("text" not in found or self._json_beside):
            item = self._json(self._read(shard, found["json"][0]), at)
        for role in ("text", "question", "answer", "label"):
            if role in found:
                members = sorted(found[role], key=_order)
                item[role] = [text for one in members for text in strings(self._read(shard, one), f"{at}.{one[0]}'")]
        if isinstance(item.get("label"), list) and "label" in found:
            item["label"] = item["label"][0] if item["label"] else None
        pictures = len(_pictures(found["image"]))
        return {"id": f"{name.removesuffix('.tar')}/{key}", **said(item, f"{at}'", pictures=pictures)}

    def _read(self, shard: int, member: tuple[str, int, int]) -> bytes:
        return self._ranges.read(shard, member[1], member[2])

    def _json(self, text: bytes, at: str) -> dict[str, object]:
        try:
            item = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{at}.json': not json ({error}). Expected an object.") from None
        if not isinstance(item, dict):
            raise ConfigError(
                f"{at}.json': a json {type(item).__name__}, expected an object such as {{'caption': ...}}."
            )
        names = tuple(item)
        if names not in self._meanings:
            fields = {what: name for what, name in self._fields.items() if name.lower() not in self._names}
            known, _ = meanings(names, "the picture", f"{at}.json'", fields)
            self._meanings[names] = known
        return {what: item[name] for what, name in self._meanings[names].items()}


def _pictures(found: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """The numbered pictures in their order; else one: of a picture in several formats the first of PICTURES."""
    numbered = [member for member in found if member[0].split(".")[0].isdecimal()]
    return sorted(numbered, key=_order) if numbered else [min(found, key=_order)]


def _order(member: tuple[str, int, int]) -> tuple[int, int]:
    number, _, kind = member[0].rpartition(".")
    return int(number) if number.isdecimal() else -1, PICTURES.index(kind) if kind in PICTURES else 0
