"""parquet: one file, a folder of them as Hugging Face lays them out (a split of it), or a pattern.

Columns are found by the usual names (`fields.NAMES`) or by `fields`. The pictures are bytes, Hugging Face's struct
{bytes, path}, a list of either, or paths of files. Captions are texts or lists of them; answers too, or lists of
{answer}; a label may be a number whose class Hugging Face's metadata names; `texts` of {user, assistant} (The Cauldron,
FineVision) are a conversation.

A parquet file is read by row groups, often hundreds of pictures, which a shuffled row would have to unpack for itself.
So its rows are copied once into the cache folder: the pictures one after another as they are (about the size of the
files, since jpegs do not pack), the columns that are used as an unpacked Arrow file. Both are then read in place. A
picture that stands in many rows of a file (questions about it) is copied once.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmjax.data.index import content_hash
from mmjax.data.sources import Record, Source, SourceConfig
from mmjax.data.sources.fields import NAMES, meaning
from mmjax.data.sources.parquet_copies import BATCH, Rows, opened_parquet, parts, pictures_of
from mmjax.data.sources.pictures import CHECKED, Groups, Line, check_pictures, infer_root
from mmjax.data.sources.said import LineByLine, meanings, said
from mmjax.data.sources.shards import SPLITS, in_folder, is_pattern, of_split, shards
from mmjax.errors import ConfigError

NAME = "parquet"
ENDING = re.compile(r"\.parquet$")


def claims(path: Path, head: bytes) -> bool:
    """A parquet file, a pattern of them, or a folder with them in it, in data/ or in folders named for splits."""
    if is_pattern(path):
        return ".parquet" in os.fspath(path)
    return head[:4] == b"PAR1" or bool(ENDING.search(path.name)) or (not head and bool(_below(path)))


def open_source(path: Path, config: SourceConfig, where: str) -> Source:
    """Opens parquet files, after copying their pictures (see above) the first time."""
    files = _below(path) if path.is_dir() else shards(path, config.path, ENDING, where)
    files, left_aside = of_split(files, config.split, where)
    columns = _columns(files[0], config.fields, where)
    source = ParquetSource(path, files, columns, config, left_aside, where)
    return source if config.group else LineByLine(source)


def _below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    by_split = [folder / split for split in SPLITS]
    for folders in ([folder], [folder / "data"], by_split):
        if files := [file for one in folders for file in in_folder(one, ENDING)]:
            return files
    return []


@dataclass(frozen=True)
class Columns:
    """What the columns are.

    Attributes:
      picture: the column of the pictures; `paths` says that it holds paths of files.
      said: {what it is: column}.
      unused: the other columns.
      classes: names of the label's numbers.
      turns: whether the text is a conversation, of which a row may go without picture.
    """

    picture: str
    paths: bool
    said: Mapping[str, str]
    unused: Sequence[str]
    classes: Sequence[str]
    turns: bool


def _columns(file: Path, fields: Mapping[str, str], where: str) -> Columns:
    with opened_parquet(file) as opened:
        schema = opened.schema_arrow
        types = {field.name: field.type for field in schema}
        features = _features(schema)
        picture = fields.get("image") or _picture(types, features, file)
        paths = picture in types and not _holds_bytes(types[picture])
        if picture in types and not paths:
            paths = _only_paths(opened, picture)
    if not picture:
        hint = " It has urls: fetch the pictures first, with img2dataset." if "url" in types or "URL" in types else ""
        try:
            picture = meaning(list(types), file.name, fields)[0]["image"]
        except ConfigError as error:
            raise ConfigError(f"{error}{hint}") from None
        paths = True
    found, unused = meanings(types, picture, file.name, fields)
    turns = "messages" in found or ("text" in found and _are_turns(types[found["text"]]))
    return Columns(picture, paths, found, unused, _classes(features.get(found.get("label", ""))), turns)


def _are_turns(kind: pa.DataType) -> bool:
    return _is_list_of(kind, pa.types.is_struct) and kind.value_type.get_field_index("assistant") >= 0


def _features(schema: pa.Schema) -> dict[str, Any]:
    """{column: what Hugging Face's `datasets` notes about it}."""
    noted = (schema.metadata or {}).get(b"huggingface")
    return json.loads(noted).get("info", {}).get("features", {}) if noted else {}


def _classes(feature: Any) -> list[str]:
    if isinstance(feature, list):  # a list of classes, as older versions note it
        feature = feature[0]
    return list(feature.get("names") or _classes(feature.get("feature"))) if isinstance(feature, Mapping) else []


def _picture(types: Mapping[str, pa.DataType], features: Mapping[str, Any], file: Path) -> str:
    """The column with the bytes of pictures; "" if there is none."""
    found = [name for name, kind in types.items() if _holds_bytes(kind) and not _is_audio(features.get(name))]
    named = [name for known in NAMES["image"] for name in found if name.strip().lower() == known]
    if len(found) > 1 and not named:
        raise ConfigError(
            f"{file.name}: pictures may be in {', '.join(found)}. Set fields={{'image': '{found[0]}'}}, or another."
        )
    return (named or found or [""])[0]


def _is_audio(feature: Any) -> bool:
    return isinstance(feature, Mapping) and feature.get("_type") == "Audio"


def _is_list_of(kind: pa.DataType, of: Any) -> bool:
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and of(kind.value_type)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or _is_list_of(kind, _holds_bytes)


def _only_paths(opened: pq.ParquetFile, picture: str) -> bool:
    """Whether the first struct of {bytes, path} has a path alone."""
    for batch in opened.iter_batches(BATCH, columns=[picture]):
        for value in itertools.chain.from_iterable(parts(row) for row in batch.column(0).to_pylist()):
            return isinstance(value, Mapping) and not value["bytes"] and bool(value.get("path"))
    return False


def _paths(value: Any) -> list[str]:
    return [path for one in parts(value) if (path := one.get("path") if isinstance(one, Mapping) else one)]


class ParquetSource:
    """The rows of parquet files that have a picture and something said of it.

    Rows with captions or questions about the same picture are one row if `config.group`; rows with labels or
    conversations stay as they are.
    """

    def __init__(
        self,
        path: Path,
        files: Sequence[Path],
        columns: Columns,
        config: SourceConfig,
        left_aside: Mapping[str, int],
        where: str,
    ):
        self.name, self._files, self._columns = path.name, files, columns
        used = list(columns.said.values()) + [columns.picture] * columns.paths
        self._rows = Rows(files, used, columns.said)
        identity = f"parquet {columns} {config.group} {content_hash(files)}"
        if columns.paths:
            self._root, missing, keys, sizes = self._find(path, config, where)
            identity += sizes
        else:
            if config.root:
                raise ConfigError(
                    f"{where}.root: found '{config.root}', but '{columns.picture}' holds the pictures. Leave it out."
                )
            self._ranges, self._pictures = pictures_of(files, columns.picture)
            missing, keys = self._held()
        unseen = missing & (not columns.turns)
        kept = np.flatnonzero(~unseen & self._rows.told)
        self._groups = None
        if config.group and len(kept) and "label" not in columns.said and not columns.turns:
            groups = Groups.of(keys[kept])
            self._groups = Groups(groups.starts, kept[groups.order])
        self._kept = kept
        counts = {
            "rows without a picture": int(unseen.sum()),
            "rows of which nothing is said": int((~unseen & ~self._rows.told).sum()),
            **{f"column '{name}'": len(self._rows) for name in columns.unused},
        }
        self.left_aside = {**left_aside, **{what: count for what, count in counts.items() if count}}
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()

    def _held(self) -> tuple[np.ndarray, np.ndarray]:
        """[rows] bool: no picture; [rows] uint64: a hash of the row's first picture, of no use without one."""
        first = self._pictures["first"]
        missing = np.diff(first) == 0
        hashes = np.r_[self._pictures["hash"], np.zeros(1, np.uint64)]
        return missing, hashes[first[:-1]]

    def _find(self, path: Path, config: SourceConfig, where: str) -> tuple[Path, np.ndarray, np.ndarray, str]:
        """Looks for the files of the pictures -> their root; as `_held`; the sizes of the files, as a text."""
        keys, missing = np.zeros(len(self._rows), np.uint64), np.zeros(len(self._rows), bool)
        lines, every = [], -(-len(self._rows) // CHECKED) or 1
        for i, value in enumerate(self._rows.column(self._columns.picture)):
            paths = _paths(value)
            missing[i] = not paths
            keys[i] = int.from_bytes(hashlib.blake2b("".join(paths[:1]).encode(), digest_size=8).digest(), "big")
            if paths and i % every == 0:
                lines.append(Line(image=paths[0], row=i + 1))
        root = infer_root(self._files[0], lines)
        if config.root:
            root = (path if path.is_dir() else path.parent) / config.root
        sizes = check_pictures(path, lines, root, where, config.max_bad_fraction)
        return root, missing, keys, json.dumps(sizes)

    def __len__(self) -> int:
        return len(self._kept) if self._groups is None else len(self._groups.starts) - 1

    def _of(self, i: int) -> Sequence[int]:
        """The rows of the files that make row i."""
        if self._groups is None:
            return [int(self._kept[i])]
        begin, end = self._groups.starts[i : i + 2]
        return self._groups.order[begin:end].tolist()

    def __getitem__(self, i: int) -> Record:
        rows = self._of(i)
        record = self._annotations(rows)
        pictures = list(self._read(rows[0]))
        if pictures:
            record["image"] = pictures[0]
        if len(pictures) > 1:
            record["images"] = pictures
        return record

    def _read(self, row: int) -> Iterable[bytes]:
        if self._columns.paths:
            return ((self._root / path).read_bytes() for path in _paths(self._rows[row][self._columns.picture]))
        table = self._pictures
        begin, end = table["first"][row : row + 2].tolist()
        places = zip(*(table[name][begin:end].tolist() for name in ("blob", "offset", "size")), strict=True)
        return (self._ranges.read(*place) for place in places)

    def annotations(self, i: int) -> Record:
        return self._annotations(self._of(i))

    def _annotations(self, rows: Sequence[int]) -> Record:
        record = self._said(rows[0])
        for row in rows[1:]:
            for what, value in self._said(row).items():
                if what in ("texts", "qa"):
                    record.setdefault(what, []).extend(value)
        return record

    def _said(self, row: int) -> Record:
        values = self._rows[row]
        file = bisect.bisect_right(self._rows.starts, row) - 1
        number = row - self._rows.starts[file]
        name = f"{self._files[file].stem}/{number}"
        if self._columns.paths:
            paths = _paths(values[self._columns.picture])
            name, pictures = paths[0] if paths else name, len(paths)
        else:
            begin, end = self._pictures["first"][row : row + 2].tolist()
            pictures = end - begin
        item = {what: values[column] for what, column in self._columns.said.items()}
        at = f"{self._files[file].name}, row {number + 1}"
        return {"id": name, **said(item, at, self._columns.classes, pictures)}
