"""Folders of pictures: a folder a class, `x.png` with its captions in `x.txt`, or plain pictures."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mmjax.data.sources import Record, SourceConfig
from mmjax.data.sources.pictures import EXTENSIONS
from mmjax.errors import ConfigError


class FolderSource:
    """Pictures below a folder, in the order of their paths; a row is (path, captions, label)."""

    def __init__(self, root: Path, rows: list[tuple[str, list[str], str]], fingerprint: str):
        self.name, self.fingerprint = root.name, fingerprint
        self._root, self._rows = root, rows

    def __len__(self) -> int:
        return len(self._rows)

    def annotations(self, i: int) -> Record:
        picture, texts, label = self._rows[i]
        record: Record = {"id": picture}
        if texts:
            record["texts"] = list(texts)
        if label:
            record["label"] = label
        return record

    def __getitem__(self, i: int) -> Record:
        record = self.annotations(i)
        record["image"] = (self._root / record["id"]).read_bytes()
        return record


def open_folder(path: Path, config: SourceConfig, where: str) -> FolderSource:
    """Opens a folder: captions where text files lie beside the pictures, else labels where there are class folders."""
    if config.root:
        raise ConfigError(
            f"{where}.root: found '{config.root}', but a folder's pictures are in the folder. Leave it out."
        )
    files = _files(path)
    lists = [name for name in files if "/" not in name and name.endswith((".csv", ".tsv", ".jsonl"))]
    if lists and config.format != "folder":
        raise ConfigError(
            f"{where}.path: '{path}' is a folder with {', '.join(sorted(lists))}. Expected only pictures and captions; "
            f"to train on that file, set {where}.path to it; to leave it aside, set {where}.format to folder."
        )
    pictures = sorted(name for name in files if os.path.splitext(name)[1].lower() in EXTENSIONS)
    if not pictures:
        raise ConfigError(
            f"{where}.path: no picture below '{path}', which holds {_summary(files)}. Expected "
            f"{', '.join(sorted(EXTENSIONS))} files, or the path of a csv or jsonl file."
        )
    for name in pictures:
        if not files[name]:
            raise ConfigError(f"{path.name}: the file '{name}' is empty. Expected a picture; remove it.")
    stems = {os.path.splitext(name)[0] for name in files if name.endswith(".txt")}
    paired = [os.path.splitext(name)[0] in stems for name in pictures]
    digest = hashlib.sha256(f"folder {len(pictures)} group {config.group}".encode())
    if any(paired):
        if not all(paired):
            lone = pictures[paired.index(False)]
            raise ConfigError(
                f"{path.name}: {sum(paired)} of {len(pictures)} pictures have a text file, '{lone}' has none. Expected "
                f"'{os.path.splitext(lone)[0]}.txt', a caption a line; write it or move the picture away."
            )
        if orphans := sorted(stems - {os.path.splitext(name)[0] for name in pictures}):
            raise ConfigError(
                f"{path.name}: '{orphans[0]}.txt' has no picture of that name, nor have {len(orphans) - 1} others. "
                "Expected captions beside their pictures; move it away."
            )
        rows = []
        for name in pictures:
            texts = _captions(path, os.path.splitext(name)[0] + ".txt", digest)
            rows += [(name, texts, "")] if config.group else [(name, [text], "") for text in texts]
    else:
        rows = [(name, [], label) for name, label in zip(pictures, _labels(path, pictures), strict=True)]
    for name in pictures:
        digest.update(f"\n{name} {files[name]}".encode())
    return FolderSource(path, rows, digest.hexdigest())


def _files(root: Path) -> dict[str, int]:
    """{path below root with forward slashes: bytes}, without hidden files."""
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in names:
            if not name.startswith("."):
                file = os.path.join(folder, name)
                found[os.path.relpath(file, root).replace(os.sep, "/")] = os.path.getsize(file)
    return found


def _captions(root: Path, name: str, digest: hashlib._Hash) -> list[str]:
    raw = (root / name).read_bytes()
    digest.update(raw)
    try:
        texts = [line.strip() for line in raw.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{root.name}: '{name}' is not UTF-8 (byte {error.start}). Expected a caption a line."
        ) from None
    if not texts:
        raise ConfigError(f"{root.name}: '{name}' is empty. Expected a caption a line.")
    return texts


def _labels(root: Path, pictures: list[str]) -> list[str]:
    """The class folder of each picture; "" for all where there is none, or only one, which tells nothing apart."""
    labels = [name.split("/")[0] if "/" in name else "" for name in pictures]
    if any(labels) and not all(labels):
        loose = pictures[labels.index("")]
        raise ConfigError(
            f"{root.name}: '{loose}' is in no class folder, but {sum(map(bool, labels))} are. Expected all or none."
        )
    return labels if len(set(labels)) > 1 else [""] * len(labels)


def _summary(files: dict[str, int]) -> str:
    return f"{len(files)} other files such as '{sorted(files)[0]}'" if files else "no file"
