"""easy_vqa: `questions.json`, a list of [question, answer, image_id], beside `images/ID.png`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmjax.data.sources import SourceConfig
from mmjax.data.sources.pictures import Line, PictureSource, picture_source
from mmjax.errors import ConfigError

EXPECTED = "a list of [question, answer, image_id]"


def open_easy_vqa(path: Path, config: SourceConfig, where: str) -> PictureSource:
    """Opens the folder, or its json file. ConfigError names the file and the entry, counted from 1."""
    file = path / "questions.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"{where}.path: no 'questions.json' in '{path}'. Expected it there, beside images/.")
    return picture_source(file, read_lines(file), config.root, config.group, where)


def read_lines(file: Path) -> Iterator[Line]:
    """The entries of the file, as lines about pictures."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file.name}: not json ({error}). Expected {EXPECTED}.") from None
    if not isinstance(entries, list):
        raise ConfigError(f"{file.name}: found a json {type(entries).__name__}, expected {EXPECTED}.")
    for number, entry in enumerate(entries, 1):
        if not _is_entry(entry):
            raise ConfigError(f"{file.name}, row {number}: found {entry!r:.80}, expected [question, answer, image_id].")
        yield Line(image=f"{entry[2]}.png", row=number, question=entry[0], answers=[entry[1]])


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 3
        and all(isinstance(text, str) and text.strip() for text in entry[:2])
        and isinstance(entry[2], (int, str))
    )
