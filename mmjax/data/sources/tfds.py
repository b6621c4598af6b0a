"""TensorFlow Datasets: the built-in scenes (`tfds:scenes/easy`) and prepared folders with the same features."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from mmjax.data.sources import Record, SourceConfig
from mmjax.errors import ConfigError, did_you_mean

FEATURES = frozenset({"id", "image", "texts", "questions", "answers", "scene", "label"})


class TfdsSource:
    """A split of a prepared set in array_record files. Pictures stay encoded; TensorFlow is not imported."""

    def __init__(self, folder: Path, split: str, name: str, group: bool, where: str):
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(folder)
        splits = list(builder.info.splits)
        if split not in splits:
            raise ConfigError(
                f"{where}.split: found '{split}', expected one of {', '.join(splits)}.{did_you_mean(split, splits)}"
            )
        unknown = sorted(set(builder.info.features) - FEATURES)
        if unknown or "image" not in builder.info.features:
            raise ConfigError(
                f"{where}.path: '{folder}' holds ({', '.join(builder.info.features)}). Expected image and only "
                f"({', '.join(sorted(FEATURES))})."
            )
        if builder.info.file_format is None or builder.info.file_format.value != "array_record":
            raise ConfigError(
                f"{where}.path: '{folder}' is in {builder.info.file_format.value}, which has no random access. "
                "Prepare it with file_format='array_record'."
            )
        self._data = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        self.name = f"{name}/{split}"
        features = builder.info.features
        self._classes: list[str] = list(getattr(features["label"], "names", None) or []) if "label" in features else []
        info = builder.info.splits[split]
        digest = hashlib.sha256(f"{builder.info.full_name}/{split}/{info.num_examples}/group {group}".encode())
        for file in sorted(info.filepaths):
            digest.update(f"\n{Path(file).name} {Path(file).stat().st_size}".encode())
        for part in ("features.json", "dataset_info.json"):
            digest.update(_without_times((folder / part).read_text()))
        self.fingerprint = digest.hexdigest()
        # (row of the set, which text, which question); -1 is all or none of them.
        self._lines = None if group else [pair for i in range(len(self._data)) for pair in self._parts(i)]

    def _parts(self, i: int) -> list[tuple[int, int, int]]:
        record = self._read(i)
        texts, qa = len(record.get("texts", ())), len(record.get("qa", ()))
        return [(i, t, -1) for t in range(texts)] + [(i, -1, q) for q in range(qa)] or [(i, -1, -1)]

    def __len__(self) -> int:
        return len(self._data if self._lines is None else self._lines)

    def __getitem__(self, i: int) -> Record:
        if self._lines is None:
            return self._read(i)
        row, text, question = self._lines[i]
        record = self._read(row)
        texts, qa = record.pop("texts", []), record.pop("qa", [])
        if text >= 0:
            record["texts"] = [texts[text]]
        if question >= 0:
            record["qa"] = [qa[question]]
        return record

    def annotations(self, i: int) -> Record:
        record = self[i]
        del record["image"]
        return record

    def _read(self, i: int) -> Record:
        example = self._data[int(i)]
        record: Record = {"id": example["id"].decode() if "id" in example else str(i), "image": example["image"]}
        if len(texts := example.get("texts", ())):
            record["texts"] = [text.decode() for text in texts]
        if len(asked := example.get("questions", ())):
            pairs = zip(asked, example["answers"], strict=True)
            record["qa"] = [{"question": q.decode(), "answers": [a.decode()]} for q, a in pairs]
        if "label" in example:
            label = example["label"]
            record["label"] = self._classes[int(label)] if self._classes else label.decode()
        if example.get("scene"):
            record["scene"] = json.loads(example["scene"])
        return record


def _without_times(text: str) -> bytes:
    """A set's description without what changes when the same set is prepared again."""
    return json.dumps(
        {k: v for k, v in json.loads(text).items() if k not in ("releaseNotes", "downloadSize")}, sort_keys=True
    ).encode()


def open_tfds(path: Path, config: SourceConfig, where: str) -> TfdsSource:
    """Opens `tfds:scenes/NAME`, drawing it first if need be, or a prepared folder."""
    if config.root:
        raise ConfigError(f"{where}.root: found '{config.root}', but a tfds set holds its own pictures. Leave it out.")
    split = config.split or "train"
    if not config.path.startswith("tfds:"):
        if not (path / "dataset_info.json").is_file():
            raise ConfigError(
                f"{where}.path: no 'dataset_info.json' in '{path}'. Expected a folder prepared by tensorflow-datasets."
            )
        return TfdsSource(path, split, path.name, config.group, where)
    from mmjax.data import scenes

    name = config.path.removeprefix("tfds:")
    kind, _, variant = name.partition("/")
    if kind != "scenes":
        raise ConfigError(
            f"{where}.path: found '{config.path}', expected tfds:scenes/easy or tfds:scenes/full, or a prepared folder."
        )
    return TfdsSource(scenes.prepare(variant or "easy"), split, name, config.group, where)
