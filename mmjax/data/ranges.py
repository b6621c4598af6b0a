"""Bytes of files by their place: by pread on a disk, by ranged requests from a bucket (gs://, s3://, through epath)."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from mmjax.errors import ConfigError

KEPT_OPEN = 256  # files; of more, each is opened for its read (3 us on a local disk), as a picture's own file would be


def is_remote(path: os.PathLike | str) -> bool:
    return "://" in os.fspath(path)


def path_of(text: str) -> Path:
    """A local path, or one of epath where `text` is an address (gs://bucket/folder)."""
    return epath.Path(text) if is_remote(text) else Path(text)


def open_binary(path: Path) -> io.RawIOBase:
    """Opens a file to be read at places: unbuffered, since what lies between is not wanted."""
    return _Remote(path) if is_remote(path) else open(path, "rb", buffering=0)


class _Remote(io.RawIOBase):
    """What epath opens, as a file: TensorFlow's lacks much of what pyarrow asks of one."""

    def __init__(self, path: Path):
        self._opened = contextlib.ExitStack()
        self._file = self._opened.enter_context(path.open("rb"))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._opened.close()
        super().close()


def size_of(path: Path) -> int:
    """Bytes of the file."""
    stat = path.stat()
    return stat.length if is_remote(path) else stat.st_size


class Ranges:
    """Reads `size` bytes at `offset` of one of some files; safe in threads."""

    def __init__(self, files: Sequence[Path]):
        self.files = list(files)
        self._kept: dict[int, int] = {}

    def read(self, file: int, offset: int, size: int) -> bytes:
        """Raises ConfigError where the file ends sooner: it was changed after its index was made."""
        descriptor = self._kept.get(file)
        if descriptor is None and len(self._kept) < KEPT_OPEN and not is_remote(self.files[file]):
            descriptor = self._keep(file)
        if descriptor is not None:
            data = os.pread(descriptor, size, offset)
        else:
            with open_binary(self.files[file]) as opened:
                opened.seek(offset)
                data = opened.read(size)
        if len(data) != size:
            raise ConfigError(
                f"{self.files[file]}: {len(data)} bytes at {offset}, expected {size}. The file changed while it is in "
                "use; start again."
            )
        return data

    def _keep(self, file: int) -> int:
        opened = os.open(self.files[file], os.O_RDONLY)
        kept = self._kept.setdefault(file, opened)
        if kept != opened:  # another thread was first
            os.close(opened)
        return kept

    def __del__(self) -> None:
        for descriptor in self._kept.values():
            os.close(descriptor)
