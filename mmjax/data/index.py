"""What is worked out once from large files and kept in the cache folder: where each record lies, and copies for access.

An entry is a folder, named for what it is and for the paths, sizes and times of its files, so a changed file is indexed
anew. It is written beside its place and renamed: it is whole or not there, whoever else writes it at the same time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import socket
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

import numpy as np

from mmjax.data.ranges import is_remote, open_binary, size_of
from mmjax.errors import ConfigError
from mmjax.metrics import progress

T = TypeVar("T")
Made = TypeVar("Made")

WHOLE = 16 << 20  # bytes of a file up to which its identity is all of its content
_BLOCK, _BLOCKS = 64 << 10, 16  # of a larger one: so many blocks, spread evenly, with the first and the last
_MANIFEST = "manifest.json"


def cache_folder() -> Path:
    """Where prepared sets and indices lie: `MMJAX_CACHE`, or ~/.cache/mmjax."""
    return Path(os.environ.get("MMJAX_CACHE") or Path.home() / ".cache" / "mmjax")


def index(kind: str, files: Sequence[Path], build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that `build` makes of the files, memory-mapped; made once.

    Args:
      kind: what they are and all that they depend on besides the files. It changes where the code that builds does.
    """

    def write(folder: Path) -> None:
        made = build()
        with _writable():
            for name, array in made.items():
                np.save(folder / f"{name}.npy", array)

    return arrays(cached(kind, files, write))


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays in a cache entry, memory-mapped."""
    # Plain arrays over the mapping: picking one number of a np.memmap is ten times slower.
    return {file.stem: np.asarray(np.load(file, mmap_mode="r")) for file in folder.glob("*.npy")}


def cached(kind: str, files: Sequence[Path], write: Callable[[Path], None]) -> Path:
    """The cache entry of `kind` and `files`: a folder whose files `write(folder)` makes; made once.

    Of processes that make the same entry at once the first wins and the others take what it made. A damaged entry is
    made again, and said.

    Raises:
      ConfigError: the cache folder cannot be written, or its disk is full.
    """
    digest = hashlib.sha256(kind.encode())
    for file in files:
        digest.update(f"\n{_identity(file)}".encode())
    folder = cache_folder() / "index" / digest.hexdigest()[:32]
    wrong = _damage(folder)
    if not wrong:
        return folder
    if folder.exists():
        print(f"{folder}: {wrong}; it is made again ({kind}).", file=sys.stderr, flush=True)
    temporary = _beside(folder)
    with _writable():
        temporary.mkdir(parents=True)
    try:
        _remove_abandoned(folder)
        with _writable(errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            write(temporary)
            made = {file.name: _state(file) for file in sorted(temporary.iterdir())}
            (temporary / _MANIFEST).write_text(json.dumps({"kind": kind, "files": made}))
        _install(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _identity(file: Path) -> str:
    stat = file.stat()
    if is_remote(file):
        return f"{file} {stat.length} {stat.mtime}"
    return f"{os.path.abspath(file)} {stat.st_size} {stat.st_mtime_ns}"


def _state(file: Path) -> list[int]:
    """[bytes, crc32 of an array's bytes; copies of pictures are too large to be read at each start]."""
    size = file.stat().st_size
    return [size, zlib.crc32(np.memmap(file, np.uint8, "r"))] if file.suffix == ".npy" else [size]


def _damage(folder: Path) -> str:
    """What is wrong with an entry, in words; "" for a whole one."""
    try:
        files = json.loads((folder / _MANIFEST).read_text())["files"]
        for name, state in files.items():
            if _state(folder / name) != state:
                return f"'{name}' is damaged"
    except (OSError, ValueError, KeyError, AttributeError) as error:
        return f"no whole entry ({type(error).__name__})"
    return ""


def _install(temporary: Path, folder: Path) -> None:
    """Renames; where a whole entry is there by now, that one stays."""
    while True:
        try:
            os.rename(temporary, folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if not _damage(folder):
            return
        damaged = _beside(folder)
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(folder, damaged)
        shutil.rmtree(damaged, ignore_errors=True)


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}")


def _remove_abandoned(folder: Path) -> None:
    """Temporary folders of processes of this machine that are no more; a copy of pictures may fill a disk."""
    for left in folder.parent.glob(f"{folder.name}.{socket.gethostname()}.*"):
        pid = int(left.name.split(".")[-2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except PermissionError:
            pass  # somebody else's process, alive


@contextlib.contextmanager
def _writable(*only: int) -> Iterator[None]:
    """Turns an OSError (of one of the numbers) into what to do about the cache folder."""
    try:
        yield
    except OSError as error:
        if only and error.errno not in only:
            raise
        raise ConfigError(
            f"cache folder {cache_folder()}: cannot be written ({error.strerror or error}). Set MMJAX_CACHE to a "
            "folder with room that you may write to."
        ) from None


def parallel(
    function: Callable[[T], Made], items: Sequence[T], label: str, *, unit: str = "part", patience: float = 3.0
) -> list[Made]:
    """[function(item) for item in items], with a progress bar; by several processes where that is worth their start.

    The items are taken here for `patience` seconds. Where the others would then take longer than twice that, processes
    take them over (a process starts in about a second); `function` and the items must be picklable for that.
    """
    made = _made(function, items, patience)
    return [next(made) for _ in progress(range(len(items)), label, unit=unit)]


def _made(function: Callable[[T], Made], items: Sequence[T], patience: float) -> Iterator[Made]:
    started = time.monotonic()
    for done, item in enumerate(items, 1):
        yield function(item)
        spent, left = time.monotonic() - started, len(items) - done
        if left > 1 and _cores() > 1 and spent > patience and spent / done * left > 2 * patience:
            yield from _by_processes(function, items[done:])
            return


def _by_processes(function: Callable[[T], Made], items: Sequence[T]) -> Iterator[Made]:
    done = 0
    # Spawned: a fork would copy the threads' locks of whoever holds JAX or TensorFlow.
    with ProcessPoolExecutor(min(_cores(), len(items)), multiprocessing.get_context("spawn")) as pool:
        try:
            for made in pool.map(function, items):
                yield made
                done += 1
            return
        except BrokenProcessPool:
            print(
                "A process that was to help ended at once, so this one goes on alone. In a script of your own, put "
                "what it runs below `if __name__ == '__main__':`.",
                file=sys.stderr,
                flush=True,
            )
    yield from map(function, itertools.islice(items, done, None))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def content_hash(files: Sequence[Path]) -> str:
    """An identity of what is in the files, wherever they lie and whenever they were written: a sha256 in hex digits.

    Of the files' names, sizes and content, in their order; a file above WHOLE bytes stands in with 16 blocks of 64 KiB
    spread evenly over it, the first and the last among them (headers and footers, which in parquet and tar tell where
    everything lies). Read once and kept.
    """
    files = list(files)
    made = index("content 1", files, lambda: {"digests": _digests(files)})
    digest = hashlib.sha256()
    for file, own in zip(files, made["digests"], strict=True):
        digest.update(f"{file.name}\n".encode() + own.tobytes())
    return digest.hexdigest()


def _digests(files: list[Path]) -> np.ndarray:
    digests = parallel(_content, files, "content of the files", unit="file")
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(files), 32)


def _content(path: Path) -> bytes:
    size = size_of(path)
    digest = hashlib.sha256(f"{size}\n".encode())
    with open_binary(path) as file:
        if size <= WHOLE:
            while block := file.read(1 << 20):
                digest.update(block)
        else:
            for k in range(_BLOCKS):
                file.seek(k * (size - _BLOCK) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.digest()
