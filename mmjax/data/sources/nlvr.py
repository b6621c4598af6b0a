"""NLVR (Suhr et al., 2017): a json object a line, `{"sentence", "label", "identifier", "directory"}`; is it true?

The example `1572-0` of dev.json lies in images/DIRECTORY/dev-1572-0-0.png to ...-5.png: one drawing, its boxes in six
orders, for all of which the sentence is as true. A row is one of the six, with the sentence as its question and "true"
or "false" as the answer. About four examples share a sentence, so the sentence is the rows' `key`: one that is trained
on is not validated on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmjax.data.sources import SourceConfig
from mmjax.data.sources.json_file import first_keys, objects
from mmjax.data.sources.pictures import Line, PictureSource, picture_source
from mmjax.errors import ConfigError

NAME = "nlvr"
ORDERS = 6
EXPECTED = "an object such as {'sentence': ..., 'label': 'true', 'identifier': '1572-0', 'directory': '2'}"
USED = ("sentence", "label", "identifier", "directory")


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
    for row, at, item in objects(path, EXPECTED):
        for name in ("sentence", "label", "identifier"):
            if not isinstance(item.get(name), str) or not item[name].strip():
                raise ConfigError(f"{at}: {name}: found {item.get(name)!r:.60}, expected text.")
        left_aside.update(f"field '{name}'" for name in item if name not in USED)
        # Some sentences were written for several pictures, and differ in a full stop.
        key = " ".join(item["sentence"].lower().split()).rstrip(" .")
        folder = f"{item['directory']}/" if "directory" in item else ""
        for order in range(ORDERS):
            yield Line(
                image=f"{folder}{path.stem}-{item['identifier']}-{order}.png",
                row=row,
                question=item["sentence"],
                answers=[item["label"]],
                key=key,
            )
