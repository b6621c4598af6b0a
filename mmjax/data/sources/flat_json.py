"""A json list of objects, as LAVIS and the Karpathy split have it: `[{"image", "caption": text or list}]`, or any jsonl
object in a list. The number of a row is its place in the list, from 1.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mmjax.data.sources import SourceConfig
from mmjax.data.sources.json_file import objects, outline
from mmjax.data.sources.jsonl import line_of
from mmjax.data.sources.pictures import PictureSource, picture_source

NAME = "flat_json"
EXPECTED = "an object such as {'image': ..., 'caption': ...}"


def claims(path: Path, head: bytes) -> bool:
    """A json list whose first item is an object."""
    return "" in outline(head)


def open_source(path: Path, config: SourceConfig, where: str) -> PictureSource:
    """Opens the file by the rules of jsonl. ConfigError names the file and the row."""
    left_aside: Counter[str] = Counter()

    lines = (line_of(item, row, at, config.fields, left_aside) for row, at, item in objects(path, EXPECTED))
    return picture_source(
        path, lines, config.root, config.group, where, tolerate=config.max_bad_fraction, left_aside=left_aside
    )
