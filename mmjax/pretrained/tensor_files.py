"""safetensors files: their tensors as lazily mapped NumPy arrays, and the writing of sharded ones.

Format: 8 bytes, the header's length (little-endian); the header, JSON {key: {dtype, shape, data_offsets}}; the bytes.
Read by itself and not by the `safetensors` package, so that a tensor costs memory only while it is looked at, also in
bfloat16. A folder has one file, or several named by an index.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mmjax.errors import ConfigError
from mmjax.pretrained.family import Shape

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # of a shard, as transformers splits
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_TORCH = """python -c "import torch, safetensors.torch as s; \
w = torch.load('{file}', map_location='cpu', weights_only=True); \
s.save_file({{k: v.clone().contiguous() for k, v in w.items()}}, '{out}', {{'format': 'pt'}})\""""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. `start` is its first byte."""

    file: Path
    dtype: np.dtype
    shape: Shape
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self) -> np.ndarray:
        """Its numbers, read from the file as they are looked at; the pages are given back with the last view."""
        if not self.nbytes:
            return np.zeros(self.shape, self.dtype)
        return np.memmap(self.file, self.dtype, "r", self.start, self.shape)


def open_tensors(folder: Path, where: str) -> dict[str, Stored]:
    """{key: tensor} of a folder's safetensors files; no number is read.

    Raises:
      ConfigError: no weights, weights of another format, a file that is missing, cut off or no safetensors, a key in
        two files, or an index that does not tell what is in the files.
    """
    if not (folder / INDEX).is_file():
        if (folder / WHOLE).is_file():
            return read_header(folder / WHOLE, where)
        raise ConfigError(f"{where}: {_none(folder)}")
    try:
        placed: Mapping[str, str] = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where}: '{folder / INDEX}' is no index of safetensors ({error!r}).") from error
    tensors: dict[str, Stored] = {}
    for name in sorted(set(placed.values())):
        if not (folder / name).is_file():
            count = sum(n == name for n in placed.values())
            raise ConfigError(f"{where}: no file '{folder / name}', in which {INDEX} has {count} tensors. Fetch it.")
        for key, stored in read_header(folder / name, where).items():
            if key in tensors:
                raise ConfigError(f"{where}: the tensor '{key}' is in two files, {tensors[key].file.name} and {name}.")
            if placed.get(key) != name:
                told = f"{INDEX} places it in {placed[key]}" if key in placed else f"{INDEX} does not name it"
                raise ConfigError(f"{where}: the tensor '{key}' is in {name}, but {told}.")
            tensors[key] = stored
    for key, name in placed.items():
        if key not in tensors:
            raise ConfigError(f"{where}: {INDEX} places the tensor '{key}' in {name}, which does not have it.")
    return tensors


def _none(folder: Path) -> str:
    shards = sorted(p.name for p in folder.glob("model-*-of-*.safetensors"))
    if shards:
        return f"'{folder}' has {len(shards)} shards ({shards[0]}, ...), but no {INDEX}. Fetch it."
    torch = sorted(folder.glob("pytorch_model*.bin"))
    if torch:
        how = " ".join(_TORCH.format(file=torch[0], out=folder / WHOLE).split())
        more = f" and {len(torch) - 1} more (join their dicts)" if len(torch) > 1 else ""
        return f"'{folder}' has {torch[0].name}{more}, but no safetensors. Convert it where torch is installed:\n{how}"
    found = sorted(p.name for p in folder.iterdir())[:8]
    return f"'{folder}' has no {WHOLE} and no {INDEX}. It has {found}."


def read_header(file: Path, where: str) -> dict[str, Stored]:
    """{key: tensor} of one file. ConfigError where it is cut off or no safetensors file."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > size - 8:
            raise ConfigError(f"{where}: '{file}' is no safetensors file, or cut off: {size} bytes.")
        try:
            header = json.loads(opened.read(length))
        except ValueError as error:
            raise ConfigError(f"{where}: '{file}' is no safetensors file: its header is no JSON ({error}).") from error
    header.pop("__metadata__", None)
    tensors = {}
    for key, told in header.items():
        if told["dtype"] not in DTYPES:
            raise ConfigError(
                f"{where}: the tensor '{key}' of '{file}' is of type {told['dtype']}; expected {', '.join(DTYPES)}."
            )
        (start, stop), shape, dtype = told["data_offsets"], tuple(told["shape"]), DTYPES[told["dtype"]]
        stored = Stored(file, dtype, shape, 8 + length + start)
        if stop - start != stored.nbytes:
            raise ConfigError(f"{where}: '{file}': {stop - start} bytes for '{key}', expected {stored.nbytes}.")
        if 8 + length + stop > size:
            raise ConfigError(
                f"{where}: '{file}' is cut off: the tensor '{key}' ends at byte {8 + length + stop} of {size}."
            )
        tensors[key] = stored
    return tensors


class ToWrite(NamedTuple):
    """A tensor to be written; `make` gives its numbers when it is its turn."""

    key: str
    dtype: np.dtype
    shape: Shape
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(folder: Path, tensors: Sequence[ToWrite], shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """Writes one file, or several with an index where all exceed `shard_bytes`; one tensor is in memory at a time."""
    shards = list(_split(tensors, shard_bytes))
    if len(shards) == 1:
        return [_write(folder / WHOLE, shards[0])]
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    files = [_write(folder / name, shard) for name, shard in zip(names, shards, strict=True)]
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in tensors)},
        "weight_map": {t.key: name for name, shard in zip(names, shards, strict=True) for t in shard},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return [*files, folder / INDEX]


def _split(tensors: Sequence[ToWrite], shard_bytes: int) -> Iterator[list[ToWrite]]:
    shard: list[ToWrite] = []
    for tensor in tensors:
        if shard and sum(t.nbytes for t in shard) + tensor.nbytes > shard_bytes:
            yield shard
            shard = []
        shard.append(tensor)
    yield shard


def _write(file: Path, tensors: Sequence[ToWrite]) -> Path:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without it transformers refuses the file
    at = 0
    for t in tensors:
        header[t.key] = {"dtype": _NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for t in tensors:
            numbers = np.ascontiguousarray(t.make(), t.dtype)
            if numbers.shape != t.shape and t.shape:
                raise ValueError(f"{t.key}: made {numbers.shape}, announced {t.shape}")
            opened.write(numbers.tobytes() if not numbers.ndim else memoryview(numbers.reshape(-1).view(np.uint8)))
    return file
