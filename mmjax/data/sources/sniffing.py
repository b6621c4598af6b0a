"""Which format a path is in: the first of FORMATS that claims it, by its name and its first bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from mmjax.data.sources import (
    Source,
    SourceConfig,
    coco,
    conversations,
    easy_vqa,
    flat_json,
    folder,
    jsonl,
    nlvr,
    packed,
    parquet,
    table,
    tfds,
    tfrecord,
    vqav2,
    webdataset,
)
from mmjax.data.sources.json_file import first_keys, head_of
from mmjax.errors import ConfigError, did_you_mean


class Format(Protocol):
    """A module of this folder."""

    NAME: str

    @staticmethod
    def claims(path: Path, head: bytes) -> bool:
        """Whether the path, a file or folder or what stands for some files, is in this format. Quick; raises nothing.

        head: the first bytes of a file, else b"".
        """
        ...

    @staticmethod
    def open_source(path: Path, config: SourceConfig, where: str) -> Source:
        """Opens it. ConfigError where that cannot be done."""
        ...


# The particular before the general: a list of conversations is a list of objects too.
FORMATS: tuple[Format, ...] = (
    packed, tfds, webdataset, parquet, tfrecord, coco, vqav2, easy_vqa, conversations, nlvr, flat_json, jsonl, table,
    folder,
)  # fmt: skip

LFS = b"version https://git-lfs"
# (how a file begins, what it is, what to do)
OTHERS = (
    (LFS, "the pointer of Git LFS to a file", "Fetch the file itself, by git lfs pull."),
    (b"PK\3\4", "a zip archive, or a spreadsheet", "Unpack it, or save the sheet as csv."),
    (b"\x1f\x8b", "compressed by gzip", "Unpack it."),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it."),
    (b"\xff\xd8\xff", "one picture", "Set it to the folder of the pictures, or to a file about them."),
    (b"\x89PNG", "one picture", "Set it to the folder of the pictures, or to a file about them."),
    (b"RIFF", "sound or one picture", "Sound is not supported yet."),
    (b"\x93NUMPY", "a NumPy array", "Save its pictures as files."),
    (b"\x89HDF", "HDF5", "Save its pictures as files."),
    (b"SQLite", "a database", "Export its table as csv."),
)


def sniff(path: Path, where: str) -> tuple[Format, Path]:
    """The format of a path, and the path to open it at: a folder with a file about its pictures is opened at that file.
    `where` is the config path of the source, for messages.

    Raises ConfigError where there is nothing, or nothing that can be read: it says what it looks like.
    """
    head = head_of(path)
    kind = claimant(path, head)
    if kind is folder and (about := folder.annotations_of(path, where)):
        return sniff(about, where)
    if kind:
        return kind, path
    raise ConfigError(_unreadable(path, head, where))


def by_name(name: str, path: Path, where: str) -> Format:
    """The format called `name`, where the path may be in it: it claims the path, or a file that none claims.

    Raises ConfigError for an unknown name, and for a path that is plainly in another format.
    """
    names = {kind.NAME: kind for kind in FORMATS}
    if name not in names:
        raise ConfigError(
            f"{where}.format: found '{name}', expected auto or one of {', '.join(names)}.{did_you_mean(name, names)}"
        )
    head, wanted = head_of(path), names[name]
    found = claimant(path, head)
    if found is None and (_other(head) or not head.strip() or wanted is folder):
        raise ConfigError(_unreadable(path, head, where))
    if found is None or _claims(wanted, path, head):
        return wanted
    kind = "a folder that" if path.is_dir() else "a file that" if path.is_file() else "what"
    raise ConfigError(
        f"{where}.format: found '{name}', but '{path}' is {kind} looks like {found.NAME}. Leave it out, or set it to "
        f"{found.NAME}."
    )


def claimant(path: Path, head: bytes) -> Format | None:
    """The first format that claims a path; head: the first bytes of a file, else b""."""
    if os.path.isfile(path) and not head.strip() or head.startswith(LFS):
        return None
    return next((kind for kind in FORMATS if _claims(kind, path, head)), None)


def _claims(kind: Format, path: Path, head: bytes) -> bool:
    """Any text can be a table; but not one that is plainly something else."""
    if kind is table and (_other(head) or head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")):
        return False
    return kind.claims(path, head)


def _other(head: bytes) -> str:
    """What a file is that no format reads, and what to do; "" where its first bytes do not tell."""
    return next((f"{what}. {mend}" for magic, what, mend in OTHERS if head.startswith(magic)), "")


def _unreadable(path: Path, head: bytes, where: str) -> str:
    """Why no format claims the path."""
    names = ", ".join(kind.NAME for kind in FORMATS)
    if not path.exists():
        return f"{where}.path: no file or folder '{path}'.{_neighbour(path)}"
    if not head.strip():
        return f"{where}.path: the file '{path}' is empty. Expected a row for each caption or question."
    if other := _other(head):
        return f"{where}.path: '{path}' is {other}"
    if b"\0" in head[:1024]:
        what = folder.CONTENTS.get(path.suffix.lower(), "not a text file")
        return f"{where}.path: '{path}' is {what}, and none of {names}."
    if keys := first_keys(head):
        shown = ", ".join([*keys[:12], "..."] if len(keys) > 12 else keys)
        return (
            f"{where}.path: '{path}' is json with ({shown}). Expected an object a line, or a list of objects, such as "
            f"{{'image': ..., 'caption': ...}}; or set {where}.format to one of {names}."
        )
    return f"{where}.path: '{path}' begins with {head[:40]!r}, which is none of {names}."


def _neighbour(path: Path) -> str:
    if not path.parent.is_dir():
        return f" There is no folder '{path.parent}' either; set config.data.root."
    return did_you_mean(path.name, [p.name for p in path.parent.iterdir()])
