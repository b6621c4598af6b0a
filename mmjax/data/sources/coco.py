"""COCO json: `captions_SPLIT.json` gives texts, `instances_SPLIT.json` the names of what is in the picture (labels).

    {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption" or "category_id"}], "categories": [{"id",
    "name"}]}

A folder with both for one split, at its top or in annotations/, is opened with both; a file by itself. Pictures are
looked for in a folder named like the split (annotations/captions_train2017.json: train2017/), else as for every format.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmjax.data.sources import SourceConfig
from mmjax.data.sources.json_file import entries, outline
from mmjax.data.sources.pictures import PROBED, Line, PictureSource, infer_root, picture_source
from mmjax.errors import ConfigError, did_you_mean

NAME = "coco"
EXPECTED = "one object with the lists images, annotations and, for instances, categories"
KINDS = ("captions", "instances")


def claims(path: Path, head: bytes) -> bool:
    """One object with images and annotations, or a folder with files that are named as COCO's."""
    if path.is_dir():
        return bool(_splits(path))
    found = outline(head)
    about = found.get("annotations", ())
    return "file_name" in found.get("images", ()) or "image_id" in about and "question_id" not in about


def open_source(path: Path, config: SourceConfig, where: str) -> PictureSource:
    """Opens a file, or the files of one split of a folder. ConfigError names the file and the annotation, from 1."""
    files = _chosen(path, config.split, where) if path.is_dir() else [path]
    if config.split and not path.is_dir():
        raise ConfigError(
            f"{where}.split: found '{config.split}', but '{path}' is the file of one split. Leave it out."
        )
    told = Told()
    for file in files:
        _read(file, told)
    used = {image for _, image, _ in told.captions} | set(told.categories)
    told.left_aside["pictures without annotations"] = len(told.names) - len(used)
    lines = list(_lines(told))
    source = picture_source(
        files[0],
        lines,
        config.root or _root(files[0], lines),
        config.group,
        where,
        tolerate=config.max_bad_fraction,
        left_aside=+told.left_aside,
    )
    for file in files[1:]:
        source.fingerprint = hashlib.sha256(source.fingerprint.encode() + file.read_bytes()).hexdigest()
    return source


@dataclass
class Told:
    """What the files of a split say.

    Attributes:
      names: {image id: file name}.
      captions: (number of the annotation, image id, caption).
      categories: {image id: {category id: number of the first annotation that has it}}.
      category_names: {category id: name}, in the order of the file.
    """

    names: dict[Any, str] = field(default_factory=dict)
    captions: list[tuple[int, Any, str]] = field(default_factory=list)
    categories: dict[Any, dict[Any, int]] = field(default_factory=dict)
    category_names: dict[Any, str] = field(default_factory=dict)
    left_aside: Counter[str] = field(default_factory=Counter)


def _read(file: Path, told: Told) -> None:
    """Adds what one file says."""
    row, images, categories = 0, {}, {}  # {id: the first annotation that has it}
    for key, item in entries(file, EXPECTED):
        if key == "images":
            known = told.names.setdefault(_get(item, "id", f"{file.name}, images"), _get(item, "file_name", file.name))
            if known != item["file_name"]:
                raise ConfigError(
                    f"{file.name}: image {item['id']} is '{item['file_name']}' and '{known}'. Expected a file an id."
                )
        elif key == "categories":
            told.category_names[_get(item, "id", f"{file.name}, categories")] = str(_get(item, "name", file.name))
        elif key == "annotations":
            row += 1
            _annotation(item, row, f"{file.name}, annotation {row}", told)
            images.setdefault(item["image_id"], row)
            categories.setdefault(item.get("category_id"), row)
    categories.pop(None, None)
    for name, used, known in (("image_id", images, told.names), ("category_id", categories, told.category_names)):
        if absent := [value for value in used if value not in known]:
            raise ConfigError(
                f"{file.name}, annotation {used[absent[0]]}: {name} {absent[0]!r} is none of the {len(known)} that the "
                "file lists. Expected it there; remove the annotation."
            )
    if not row:
        raise ConfigError(f"{file.name}: no annotations. Expected {EXPECTED}; a test split has none to train on.")


def _annotation(item: Any, row: int, at: str, told: Told) -> None:
    image = _get(item, "image_id", at)
    if "caption" in item:
        if not isinstance(item["caption"], str) or not item["caption"].strip():
            raise ConfigError(f"{at}: caption: found {item['caption']!r:.60}, expected text.")
        told.captions.append((row, image, item["caption"].strip()))
    if "category_id" in item:
        told.categories.setdefault(image, {}).setdefault(item["category_id"], row)
    elif "caption" not in item:
        raise ConfigError(f"{at}: found ({', '.join(item)}), expected a caption or a category_id.")
    told.left_aside.update(
        f"field '{name}'" for name in item if name not in ("id", "image_id", "caption", "category_id")
    )


def _get(item: Any, name: str, at: str) -> Any:
    if not isinstance(item, dict) or name not in item:
        raise ConfigError(f"{at}: found {item!r:.80}, expected an object with '{name}'.")
    return item[name]


def _lines(told: Told) -> Iterator[Line]:
    """A line a caption, each with the picture's labels, and a line for each picture that has labels only."""
    order = {category: place for place, category in enumerate(told.category_names)}
    labels = {
        image: [told.category_names[category] for category in sorted(found, key=order.__getitem__)]
        for image, found in told.categories.items()
    }
    for row, image, caption in told.captions:
        yield Line(told.names[image], row, texts=[caption], labels=labels.get(image, []))
    captioned = {image for _, image, _ in told.captions}
    for image, found in told.categories.items():
        if image not in captioned:
            yield Line(told.names[image], min(found.values()), labels=labels[image])


def _root(file: Path, lines: Sequence[Line]) -> str:
    """The folder named like the file's split, "" where there is none."""
    split = _split(file)
    if not split:
        return ""
    around = (file.parent.parent, file.parent, file.parent.parent / "images", file.parent / "images")
    folders = [folder / split for folder in around if (folder / split).is_dir()]
    holds = (f for f in (*folders, infer_root(file, lines)) if any((f / x.image).is_file() for x in lines[:PROBED]))
    return str(next(holds, folders[0] if folders else ""))


def _split(file: Path) -> str:
    return file.stem.partition("_")[2]


def _splits(folder: Path) -> dict[str, list[Path]]:
    """{split: its files, captions before instances}, of a folder and of its annotations/."""
    found: dict[str, list[Path]] = {}
    for place in (folder, folder / "annotations"):
        for kind in KINDS:
            for file in sorted(place.glob(f"{kind}_*.json")):
                found.setdefault(_split(file), []).append(file)
    return found


def _chosen(folder: Path, split: str, where: str) -> list[Path]:
    found = _splits(folder)
    if split and split not in found:
        raise ConfigError(
            f"{where}.split: found '{split}', but '{folder}' has {', '.join(found)}.{did_you_mean(split, found)}"
        )
    if not split and len(found) > 1:
        files = ", ".join(str(file.relative_to(folder)) for files in found.values() for file in files)
        raise ConfigError(
            f"{where}.path: '{folder}' has several splits: {', '.join(found)}. Set {where}.split to one of them, or "
            f"{where}.path to one of their files: {files}."
        )
    return found[split or next(iter(found))]
