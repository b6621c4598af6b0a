"""TensorFlow Datasets: the built-in scenes (`tfds:scenes/easy`), any prepared set (`tfds:NAME`) or its folder.

A set in array_record or tfrecord files is read as it lies, without TensorFlow; its Image feature is the picture, the
others are found by their names (`tfrecord.USUAL`, `fields.NAMES`, or `fields`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmjax.data.ranges import path_of
from mmjax.data.sources import Record, Source, SourceConfig
from mmjax.data.sources.said import LineByLine
from mmjax.data.sources.tfrecord import NO_HOLE, ExampleSource, Records, TfRecords
from mmjax.errors import ConfigError, did_you_mean

NAME = "tfds"
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def claims(path: Path, head: bytes) -> bool:
    """`tfds:NAME`, or a folder that TensorFlow Datasets prepared."""
    return os.fspath(path).startswith("tfds:") or not head and (path / "dataset_info.json").is_file()


def open_source(path: Path, config: SourceConfig, where: str) -> Source:
    """Opens `tfds:scenes/NAME`, drawing it first if need be, another set that is prepared, or a prepared folder."""
    if config.root:
        raise ConfigError(f"{where}.root: found '{config.root}', but a tfds set holds its own pictures. Leave it out.")
    name = path.name
    if config.path.startswith("tfds:"):
        name = config.path.removeprefix("tfds:")
        kind, _, variant = name.partition("/")
        if kind == "scenes":
            from mmjax.data import scenes

            path = scenes.prepare(variant or "easy")
        else:
            path = _prepared(name, where)
    elif not (path / "dataset_info.json").is_file():
        raise ConfigError(
            f"{where}.path: no 'dataset_info.json' in '{path}'. Expected a folder prepared by tensorflow-datasets."
        )
    source = _open(path, name, config, where)
    return source if config.group else LineByLine(source)


def _prepared(name: str, where: str) -> Path:
    """The folder of a set in the data folder of tensorflow-datasets, of the newest version there."""
    data = path_of(os.environ.get("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets"))
    folder = data / name.replace(":", "/")
    versions = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    if numbers := [version for version in versions if _VERSION.fullmatch(version)]:
        folder /= max(numbers, key=lambda version: [int(part) for part in version.split(".")])
    if (folder / "dataset_info.json").is_file():
        return folder
    variants = [entry for entry in versions if (folder / entry).is_dir()]
    if variants:
        raise ConfigError(
            f"{where}.path: found 'tfds:{name}', of which '{folder}' holds {', '.join(sorted(variants))}. Expected "
            f"one of them: tfds:{name}/{sorted(variants)[0]}."
        )
    raise ConfigError(
        f"{where}.path: found 'tfds:{name}', expected tfds:scenes/easy or a prepared set, but '{folder}' holds none. "
        f"Prepare it: python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}').download_and_prepare("
        "file_format='array_record')\", and set TFDS_DATA_DIR if it lies elsewhere."
    )


class _ArrayRecords:
    """Examples in array_record files."""

    def __init__(self, files: Sequence[Any]):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._data = ArrayRecordDataSource(files)

    def __len__(self) -> int:
        return len(self._data)

    def whole(self, i: int) -> bytes:
        return self._data[int(i)]

    def told(self, i: int) -> tuple[bytes, tuple[int, int]]:
        return self.whole(i), NO_HOLE  # a record is packed: no part of it can be read alone


class _TfdsSource(ExampleSource):
    """Examples of a prepared set; `scene` holds what the built-in set knows of its own picture."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._wanted |= {"scene"}
        self.left_aside.pop("feature 'scene'", None)

    def _record(self, i: int, example: dict[str, list[Any]], pictures: int = 1) -> Record:
        record = super()._record(i, example, pictures)
        if example.get("scene"):
            record["scene"] = json.loads(example["scene"][0])
        return record


def _open(folder: Path, name: str, config: SourceConfig, where: str) -> ExampleSource:
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(folder).info
    split, splits = config.split or "train", list(info.splits)
    if split not in splits:
        raise ConfigError(
            f"{where}.split: found '{split}', expected one of {', '.join(splits)}.{did_you_mean(split, splits)}"
        )
    # {"captions/text": its feature}: as they are named in the files, where those of a list of objects are lists.
    features = _flat(info.features)
    picture = config.fields.get("image") or next(
        (name for name, feature in features.items() if _is_picture(feature)), ""
    )
    if not _is_picture(features.get(picture)):
        raise ConfigError(
            f"{where}.path: '{folder}' holds ({', '.join(features)}). Expected an Image among them"
            + (f", and '{picture}', which fields gives, is none." if picture else ".")
        )
    files = [path_of(os.fspath(file)) for file in info.splits[split].filepaths]
    kind = info.file_format.value if info.file_format else "no known format"
    records: Records
    if kind == "array_record":
        records = _ArrayRecords([os.fspath(file) for file in files])
    elif kind == "tfrecord":
        records = TfRecords(files, picture)
    else:
        raise ConfigError(
            f"{where}.path: '{folder}' is in {kind}. Expected array_record or tfrecord; prepare it with "
            "file_format='array_record'."
        )
    identity = [f"{info.full_name}/{split}/{info.splits[split].num_examples}/{sorted(config.fields.items())}"]
    identity += sorted(f"{file.name} {tfds.core.Path(file).stat().length}" for file in files)
    identity += [_without_times((folder / part).read_text()) for part in ("features.json", "dataset_info.json")]
    return _TfdsSource(
        f"{name}/{split}",
        records,
        picture,
        list(features),
        config.fields,
        "\n".join(identity),
        classes={name: list(getattr(_inner(feature), "names", None) or []) for name, feature in features.items()},
        left_aside=getattr(records, "left_aside", {}),
        many=[name for name, feature in features.items() if _inner(feature) is not feature],
    )


def _flat(features: Any, prefix: str = "") -> dict[str, Any]:
    """{name in the files: feature}; within a list of objects, a list of each."""
    import tensorflow_datasets as tfds

    found = {}
    for name, feature in features.items():
        inside = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
        if isinstance(inside, tfds.features.FeaturesDict):
            found |= _flat(inside, f"{prefix}{name}/")
        else:
            found[prefix + name] = feature
    return found


def _is_picture(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    return isinstance(_inner(feature), tfds.features.Image) and not isinstance(feature, tfds.features.Video)


def _inner(feature: Any) -> Any:
    """What a list is of."""
    return getattr(feature, "feature", feature)


def _without_times(text: str) -> str:
    """A set's description without what changes when the same set is prepared again."""
    return json.dumps(
        {k: v for k, v in json.loads(text).items() if k not in ("releaseNotes", "downloadSize")}, sort_keys=True
    )
