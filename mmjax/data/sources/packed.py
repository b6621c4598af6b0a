"""A packed set (`mmjax data pack`): what the processor makes of each row, in memory-mapped arrays; no TensorFlow.

    meta.json            how it was made: the processor, the features, the numbers of rows
    bad_records.jsonl    the rows whose picture could not be read, where there are any
    00000/FEATURE.npy    the arrays of the first `shard_rows` rows, and so on

Arrays of a row's texts, questions and answers lie one after the other; `text_start` [rows + 1], `question_start`
[rows + 1] and `answer_start` [questions + 1] say whose they are. The first answer of a question is its most frequent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.sources import Record, SourceConfig
from mmjax.errors import ConfigError

NAME = "packed"
VERSION = 1
META, BAD, ANNOTATIONS = "meta.json", "bad_records.jsonl", "annotations"
_MARK = "mmjax packed"  # the first key of meta.json
OF_TEXT = ("text", "text_mask", "text_key")
OF_QUESTION = ("question", "question_mask", "answer")
OF_ANSWER = ("answer_text", "answer_mask")


def claims(path: Path, head: bytes) -> bool:
    """A folder with the meta.json of a pack."""
    try:
        with open(path / META, encoding="utf-8") as file:
            return _MARK in file.read(64)
    except (OSError, ValueError):
        return False


def open_source(path: Path, config: SourceConfig, where: str) -> PackedSource:
    """Opens a pack. ConfigError for one of another version, and for settings that were applied when it was made."""
    source = PackedSource(path)
    for name in ("root", "fields", "prompt"):
        if given := getattr(config, name):
            raise ConfigError(
                f"{where}.{name}: found {given!r}, but '{path}' is packed, and what it does was done then. Leave it "
                "out, or pack anew."
            )
    return source


def write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
    """Last of all: a folder without it is no pack."""
    (folder / META).write_text(json.dumps({_MARK: VERSION, **meta}), "utf-8")


class PackedSource:
    """A Source whose records hold `packed`, {feature: arrays of the row}, in place of the picture file.

    A record's `key` is a hash of the picture file that it was made from, so that equal pictures stay known as equal.

    Attributes:
      meta: what meta.json holds.
      bad: {row: (cause, what is wrong)} of the rows without a readable picture.
    """

    def __init__(self, folder: Path):
        self.meta = json.loads((folder / META).read_text("utf-8"))
        if self.meta[_MARK] != VERSION:
            raise ConfigError(
                f"{folder}: packed in version {self.meta[_MARK]}, expected {VERSION}. Use the mmjax that wrote it, or "
                "pack anew."
            )
        self.name, self.left_aside = self.meta["name"], self.meta["left_aside"]
        made_of = f"packed {self.meta['source']} {self.meta['sha256']} {sorted(self.meta['features'])}"
        self.fingerprint = hashlib.sha256(made_of.encode()).hexdigest()
        self._rows, self._shard_rows = self.meta["rows"], self.meta["shard_rows"]
        shards = -(-self._rows // self._shard_rows)
        self._shards = [_load(folder / f"{k:05d}") for k in range(shards)]
        self.bad: dict[int, tuple[str, str]] = {}
        if (folder / BAD).exists():
            for line in map(json.loads, (folder / BAD).read_text("utf-8").splitlines()):
                self.bad[line["row"]] = line["cause"], line["error"]

    def __len__(self) -> int:
        return self._rows

    def annotations(self, i: int) -> Record:
        shard, row = self._at(i)
        first, last = shard[f"{ANNOTATIONS}_start"][row : row + 2]
        return json.loads(shard[ANNOTATIONS][first:last].tobytes())

    def __getitem__(self, i: int) -> Record:
        return {**self.annotations(i), "packed": self.arrays(i)}

    def arrays(self, i: int) -> dict[str, Any]:
        """Of row i, without copying: `image` [S, S, 3], `text` [texts, L], `answer_start` [questions + 1], ...

        Of a row that could not be read only `bad`, (cause, what is wrong).
        """
        if i in self.bad:
            return {"bad": self.bad[i]}
        shard, row = self._at(i)
        found = {}
        for names, start in ((OF_TEXT, "text_start"), (OF_QUESTION, "question_start")):
            if start in shard:
                first, last = shard[start][row : row + 2]
                found |= {name: shard[name][first:last] for name in names if name in shard}
        if "answer_start" in shard:  # of the questions first ... last - 1
            starts = shard["answer_start"][first : last + 1]
            found |= {name: shard[name][starts[0] : starts[-1]] for name in OF_ANSWER}
            found["answer_start"] = starts - starts[0]
        of_row = shard.keys() - {*OF_TEXT, *OF_QUESTION, *OF_ANSWER, ANNOTATIONS}
        return found | {name: shard[name][row] for name in of_row if not name.endswith("_start")}

    def _at(self, i: int) -> tuple[dict[str, np.ndarray], int]:
        if not 0 <= i < self._rows:
            raise IndexError(f"{self.name}: row {i} of {self._rows}.")
        return self._shards[i // self._shard_rows], i % self._shard_rows


def _load(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.npy"))
    if not files:
        raise ConfigError(f"{folder}: missing, a part of a packed set. Copy it whole, or pack anew.")
    # Plain arrays over the mapping: picking one number of a np.memmap is ten times slower.
    return {file.stem: np.asarray(np.load(file, mmap_mode="r")) for file in files}
