"""Annotation files too large to hold: an index of where each row lies, and rows parsed when they are read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmjax.data.index import index, parallel
from mmjax.data.sources import SourceConfig
from mmjax.data.sources.pictures import CHECKED, Groups, Line, PictureSource, check_pictures, infer_root
from mmjax.errors import ConfigError

READ_WHOLE = 64 << 20  # bytes of a file that is read whole and checked row by row at the start
_CHUNK = 32 << 20


class RowFormat(Protocol):
    """How the rows of a file are written."""

    def __call__(self, text: bytes, number: int) -> Line: ...

    def row_ends(self, chunk: np.ndarray) -> np.ndarray:
        """[bytes] uint8 of a chunk that begins at a row's beginning -> [bytes] bool: the line feeds that end a row."""
        ...

    def keys(self, chunk: bytes, count: int) -> list[bytes]:
        """What names the picture of each of the `count` rows of a chunk of whole rows."""
        ...


class LineFile:
    """The rows of a file as a sequence of Lines, each read from disk when it is asked for; safe in threads."""

    def __init__(self, path: Path, parse: RowFormat, offsets: np.ndarray, first: int):
        self._parse, self._offsets, self._first = parse, offsets, first
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed with the source)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, i: int | slice) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        begin, end = self._offsets[i : i + 2]
        return self._parse(os.pread(self._file.fileno(), int(end - begin), int(begin)), i + self._first)

    def __iter__(self) -> Iterator[Line]:
        return (self[i] for i in range(len(self)))


def large_source(path: Path, parse: RowFormat, config: SourceConfig, where: str, header: int = 0) -> PictureSource:
    """Opens a large file through its index. Pictures are looked for at CHECKED rows, spread evenly.

    header: bytes of the file's first row, where that is a header.
    """
    kind = f"rows of {type(parse).__name__} {header} {sorted(config.fields.items())} group {config.group}"
    made = index(kind, [path], lambda: _build(path, parse, header, config.group))
    lines = LineFile(path, parse, made["offsets"], 2 if header else 1)
    base = Path(config.root) if config.root else infer_root(path, lines)
    if len(lines) > CHECKED:
        print(
            f"{path.name}: pictures are looked for at {CHECKED:,} of {len(lines):,} rows; the others as they are read."
        )
    spread = range(0, len(lines), -(-len(lines) // CHECKED))
    check_pictures(path, (lines[i] for i in spread), base, where, config.max_bad_fraction)
    groups = Groups(made["starts"], made["order"]) if "starts" in made else None
    digest = hashlib.sha256(made["digest"].tobytes() + f"group {config.group}".encode())
    return PictureSource(path, lines, base, groups, digest.hexdigest())


def _build(path: Path, parse: RowFormat, header: int, group: bool) -> dict[str, np.ndarray]:
    """offsets [rows + 1], digest [32], and, unless every picture has one row, starts and order of `Groups`."""
    size = path.stat().st_size
    pieces = [(path, parse, a, b, group) for a, b in _pieces(path, parse, header, size)]
    found = parallel(_piece, pieces, f"index {path.name}")
    offsets = np.concatenate([np.array([header], np.int64), *(ends for ends, _ in found)])
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    made = {"offsets": offsets, "digest": np.frombuffer(digest.digest(), np.uint8)}
    if group:
        keys = np.concatenate([keys for _, keys in found])
        if len(np.unique(keys)) < len(keys):
            groups = Groups.of(keys)
            made |= {"starts": groups.starts, "order": groups.order}
    return made


def _pieces(path: Path, parse: RowFormat, begin: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of whole rows, each about _CHUNK bytes."""
    with open(path, "rb") as file:
        while begin < size:
            file.seek(begin)
            chunk = np.frombuffer(file.read(_CHUNK), np.uint8)
            if begin + len(chunk) == size:
                yield begin, size
                return
            ends = np.flatnonzero(parse.row_ends(chunk))
            if not len(ends):
                raise ConfigError(f"{path.name}: no line ends within {_CHUNK >> 20} MiB after byte {begin}.")
            yield begin, begin + int(ends[-1]) + 1
            begin += int(ends[-1]) + 1


def _piece(piece: tuple[Path, RowFormat, int, int, bool]) -> tuple[np.ndarray, np.ndarray]:
    """-> where the rows of a piece end [rows] int64, and the hash of each row's picture [rows] uint64."""
    path, parse, begin, end, group = piece
    with open(path, "rb") as file:
        file.seek(begin)
        data = file.read(end - begin)
    ends = np.flatnonzero(parse.row_ends(np.frombuffer(data, np.uint8))) + 1
    if not len(ends) or ends[-1] < len(data):
        ends = np.append(ends, len(data))  # the last line of a file may lack its line feed
    empty = np.flatnonzero(np.diff(ends, prepend=0) < 3)
    keys = np.zeros(0, np.uint64)
    if len(empty):
        raise ConfigError(f"{path.name}, byte {begin + ends[empty[0]]}: an empty line. Expected none in a large file.")
    if group:
        names = parse.keys(data, len(ends))
        keys = np.fromiter((_hash(name) for name in names), np.uint64, len(names))
        if len(keys) != len(ends):
            raise ConfigError(
                f"{path.name}: {len(ends)} lines after byte {begin}, but {len(keys)} pictures. Expected one a line."
            )
    return ends + begin, keys


def _hash(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")
