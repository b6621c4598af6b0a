"""What csv, jsonl and easy_vqa share: lines about pictures, where the pictures lie, and one row a picture."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmjax.data.sources import Record
from mmjax.errors import ConfigError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
FOLDERS = ("", "images", "imgs", "image", "img", "pictures", "photos", "../images", "..", "../..")
PROBED = 16  # pictures that must exist below a folder for it to be taken as their root


@dataclass(slots=True)
class Line:
    """One line of an annotation file; `row` is its number there, from 1. `answers` is None without a question."""

    image: str
    row: int
    texts: list[str] = field(default_factory=list)
    question: str = ""
    answers: list[str] | None = None
    label: str = ""


class PictureSource:
    """Lines about picture files, as a Source. A row is a picture with all its lines, by first appearance, or a line."""

    def __init__(self, file: Path, lines: list[Line], root: Path, sizes: dict[str, int], group: bool):
        self.name, self._root = file.name, root
        rows: dict[Any, list[Line]] = {}
        for number, line in enumerate(lines):
            rows.setdefault(line.image if group else number, []).append(line)
        self._rows = list(rows.values())
        if group:
            for about in self._rows:
                _one_label(file, about)
        digest = hashlib.sha256(file.read_bytes())
        digest.update(f"rows {len(self._rows)}".encode())
        for image in dict.fromkeys(line.image for line in lines):
            digest.update(f"\n{image} {sizes[image]}".encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    def annotations(self, i: int) -> Record:
        lines = self._rows[i]
        record: Record = {"id": lines[0].image}
        if texts := [text for line in lines for text in line.texts]:
            record["texts"] = texts
        if qa := [{"question": x.question, "answers": list(x.answers)} for x in lines if x.answers is not None]:
            record["qa"] = qa
        if label := next((line.label for line in lines if line.label), ""):
            record["label"] = label
        return record

    def __getitem__(self, i: int) -> Record:
        record = self.annotations(i)
        record["image"] = (self._root / record["id"]).read_bytes()
        return record


def _one_label(file: Path, lines: list[Line]) -> None:
    labelled = [line for line in lines if line.label]
    for line in labelled:
        if line.label != labelled[0].label:
            raise ConfigError(
                f"{file.name}, row {line.row}: label '{line.label}' for '{line.image}', but '{labelled[0].label}' in "
                f"row {labelled[0].row}. Expected one label a picture; set group=False to train on both."
            )


def picture_source(file: Path, lines: Iterable[Line], root: str, group: bool, where: str) -> PictureSource:
    """Finds the pictures of the lines, checks that every one is there and not empty, and makes the source.

    root: the folder of relative pictures; "" infers it.
    """
    lines = list(lines)
    if not lines:
        raise ConfigError(f"{file}: no rows. Expected a row for each caption or question.")
    base = Path(root) if root else infer_root(file, lines)
    return PictureSource(file, lines, base, check_pictures(file, lines, base, where), group)


def infer_root(file: Path, lines: list[Line]) -> Path:
    """The first of FOLDERS, seen from the file, below which most of the first pictures exist."""
    first = list(dict.fromkeys(line.image for line in lines[: 50 * PROBED]))[:PROBED]
    found = {}
    for folder in FOLDERS:
        base = Path(os.path.normpath(file.parent.absolute() / folder))
        if base not in found:
            found[base] = sum((base / image).is_file() for image in first)
    # The most wins, and of equals the first: a single missing picture must be named as missing, not move the root.
    return max(found, key=lambda base: found[base])


def check_pictures(file: Path, lines: list[Line], base: Path, where: str) -> dict[str, int]:
    """{picture: bytes} of every picture named. Scans each folder once; an absent or empty picture is an error."""
    folders: dict[str, dict[str, int]] = {}
    sizes: dict[str, int] = {}
    for number, line in enumerate(lines):
        if line.image in sizes:
            continue
        folder, name = os.path.split(os.path.join(base, line.image))
        if folder not in folders:
            folders[folder] = dict(_scan(folder))
        size = folders[folder].get(name)
        if not size:
            fine = f"The first {line.row - 1} rows are fine" if number else "It is the first picture"
            wrong = (
                f"no file '{line.image}' below {base}"
                if size is None
                else f"the file '{line.image}' below {base} is empty"
            )
            raise ConfigError(
                f"{file.name}, row {line.row}: {wrong}. {fine}; set {where}.root if the pictures are elsewhere."
            )
        sizes[line.image] = size
    return sizes


def _scan(folder: str) -> Iterator[tuple[str, int]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file():
                    yield entry.name, entry.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return


def looks_like_picture(text: str) -> bool:
    """Whether a field's value ends like a picture file."""
    return os.path.splitext(text.strip())[1].lower() in EXTENSIONS
