"""What formats of annotation files share: lines about pictures, where the pictures lie, and one row a picture."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.sources import Record
from mmjax.errors import ConfigError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
FOLDERS = ("", "images", "imgs", "image", "img", "pictures", "photos", "../images", "..", "../..")
PROBED = 16  # pictures that must exist below a folder for it to be taken as their root
CHECKED = 100_000  # lines of a large file whose pictures are looked for at the start, spread evenly


@dataclass(slots=True)
class Line:
    """One line of an annotation file; `row` is its number there, from 1.

    Attributes:
      image, more: paths of its picture, "" for none, and of further ones.
      answers: None without a question.
      label, labels: the one class, or several at once.
      messages, key: as in Record (mmjax/README.md).
      id: of the row, where it has one of its own.
    """

    image: str
    row: int
    texts: list[str] = field(default_factory=list)
    question: str = ""
    answers: list[str] | None = None
    label: str = ""
    labels: list[str] = field(default_factory=list)
    more: list[str] = field(default_factory=list)
    messages: list[dict[str, Any]] | None = None
    key: str = ""
    id: str = ""


@dataclass(frozen=True)
class Groups:
    """Which lines make a row: those of row i are `order[starts[i] : starts[i + 1]]`."""

    starts: np.ndarray
    order: np.ndarray

    @staticmethod
    def of(keys: np.ndarray) -> Groups:
        """Lines with equal keys [lines] uint64 make a row; rows and their lines keep the order of the lines."""
        if not len(keys):
            return Groups(np.zeros(1, np.int64), np.zeros(0, np.int64))
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(keys[order]) != 0])
        sizes = np.diff(np.r_[starts, len(keys)])
        by_first = np.argsort(order[starts], kind="stable")
        begins = np.r_[0, np.cumsum(sizes[by_first])].astype(np.int64)
        within = np.arange(len(keys)) - np.repeat(begins[:-1], sizes[by_first])
        return Groups(begins, order[np.repeat(starts[by_first], sizes[by_first]) + within])


class PictureSource:
    """Lines about picture files, as a Source. A row is a picture with all its lines, by first appearance, or a line."""

    def __init__(
        self,
        file: Path,
        lines: Sequence[Line],
        root: Path,
        groups: Groups | None,
        fingerprint: str,
        left_aside: Mapping[str, int] = {},  # noqa: B006
    ):
        self.name, self.fingerprint, self.left_aside = file.name, fingerprint, dict(left_aside)
        self._lines, self._root, self._groups = lines, root, groups

    def __len__(self) -> int:
        return len(self._lines) if self._groups is None else len(self._groups.starts) - 1

    def _of(self, i: int) -> list[Line]:
        if self._groups is None:
            return [self._lines[i]]
        first, last = self._groups.starts[i : i + 2]
        return [self._lines[int(k)] for k in self._groups.order[first:last]]

    def annotations(self, i: int) -> Record:
        return _record(self._of(i))

    def __getitem__(self, i: int) -> Record:
        lines = self._of(i)
        record = _record(lines)
        paths = [path for path in (lines[0].image, *lines[0].more) if path]
        if paths:
            pictures = [(self._root / path).read_bytes() for path in paths]
            record["image"] = pictures[0]
            if len(pictures) > 1:
                record["images"] = pictures
        return record


def _record(lines: list[Line]) -> Record:
    first = lines[0]
    record: Record = {"id": first.id or first.image or f"row {first.row}"}
    if texts := [text for line in lines for text in line.texts]:
        record["texts"] = texts
    if qa := [{"question": x.question, "answers": list(x.answers)} for x in lines if x.answers is not None]:
        record["qa"] = qa
    if label := next((line.label for line in lines if line.label), ""):
        record["label"] = label
    if labels := list(dict.fromkeys(label for line in lines for label in line.labels)):
        record["labels"] = labels
    if first.messages is not None:
        record["messages"] = first.messages
    if first.key:
        record["key"] = first.key
    return record


def picture_source(
    file: Path,
    lines: Iterable[Line],
    root: str,
    group: bool,
    where: str,
    *,
    tolerate: float = 0.0,
    left_aside: Mapping[str, int] = {},  # noqa: B006
) -> PictureSource:
    """Finds the pictures of the lines, checks that every one is there and not empty, and makes the source.

    Args:
      root: the folder of relative pictures; "" infers it.
      tolerate: share of the pictures that may be missing.
      left_aside: see `Source`.
    """
    lines = list(lines)
    if not lines:
        raise ConfigError(f"{file}: no rows. Expected a row for each caption or question.")
    base = Path(root) if root else infer_root(file, lines)
    sizes = check_pictures(file, lines, base, where, tolerate)
    groups = None
    if group:
        number: dict[str, int] = {}
        keys = [number.setdefault(line.image or f"\0{k}", k) for k, line in enumerate(lines)]
        groups = Groups.of(np.array(keys, np.uint64))
        _check_labels(file, lines)
    rows = len(lines) if groups is None else len(groups.starts) - 1
    digest = hashlib.sha256(file.read_bytes())
    digest.update(f"rows {rows}".encode())
    for image in dict.fromkeys(path for line in lines for path in (line.image, *line.more) if path):
        digest.update(f"\n{image} {sizes[image]}".encode())
    return PictureSource(file, lines, base, groups, digest.hexdigest(), left_aside)


def _check_labels(file: Path, lines: list[Line]) -> None:
    labelled: dict[str, Line] = {}
    for line in lines:
        if line.label and line.label != labelled.setdefault(line.image, line).label:
            first = labelled[line.image]
            raise ConfigError(
                f"{file.name}, row {line.row}: label '{line.label}' for '{line.image}', but '{first.label}' in "
                f"row {first.row}. Expected one label a picture; set group=False to train on both."
            )


def infer_root(file: Path, lines: Sequence[Line]) -> Path:
    """The first of FOLDERS, seen from the file, below which most of the first pictures exist."""
    first = list(dict.fromkeys(line.image for line in lines[: 50 * PROBED] if line.image))[:PROBED]
    found = {}
    for folder in FOLDERS:
        base = Path(os.path.normpath(file.parent.absolute() / folder))
        if base not in found:
            found[base] = sum((base / image).is_file() for image in first)
    # The most wins, and of equals the first: a single missing picture must be named as missing, not move the root.
    return max(found, key=lambda base: found[base])


def check_pictures(file: Path, lines: Iterable[Line], base: Path, where: str, tolerate: float = 0.0) -> dict[str, int]:
    """{picture: bytes} of every picture named, 0 for an absent or empty one. Scans each folder once.

    More absent or empty ones than the share `tolerate` are a ConfigError that names the first.
    """
    folders: dict[str, dict[str, int]] = {}
    sizes: dict[str, int] = {}
    first, missing = "", 0
    for number, line in enumerate(lines):
        for image in (line.image, *line.more):
            if not image or image in sizes:
                continue
            folder, name = os.path.split(os.path.join(base, image))
            if folder not in folders:
                folders[folder] = dict(_scan(folder))
            size = folders[folder].get(name)
            sizes[image] = size or 0
            if not size:
                missing += 1
                first = first or _absent(file, line, number, image, size, base, where)
    if missing > tolerate * len(sizes):
        many = f" ({missing} of {len(sizes)} pictures are missing.)" if missing > 1 else ""
        raise ConfigError(first + many)
    return sizes


def _absent(file: Path, line: Line, number: int, image: str, size: int | None, base: Path, where: str) -> str:
    fine = f"The first {line.row - 1} rows are fine" if number else "It is the first picture"
    wrong = f"no file '{image}' below {base}" if size is None else f"the file '{image}' below {base} is empty"
    return (
        f"{file.name}, row {line.row}: {wrong}. {fine}; set {where}.root if the pictures are elsewhere, or "
        "data.max_bad_fraction to train without some."
    )


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
