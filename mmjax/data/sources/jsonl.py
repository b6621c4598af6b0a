"""jsonl: `{image, caption|text|captions|...}`, `{image, question, answer|answers}` or `{image, label}` a line.

A file of up to READ_WHOLE bytes is read and checked at the start. Of a larger one only the places of its lines and the
names of its pictures are indexed (once), and a line is parsed when its row is read: memory stays flat.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.data.sources import Source, SourceConfig
from mmjax.data.sources.fields import meaning
from mmjax.data.sources.line_file import READ_WHOLE, large_source
from mmjax.data.sources.pictures import Line, picture_source
from mmjax.errors import ConfigError

NAME = "jsonl"


def claims(path: Path, head: bytes) -> bool:
    """A first line that is a json object by itself."""
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\n", 1)[0]
    if not first.startswith(b"{"):
        return False
    try:
        json.loads(first)
    except ValueError:
        return path.suffix == ".jsonl"  # the reader says which line is wrong
    return True


def open_source(path: Path, config: SourceConfig, where: str) -> Source:
    """Opens a jsonl file. ConfigError names the file and the line, counted from 1."""
    if path.stat().st_size > READ_WHOLE:
        return large_source(path, JsonLines(path, config.fields), config, where)
    left_aside: Counter[str] = Counter()
    parse = JsonLines(path, config.fields, left_aside)
    with open(path, "rb") as file:
        lines = [parse(text, number) for number, text in enumerate(file, 1) if text.strip()]
    return picture_source(
        path, lines, config.root, config.group, where, tolerate=config.max_bad_fraction, left_aside=left_aside
    )


class JsonLines:
    """Bytes of a line -> Line."""

    def __init__(self, path: Path, fields: Mapping[str, str], left_aside: Counter[str] | None = None):
        self._file, self._fields, self._left_aside = path.name, dict(fields), left_aside

    def __call__(self, text: bytes, number: int) -> Line:
        at = f"{self._file}, row {number}"
        return line_of(object_of(text, at), number, at, self._fields, self._left_aside)

    def row_ends(self, chunk: Any) -> Any:
        """Where rows end in a chunk of the file: at every line's end."""
        return chunk == 10

    def keys(self, chunk: bytes, count: int) -> list[bytes]:
        """The pictures' names, as they are written, of the `count` lines in a chunk of whole lines."""
        names = [self._fields["image"]] if "image" in self._fields else _image_names()
        either = "|".join(map(re.escape, names))
        found = re.findall(rf'"(?:{either})"\s*:\s*"((?:[^"\\]|\\.)*)"'.encode(), chunk)
        if len(found) == count:
            return found
        lines = (line for line in chunk.split(b"\n") if line.strip())  # a caption that looks like a key, numbers, ...
        return [self(line, 0).image.encode() for line in lines]


def _image_names() -> tuple[str, ...]:
    from mmjax.data.sources.fields import NAMES

    return NAMES["image"]


_meanings: dict[tuple[Any, ...], tuple[dict[str, str], tuple[str, ...]]] = {}  # few sets of fields, many lines


def line_of(
    item: Mapping[str, Any],
    row: int,
    at: str,
    fields: Mapping[str, str] = {},  # noqa: B006
    left_aside: Counter[str] | None = None,
) -> Line:
    """An object with one of the sets of fields of `fields.meaning` -> Line. `at` names it in messages.

    left_aside: counts the names that mean nothing here.
    """
    names = (*item, None, *fields.items())
    if names not in _meanings:
        _meanings[names] = meaning(tuple(item), at, fields)
    meanings, unknown = _meanings[names]
    if left_aside is not None:
        left_aside.update(f"field '{name}'" for name in unknown)
    value = {key: item[name] for key, name in meanings.items()}
    answers = _strings(value["answer"], f"{at}: answer") if "answer" in value else None
    label = value.get("label")
    images = _strings(value["image"], f"{at}: image")
    return Line(
        image=images[0],
        more=images[1:],
        row=row,
        texts=_strings(value["text"], f"{at}: caption") if "text" in value else [],
        question=_string(value["question"], f"{at}: question") if "question" in value else "",
        answers=answers,
        label=_string(label, f"{at}: label") if label is not None and not isinstance(label, list) else "",
        labels=_strings(label, f"{at}: label") if isinstance(label, list) else [],
    )


def object_of(text: bytes, at: str) -> dict[str, Any]:
    """The json object of a line. `at` names it in messages."""
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
