"""Sources: each format becomes random access to Records (mmjax/README.md). A file a format; this one opens them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmjax.config import choice
from mmjax.errors import ConfigError, did_you_mean

Record = dict[str, Any]


@dataclass(frozen=True)
class SourceConfig:
    """One source of examples.

    Attributes:
      path: a csv, tsv, jsonl or json file, a folder, or `tfds:scenes/easy`; relative ones start at `data.root`.
      root: where the relative pictures of a file are looked for (relative: from `data.root`, else from the file); ""
        infers it: beside the file, images/, imgs/, the parent, ...
      format: "auto" decides by extension and content.
      split: which split of a tfds set; "" is train.
      stream, batch_size: see `DataConfig` and `Config`.
      group: True makes a row a picture with all that is said of it, False a row of each line.
    """

    path: str = ""
    root: str = ""
    format: str = choice("auto", "csv", "jsonl", "easy_vqa", "folder", "tfds")
    split: str = ""
    stream: str = ""
    batch_size: int = 0
    group: bool = True


class Source(Protocol):
    """Random access to Records. `annotations(i)` is `source[i]` without its picture, and reads no picture file."""

    name: str
    fingerprint: str

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Record: ...
    def annotations(self, i: int) -> Record: ...


class Subset:
    """Some rows of a source, in the order given, as a source."""

    def __init__(self, source: Source, rows: np.ndarray, name: str = ""):
        self.rows = np.asarray(rows, np.int64)
        if len(self.rows) and not (self.rows.min() >= 0 and self.rows.max() < len(source)):
            raise IndexError(f"{source.name}: rows out of 0..{len(source) - 1}.")
        self.source = source
        self.name = name or f"{source.name} ({len(self.rows)} of {len(source)} rows)"
        digest = hashlib.sha256(f"{source.fingerprint}:subset:".encode() + self.rows.astype("<i8").tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Record:
        return self.source[int(self.rows[i])]

    def annotations(self, i: int) -> Record:
        return self.source.annotations(int(self.rows[i]))


def holdout(source: Source, share: float, seed: int = 0) -> tuple[Subset, Subset]:
    """Splits off about `share` of the pictures for validation -> (train, validation).

    The side is a hash of the picture's bytes and the seed: identical pictures land on one side, whatever their
    names, and a row keeps its side when others are added. Every picture is read once (6,000 of 8 KB: 0.6 to 1.4 s).
    """
    if not 0 < share < 1:
        raise ConfigError(f"holdout: found a share of {share}, expected a number between 0 and 1.")
    key = f"holdout:{seed}".encode()
    sides: dict[str, bool] = {}
    side = np.zeros(len(source), bool)
    for i in range(len(source)):
        picture = source.annotations(i)["id"]
        if picture not in sides:
            digest = hashlib.blake2b(source[i]["image"], digest_size=8, key=key).digest()
            sides[picture] = int.from_bytes(digest, "big") < share * 2**64
        side[i] = sides[picture]
    if side.all() or not side.any():
        raise ConfigError(
            f"{source.name}: holding out {share:.0%} of {len(source)} rows leaves {int((~side).sum())} to train on and "
            f"{int(side.sum())} to validate on. Give a separate validation file, or another share."
        )
    train, validation = np.flatnonzero(~side), np.flatnonzero(side)
    return Subset(source, train, f"{source.name} (train)"), Subset(source, validation, f"{source.name} (validation)")


def open_source(config: SourceConfig, where: str, base: str = "") -> Source:
    """Opens `config.path`, which starts at `base` if it is relative. `where` is the config path, for messages.

    Raises ConfigError before any step where the file is unreadable, a field is unknown or a picture is absent.
    """
    if not config.path:
        raise ConfigError(
            f"{where}.path: empty. Expected a csv, tsv, jsonl or json file, a folder, or tfds:scenes/easy."
        )
    if config.path.startswith("tfds:"):
        if config.format not in ("auto", "tfds"):
            raise ConfigError(f"{where}.format: found '{config.format}' for '{config.path}', expected tfds or auto.")
        path = Path(config.path)
    else:
        path = Path(base, config.path).expanduser()
        if not path.exists():
            raise ConfigError(f"{where}.path: no file or folder '{path}'.{_neighbour(path)}")
    kind = "tfds" if config.path.startswith("tfds:") else sniff(path, where)
    if config.format not in ("auto", kind):
        _check_forced(config.format, kind, path, where)
        kind = config.format
    if config.split and kind != "tfds":
        raise ConfigError(
            f"{where}.split: found '{config.split}', but {kind} has no splits. Give the split's own file as path."
        )
    if config.root and kind not in ("folder", "tfds"):
        config = replace(config, root=str(_given_root(path, config.root, base, where)))
    return _openers()[kind](path, config, where)


def _given_root(path: Path, root: str, base: str, where: str) -> Path:
    candidates = [Path(base, root).expanduser(), path.parent / root]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"{where}.root: no folder '{candidates[0]}', nor '{candidates[1]}'. Expected where pictures' paths start."
    )


def _neighbour(path: Path) -> str:
    if not path.parent.is_dir():
        return f" There is no folder '{path.parent}' either; set config.data.root."
    return did_you_mean(path.name, [p.name for p in path.parent.iterdir()])


def _openers() -> dict[str, Callable[[Path, SourceConfig, str], Source]]:
    # Imported here, because the formats import this module; and tensorflow_datasets only where it is used.
    from mmjax.data.sources import easy_vqa, folder, jsonl, table, tfds

    return {
        "csv": table.open_table,
        "jsonl": jsonl.open_jsonl,
        "easy_vqa": easy_vqa.open_easy_vqa,
        "folder": folder.open_folder,
        "tfds": tfds.open_tfds,
    }


def sniff(path: Path, where: str) -> str:
    """The format of a file or folder, by its extension and its first characters."""
    if path.is_dir():
        if (path / "dataset_info.json").is_file():
            return "tfds"
        return "easy_vqa" if (path / "questions.json").is_file() else "folder"
    with open(path, "rb") as file:
        raw = file.read(65536)
    if b"\0" in raw[:1024]:
        raise ConfigError(f"{where}.path: '{path}' is not a text file. Expected csv, tsv, jsonl or questions.json.")
    head = raw.decode("utf-8-sig", errors="replace").lstrip()
    if not head:
        raise ConfigError(
            f"{path}: the file is empty. Expected a csv, tsv or jsonl file with a row for each caption or question."
        )
    if head.startswith("{"):
        try:
            json.loads(head.splitlines()[0])
        except ValueError:
            if path.suffix == ".json":
                raise ConfigError(
                    f"{path}: one json object for the whole file, as COCO has it. Expected an object a line (jsonl), "
                    "or [question, answer, image_id] lists (easy_vqa)."
                ) from None
        return "jsonl"
    if head.startswith("["):
        if head[1:].lstrip().startswith("["):
            return "easy_vqa"
        raise ConfigError(
            f"{path}: a json list of objects. Expected an object a line (jsonl), or [question, answer, image_id] lists "
            "(easy_vqa)."
        )
    return "csv"


def _check_forced(forced: str, found: str, path: Path, where: str) -> None:
    if path.is_dir() != (forced in ("folder", "tfds")) and not (path.is_dir() and forced == "easy_vqa"):
        kind = "a folder" if path.is_dir() else "a file"
        raise ConfigError(f"{where}.format: found '{forced}', but '{path}' is {kind} that looks like {found}.")
    if not path.is_dir() and forced != found:
        raise ConfigError(
            f"{where}.format: found '{forced}', but '{path}' looks like {found}. Leave it out, or set it to {found}."
        )
