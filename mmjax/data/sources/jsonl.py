"""jsonl: `{image, caption|text|captions|...}`, `{image, question, answer|answers}` or `{image, label}` a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmjax.data.sources import SourceConfig
from mmjax.data.sources.fields import meaning
from mmjax.data.sources.pictures import Line, PictureSource, picture_source
from mmjax.errors import ConfigError


def open_jsonl(path: Path, config: SourceConfig, where: str) -> PictureSource:
    """Opens a jsonl file. ConfigError names the file and the line, counted from 1."""
    return picture_source(path, read_lines(path), config.root, config.group, where)


def read_lines(path: Path) -> Iterator[Line]:
    """The objects of the file, as lines about pictures."""
    meanings: dict[tuple[str, ...], dict[str, str]] = {}  # few sets of fields, many lines
    with open(path, "rb") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            at = f"{path.name}, row {number}"
            item = _object(text, at)
            names = tuple(item)
            if names not in meanings:
                meanings[names] = meaning(names, at)
            value = {key: item[name] for key, name in meanings[names].items()}
            answers = _strings(value["answer"], f"{at}: answer") if "answer" in value else None
            yield Line(
                image=_string(value["image"], f"{at}: image"),
                row=number,
                texts=_strings(value["text"], f"{at}: caption") if "text" in value else [],
                question=_string(value["question"], f"{at}: question") if "question" in value else "",
                answers=answers,
                label=_string(value["label"], f"{at}: label") if "label" in value else "",
            )


def _object(text: bytes, at: str) -> dict[str, Any]:
    try:
        item = json.loads(text.decode("utf-8-sig"))
    except ValueError as error:
        raise ConfigError(f"{at}: not json ({error}): {text[:60]!r}. Expected one object a line.") from None
    if not isinstance(item, dict):
        raise ConfigError(
            f"{at}: found a json {type(item).__name__}, expected an object such as {{'image': ..., 'caption': ...}}."
        )
    return item


def _string(value: Any, at: str) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)  # a label or an answer that is a number
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{at}: found {value!r:.60}, expected text.")
    return value


def _strings(value: Any, at: str) -> list[str]:
    if isinstance(value, list) and not value:
        raise ConfigError(f"{at}: an empty list, expected at least one text.")
    return [_string(v, at) for v in value] if isinstance(value, list) else [_string(value, at)]
