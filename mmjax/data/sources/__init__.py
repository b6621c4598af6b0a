"""Sources: each format becomes random access to Records (mmjax/README.md). A file a format; `opening.py` opens them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mmjax.config import share
from mmjax.errors import ConfigError

Record = dict[str, Any]


@dataclass(frozen=True)
class SourceConfig:
    """One source of examples.

    Attributes:
      path: a file or folder in one of the formats, or `tfds:scenes/easy`; relative ones start at `data.root`.
      root: where the relative pictures of a file are looked for (relative: from `data.root`, else from the file); ""
        infers it: beside the file, images/, imgs/, the parent, ...
      format: "auto" decides by extension and content; else the name of a format (`sources/sniffing.py`).
      split: which split of a tfds, parquet, COCO, webdataset or TFRecord folder; "" is train, or the only one.
      fields: {"image": "url_path", "text": "alt"}: the columns or keys that hold something, where names do not say.
      prompt: what the texts are put into, e.g. "a photo of a {label}." (`data/templates.py`).
      stream: the training stream that it feeds; sources of one stream are mixed.
      weight: its share of the stream's rows, relative to the others'; 0 in all of them takes the numbers of rows.
      batch_size: of the stream: rows, or packed sequences.
      pack_tokens, pack_rows: the tokens of a packed sequence of the stream, and the most rows in it
        (`data/packing.py`); 0 packs nothing. For training: other sets are read row by row.
      buckets: lengths below `processor.length` (conversations: `chat_length`) that a training batch of the stream is
        cut to, where all its texts are that short (`data/buckets.py`); rows of like length then lie in a batch.
      group: True makes a row a picture with all that is said of it, False a row of each line.
      max_bad_fraction: see `DataConfig`, whose value it takes where it has none.
    """

    path: str = ""
    root: str = ""
    format: str = "auto"
    split: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    prompt: str = ""
    stream: str = ""
    weight: float = 0.0
    batch_size: int = 0
    pack_tokens: int = 0
    pack_rows: int = 0
    buckets: tuple[int, ...] = ()
    group: bool = True
    max_bad_fraction: float = share()

    def check(self, where: str) -> None:
        if self.weight < 0:
            raise ConfigError(f"{where}.weight: found {self.weight}, expected 0 or more.")
        if min(self.pack_tokens, self.pack_rows) < 0 or bool(self.pack_tokens) != bool(self.pack_rows):
            raise ConfigError(
                f"{where}: found pack_tokens {self.pack_tokens} and pack_rows {self.pack_rows}, expected both above 0 "
                "(the tokens of a packed sequence, and the most rows in it), or none."
            )
        if self.pack_rows and self.buckets:
            raise ConfigError(
                f"{where}.buckets: found {self.buckets}, but packed sequences have one length. Leave it out."
            )


class Source(Protocol):
    """Random access to Records. `annotations(i)` is `source[i]` without its pictures, and reads no picture file.

    Attributes:
      name: for messages.
      fingerprint: equal for equal records in equal order.
      left_aside: what was found and is not used, with its count: {"column 'url'": 1000}.
    """

    name: str
    fingerprint: str
    left_aside: Mapping[str, int]

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
        self.left_aside = source.left_aside
        digest = hashlib.sha256(f"{source.fingerprint}:subset:".encode() + self.rows.astype("<i8").tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Record:
        return self.source[int(self.rows[i])]

    def annotations(self, i: int) -> Record:
        return self.source.annotations(int(self.rows[i]))


def at_most(source: Source, rows: int) -> Source:
    """The source, or so many of its rows spread evenly, where it has more."""
    if len(source) <= rows:
        return source
    return Subset(source, np.linspace(0, len(source) - 1, rows).astype(np.int64))
