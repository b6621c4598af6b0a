"""NLVR (Suhr et al., 2017): a json object a line, `{"sentence", "label", "identifier", "directory"}`; is it true?

The example `1572-0` of dev.json lies in images/DIRECTORY/dev-1572-0-0.png to ...-5.png: one drawing, its boxes in six
orders, for all of which the sentence is as true. A row is one of the six, with the sentence as its question and "true"
or "false" as the answer.

About four examples share a sentence, and some drawings stand under two sentences. Examples that share either, or are
linked by others that do, have one `key`: neither a sentence nor a drawing that is trained on is validated on. (In the
development set: 989 examples, 233 keys, of up to 23 examples.)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmjax.data.sources import SourceConfig
from mmjax.data.sources.json_file import first_keys, objects
from mmjax.data.sources.pictures import Line, PictureSource, picture_source
from mmjax.errors import ConfigError

NAME = "nlvr"
ORDERS = 6
EXPECTED = "an object such as {'sentence': ..., 'label': 'true', 'identifier': '1572-0', 'directory': '2'}"
USED = ("sentence", "label", "identifier", "directory", "structured_rep")


def claims(path: Path, head: bytes) -> bool:
    """Objects with a sentence and an identifier."""
    return {"sentence", "identifier", "label"} <= set(first_keys(head))


def open_source(path: Path, config: SourceConfig, where: str) -> PictureSource:
    """Opens SPLIT.json, whose pictures are named for the split. ConfigError names the file and the line."""
    left_aside: Counter[str] = Counter()
    lines = _lines(path, left_aside)
    return picture_source(
        path, lines, config.root, config.group, where, tolerate=config.max_bad_fraction, left_aside=left_aside
    )


def _lines(path: Path, left_aside: Counter[str]) -> Iterator[Line]:
    examples = []
    for row, at, item in objects(path, EXPECTED):
        for name in ("sentence", "label", "identifier"):
            if not isinstance(item.get(name), str) or not item[name].strip():
                raise ConfigError(f"{at}: {name}: found {item.get(name)!r:.60}, expected text.")
        left_aside.update(f"field '{name}'" for name in item if name not in USED)
        examples.append((row, item))
    for (row, item), key in zip(examples, _keys([item for _, item in examples]), strict=True):
        folder = f"{item['directory']}/" if "directory" in item else ""
        for order in range(ORDERS):
            yield Line(
                image=f"{folder}{path.stem}-{item['identifier']}-{order}.png",
                row=row,
                question=item["sentence"],
                answers=[item["label"]],
                key=key,
            )


def _keys(examples: list[dict[str, Any]]) -> list[str]:
    """For each example the first sentence of its group: all that a sentence or a drawing links, directly or not."""
    group: dict[str, str] = {}

    def root(name: str) -> str:
        while group.setdefault(name, name) != name:
            group[name] = name = group[group[name]]
        return name

    sentences = [_sentence(item) for item in examples]
    for sentence, item in zip(sentences, examples, strict=True):
        if drawing := item.get("structured_rep"):
            one, other = root(sentence), root(_drawing(drawing))
            group[other] = one
    first: dict[str, str] = {}
    return [first.setdefault(root(sentence), sentence) for sentence in sentences]


def _sentence(item: dict[str, Any]) -> str:
    """Some sentences were written for several pictures, and differ in a full stop."""
    return " ".join(item["sentence"].lower().split()).rstrip(" .")


def _drawing(boxes: list[list[dict[str, Any]]]) -> str:
    """The same for two drawings whose boxes, in any order, hold the same objects: they have the same six pictures."""
    return json.dumps(sorted(sorted(json.dumps(thing, sort_keys=True) for thing in box) for box in boxes))
