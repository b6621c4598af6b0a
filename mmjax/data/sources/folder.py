"""Folders of pictures: a file about them, a folder a class, `x.png` with its captions in `x.txt`, or plain pictures.

A folder with one annotation file at its top or in annotations/ (train.jsonl, or metadata.csv as Hugging Face's
imagefolder has it) is opened through that file; `format="folder"` leaves such files aside.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

from mmjax.data.sources import Record, Source, SourceConfig, coco, conversations, easy_vqa, nlvr, vqav2
from mmjax.data.sources.fields import NAMES
from mmjax.data.sources.json_file import first_keys, head_of
from mmjax.data.sources.pictures import EXTENSIONS
from mmjax.errors import ConfigError

NAME = "folder"
LISTS = (".csv", ".tsv", ".jsonl")
# A folder for each of these is no folder a class.
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"})
# What may lie in a folder without a picture: {extension: what it is}.
CONTENTS = {
    **dict.fromkeys((".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a"), "sound"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm"), "video"),
    **dict.fromkeys((".model", ".vocab", ".bpe"), "vocabularies"),
    **dict.fromkeys((".safetensors", ".bin", ".npz", ".ckpt", ".h5"), "weights or arrays"),
    **dict.fromkeys((".zip", ".gz", ".7z"), "packed"),
}


class FolderSource:
    """Pictures below a folder, in the order of their paths; a row is (path, captions, label)."""

    def __init__(
        self, root: Path, rows: list[tuple[str, list[str], str]], fingerprint: str, left_aside: Mapping[str, int]
    ):
        self.name, self.fingerprint, self.left_aside = root.name, fingerprint, dict(left_aside)
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


def claims(path: Path, head: bytes) -> bool:
    """Any folder that no other format claims."""
    return path.is_dir()


def open_source(path: Path, config: SourceConfig, where: str) -> Source:
    """Opens a folder with captions beside its pictures, labelled by class folders, or of pictures alone.

    Raises ConfigError where it is not clear which of these it is, and for a folder without pictures.
    """
    files = files_below(path)
    pictures = _pictures(files)
    if config.root or config.fields:
        given = "root" if config.root else "fields"
        raise ConfigError(
            f"{where}.{given}: given for '{path}', a folder without a file about its pictures. Leave it out."
        )
    if not pictures:
        raise ConfigError(
            f"{where}.path: no picture below '{path}', which holds {_summary(files)}. Expected "
            f"{', '.join(sorted(EXTENSIONS))} files, or a file about them in one of the formats."
        )
    empty = [name for name in pictures if not files[name]]
    if len(empty) > config.max_bad_fraction * len(pictures):
        raise ConfigError(
            f"{path.name}: the file '{empty[0]}' is empty, of {len(empty)} such. Expected a picture; remove it, or set "
            "data.max_bad_fraction to train without some."
        )
    texts = {_stem(name): name for name in files if _extension(name) == ".txt"}
    paired = [_stem(name) in texts for name in pictures]
    digest = hashlib.sha256(f"folder {len(pictures)} group {config.group}".encode())
    rows: list[tuple[str, list[str], str]] = []
    if any(paired):
        _check_pairs(path, pictures, paired, texts)
        for name in pictures:
            captions = _captions(path, texts[_stem(name)], digest)
            rows += [(name, captions, "")] if config.group else [(name, [text], "") for text in captions]
    else:
        rows = [(name, [], label) for name, label in zip(pictures, _labels(path, pictures, where), strict=True)]
    for name in pictures:
        digest.update(f"\n{name} {files[name]}".encode())
    used = {*pictures, *(texts.values() if any(paired) else ())}
    left_aside = Counter(f"'{_extension(name) or name}' files" for name in files if name not in used)
    return FolderSource(path, rows, digest.hexdigest(), left_aside)


def files_below(root: Path) -> dict[str, int]:
    """{path below root with forward slashes: bytes}, without hidden files."""
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in names:
            if not name.startswith("."):
                file = os.path.join(folder, name)
                found[os.path.relpath(file, root).replace(os.sep, "/")] = os.path.getsize(file)
    return found


def _pictures(files: Iterable[str]) -> list[str]:
    return sorted(name for name in files if _extension(name) in EXTENSIONS)


def annotations_of(path: Path, where: str) -> Path | None:
    """The one file about the pictures of a folder, None where there is none. ConfigError where there are several, or
    deeper ones.
    """
    files = files_below(path)
    pictures = _pictures(files)
    stems = {_stem(name) for name in pictures}  # x.json beside x.jpg is about x.jpg, and of no format here
    lists = sorted(name for name in files if _extension(name) in (*LISTS, ".json") and _stem(name) not in stems)
    near = [name for name in lists if name.removeprefix("annotations/").count("/") == 0]
    found = [name for name in near if _says(path / name)]
    if len(found) == 1:
        return path / found[0]
    if found := found or list(islice((name for name in lists if _says(path / name)), 8)):
        plain = f"; or, for the pictures alone, {where}.format to folder" if pictures else ""
        raise ConfigError(
            f"{where}.path: '{path}' is a folder with {', '.join(found)}. Set {where}.path to the one to open{plain}."
        )
    return None


def _says(file: Path) -> bool:
    """Whether a file is about pictures: every table and jsonl, and the json of a format or that names pictures."""
    if _extension(file.name) in LISTS:
        return True
    head = head_of(file)
    kinds = (coco, vqav2, easy_vqa, conversations, nlvr)
    return any(kind.claims(file, head) for kind in kinds) or not set(NAMES["image"]).isdisjoint(first_keys(head))


def _check_pairs(root: Path, pictures: list[str], paired: list[bool], texts: Mapping[str, str]) -> None:
    if not all(paired):
        lone = pictures[paired.index(False)]
        raise ConfigError(
            f"{root.name}: {sum(paired)} of {len(pictures)} pictures have a text file, '{lone}' has none. Expected "
            f"'{_stem(lone)}.txt', a caption a line; write it or move the picture away."
        )
    if orphans := sorted(texts.keys() - {_stem(name) for name in pictures}):
        raise ConfigError(
            f"{root.name}: '{texts[orphans[0]]}' has no picture of that name, nor have {len(orphans) - 1} others. "
            "Expected captions beside their pictures; move it away."
        )


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


def _labels(root: Path, pictures: list[str], where: str) -> list[str]:
    """The class folder of each picture; "" for all where there is none, or only one, which tells nothing apart."""
    labels = [name.split("/")[0] if "/" in name else "" for name in pictures]
    if any(labels) and not all(labels):
        loose = pictures[labels.index("")]
        raise ConfigError(
            f"{root.name}: '{loose}' is in no class folder, but {sum(map(bool, labels))} are. Expected all or none."
        )
    kinds = sorted(set(labels))
    if all(kind.lower() in SPLITS for kind in kinds):
        raise ConfigError(
            f"{where}.path: '{root}' holds splits ({', '.join(kinds)}), not classes. Set it to '{root / kinds[0]}'."
        )
    return labels if len(kinds) > 1 else [""] * len(labels)


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _summary(files: Iterable[str]) -> str:
    """What lies there, by extension: "3000 .wav files (sound)"."""
    counts = Counter(map(_extension, files)).most_common(5)
    kinds = [f"{n} {end or 'other'} files" + (f" ({CONTENTS[end]})" if end in CONTENTS else "") for end, n in counts]
    return ", ".join(kinds) or "no file"
