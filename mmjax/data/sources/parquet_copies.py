"""Copies of parquet files in the cache folder that are read in place: pictures as they are, columns unpacked."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import itertools
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmjax.data.index import arrays, cache_folder, cached, parallel
from mmjax.data.ranges import Ranges, open_binary
from mmjax.errors import ConfigError

PIECE = 256 << 20  # bytes of pictures that one process copies at a time
BATCH = 256  # pictures in memory at a time
_ROWS = 4096  # rows without them


@contextlib.contextmanager
def opened_parquet(file: Path) -> Iterator[pq.ParquetFile]:
    with open_binary(file) as opened:
        try:
            yield pq.ParquetFile(opened)
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and error.errno:  # of the disk, not of what is on it
                raise
            raise ConfigError(f"{file}: not readable as parquet ({error}). Fetch or write it again.") from None


def parts(value: Any) -> list[Any]:
    """The pictures of a row, each bytes or {bytes, path}."""
    return [one for one in (value if isinstance(value, list) else [value]) if one is not None]


def _bytes(value: Any) -> bytes:
    return (value["bytes"] if isinstance(value, Mapping) else value) or b""


def _pieces(file: Path, column: str) -> list[tuple[list[int], int]]:
    """(row groups, bytes of the column in them) of each piece of a file."""
    pieces: list[tuple[list[int], int]] = []
    with opened_parquet(file) as opened:
        for group in range(opened.metadata.num_row_groups):
            row_group = opened.metadata.row_group(group)
            chunks = [row_group.column(k) for k in range(row_group.num_columns)]
            size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == column)
            if not pieces or pieces[-1][1] + size > PIECE:
                pieces.append(([], 0))
            pieces[-1] = (pieces[-1][0] + [group], pieces[-1][1] + size)
    return pieces


def pictures_of(files: Sequence[Path], column: str) -> tuple[Ranges, dict[str, np.ndarray]]:
    """The copied pictures, and of each row first [rows + 1] into them; blob, offset, size, hash [pictures]."""

    def write(folder: Path) -> None:
        pieces = [(file, groups, size) for file in files for groups, size in _pieces(file, column)]
        needed, free = sum(size for _, _, size in pieces), shutil.disk_usage(folder).free
        if needed > free:
            raise ConfigError(
                f"cache folder {cache_folder()}: {free / 1e9:.1f} GB are free, but the pictures of '{files[0].name}' "
                f"and on take up to {needed / 1e9:.1f} GB. Set MMJAX_CACHE to a folder with room."
            )
        print(
            f"Copying the pictures of {len(files)} parquet files into {cache_folder()} (once, up to "
            f"{needed / 1e9:.2f} GB).",
            file=sys.stderr,
            flush=True,
        )
        work = [(file, groups, column, folder / f"{k}.pictures") for k, (file, groups, _) in enumerate(pieces)]
        made = parallel(_copy_pictures, work, "pictures", unit="piece")
        table = np.concatenate([np.zeros((0, 3), np.int64), *(table for _, table in made)])
        counts = np.concatenate([np.zeros(0, np.int64), *(counts for counts, _ in made)])
        np.save(folder / "first.npy", np.r_[0, np.cumsum(counts)])
        np.save(folder / "blob.npy", np.repeat(np.arange(len(made), dtype=np.int32), [len(table) for _, table in made]))
        for k, name in enumerate(("offset", "size")):
            np.save(folder / f"{name}.npy", table[:, k])
        np.save(folder / "hash.npy", table[:, 2].view(np.uint64))

    folder = cached(f"parquet pictures 1 {column}", files, write)
    blobs = sorted(folder.glob("*.pictures"), key=lambda file: int(file.stem))
    return Ranges(blobs), arrays(folder)


def _copy_pictures(work: tuple[Path, list[int], str, Path]) -> tuple[np.ndarray, np.ndarray]:
    """-> pictures of each row [rows], and where each lies, its size, its hash [pictures, 3], as int64."""
    file, groups, column, copy = work
    places: dict[bytes, tuple[int, int, int]] = {}
    counts, table, end = [], [], 0
    with opened_parquet(file) as opened, open(copy, "wb") as out:
        for batch in opened.iter_batches(BATCH, row_groups=groups, columns=[column]):
            for row in batch.column(0):
                pictures = [data for one in parts(row.as_py()) if (data := _bytes(one))]
                counts.append(len(pictures))
                for data in pictures:
                    key = hashlib.blake2b(data, digest_size=16).digest()
                    if key not in places:
                        places[key] = (end, len(data), int.from_bytes(key[:8], "little", signed=True))
                        out.write(data)
                        end += len(data)
                    table.append(places[key])
    return np.array(counts, np.int64), np.array(table, np.int64).reshape(-1, 3)


class Rows:
    """Some columns of the files, row by row, from an unpacked copy.

    Attributes:
      told: [rows] bool: whether anything is said in a row.
      starts: the row that each file begins with, and their number.
    """

    def __init__(self, files: Sequence[Path], columns: Sequence[str], said: Mapping[str, str]):
        def write(folder: Path) -> None:
            work = [(file, columns, dict(said), folder / f"{k}.arrow") for k, file in enumerate(files)]
            told = parallel(_copy_rows, work, "columns of the parquet files", unit="file")
            np.save(folder / "told.npy", np.concatenate(told))
            np.save(folder / "starts.npy", np.cumsum([0, *map(len, told)]))

        folder = cached(f"parquet rows 1 {columns} {sorted(said.items())}", files, write)
        copies = [pa.ipc.open_file(pa.memory_map(os.fspath(folder / f"{k}.arrow"))) for k in range(len(files))]
        batches = [copy.get_batch(k) for copy in copies for k in range(copy.num_record_batches)]
        self._batches = [dict(zip(batch.schema.names, batch.columns, strict=True)) for batch in batches]
        self._firsts = list(itertools.accumulate((batch.num_rows for batch in batches), initial=0))
        self.told, self.starts = arrays(folder)["told"], arrays(folder)["starts"].tolist()

    def __len__(self) -> int:
        return len(self.told)

    def __getitem__(self, i: int) -> dict[str, Any]:
        k = bisect.bisect_right(self._firsts, i) - 1
        return {name: column[i - self._firsts[k]].as_py() for name, column in self._batches[k].items()}

    def column(self, name: str) -> Iterator[Any]:
        """The values of a column, in order."""
        return itertools.chain.from_iterable(batch[name].to_pylist() for batch in self._batches)


def _copy_rows(work: tuple[Path, Sequence[str], Mapping[str, str], Path]) -> np.ndarray:
    """-> [rows] bool: whether anything is said."""
    file, columns, said, copy = work
    told = [np.zeros(0, bool)]
    with opened_parquet(file) as opened, contextlib.ExitStack() as stack:
        if missing := [name for name in columns if name not in opened.schema_arrow.names]:
            raise ConfigError(
                f"{file}: no column '{missing[0]}', which the other files have. Expected the same in all."
            )
        writer = None
        for batch in opened.iter_batches(_ROWS, columns=list(columns)):
            # The numbers of a dictionary are those of its row group; the file would need one dictionary for all.
            values = {name: _plain(batch.column(name)) for name in columns}
            batch = pa.record_batch(list(values.values()), names=list(values))
            if writer is None:
                writer = stack.enter_context(pa.ipc.new_file(os.fspath(copy), batch.schema))
            writer.write_batch(batch)
            full = {what: _full(batch.column(name)) for what, name in said.items()}
            anything = [full[what] for what in ("text", "label", "messages") if what in full]
            if "question" in full:
                anything.append(full["question"] & full["answer"])
            told.append(np.logical_or.reduce(anything))
        if writer is None:  # no rows
            empty = pa.schema([opened.schema_arrow.field(name) for name in columns])
            stack.enter_context(pa.ipc.new_file(os.fspath(copy), empty))
    return np.concatenate(told)


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _full(column: pa.Array) -> np.ndarray:
    """[rows] bool: neither null, nor "", nor an empty list, nor the class -1."""
    kind, full = column.type, column.is_valid()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        full = pc.greater(pc.binary_length(column), 0)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        full = pc.greater(pc.list_value_length(column), 0)
    elif pa.types.is_integer(kind):
        full = pc.not_equal(column, -1)
    return pc.fill_null(full, False).to_numpy(zero_copy_only=False)
