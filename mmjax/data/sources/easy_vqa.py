"""easy_vqa: `questions.json`, a list of [question, answer, image_id], beside `images/ID.png`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmjax.data.sources import SourceConfig
from mmjax.data.sources.json_file import entries, head_of
from mmjax.data.sources.pictures import Line, PictureSource, picture_source
from mmjax.errors import ConfigError

NAME = "easy_vqa"
EXPECTED = "a list of [question, answer, image_id]"


def claims(path: Path, head: bytes) -> bool:
    """A json list of lists, or a folder with one in `questions.json`."""
    if path.is_dir():
        head = head_of(path / "questions.json")
    return bool(re.match(rb"(?:\xef\xbb\xbf)?\s*\[\s*\[", head))


def open_source(path: Path, config: SourceConfig, where: str) -> PictureSource:
    """Opens the folder, or its json file. ConfigError names the file and the entry, counted from 1."""
    file = path / "questions.json" if path.is_dir() else path
    return picture_source(file, read_lines(file), config.root, config.group, where, tolerate=config.max_bad_fraction)


def read_lines(file: Path) -> Iterator[Line]:
    """The entries of the file, as lines about pictures."""
    for row, (_, entry) in enumerate(entries(file, EXPECTED), 1):
        if not _is_entry(entry):
            raise ConfigError(f"{file.name}, row {row}: found {entry!r:.80}, expected [question, answer, image_id].")
        yield Line(image=f"{entry[2]}.png", row=row, question=entry[0], answers=[entry[1]])


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 3
        and all(isinstance(text, str) and text.strip() for text in entry[:2])
        and isinstance(entry[2], (int, str))
    )
