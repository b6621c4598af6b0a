"""The built-in set: drawn scenes of coloured shapes, with captions and questions, as a TensorFlow Datasets builder.

`easy`: one or two large shapes of 6 colours and 6 kinds on a plain or shaded background; a 5-minute CPU run learns it.
`full`: one to three shapes of 8 colours, 8 kinds, 4 textures and 2 sizes on varied backgrounds.
`truth`: one to three plain shapes as in `easy`, with sentences for questions and "true" or "false" for answers;
pictures 2k and 2k + 1 differ in one thing and have the same sentences (`scene_truth.py`).
Of the colour-shape pairs the diagonal (red circle, green square, ...) is held out: one of it is in every picture of
`test_unseen`, none in any other picture, caption or question. Picture i of a split is a pure function of (seed, set,
split, i).

The set is drawn once, into `MMJAX_CACHE` (or ~/.cache/mmjax), and read from there by random access, without TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from mmjax.data import scene_drawing
from mmjax.data.index import cache_folder
from mmjax.data.scene_language import (
    COLORS,
    SHAPES,
    SIZES,
    TEXTURES,
    caption_is_right,
    captions,
    parse_caption,
    pick,
    questions,
)
from mmjax.data.scene_truth import changed, sentences
from mmjax.errors import ConfigError
from mmjax.metrics import progress

__all__ = ["Scenes", "SceneConfig", "caption_is_right", "held_out", "make_record", "parse_caption", "prepare"]

SEED = 0
SPLITS = ("train", "validation", "test", "test_unseen")
KINDS = {"easy": 6, "full": 8, "truth": 6}  # colours, and as many shapes
TRAIN = {"easy": 16_000, "full": 30_000, "truth": 20_000}  # pictures; see prepare for the time that they take
RADIUS = {"large": 0.21, "small": 0.14}
CELLS = [(x, y) for x in (0.26, 0.74) for y in (0.26, 0.74)]  # where objects stand, in `full` and `truth`


@dataclasses.dataclass(kw_only=True)
class SceneConfig(tfds.core.BuilderConfig):
    """`easy`, `full` or `truth`, at `size` pixels, with `train` pictures to train on; the name tells them."""

    kind: str
    size: int = 64
    train: int = 0

    @classmethod
    def named(cls, name: str) -> SceneConfig:
        """From a name: KIND[_SIZEpx][_COUNTtrain], as in `easy`, `full_96px`, `easy_500train`."""
        match = re.fullmatch(r"(easy|full|truth)(?:_(\d+)px)?(?:_(\d+)train)?", name)
        if not match:
            raise ConfigError(
                f"tfds:scenes/{name}: no such set. Expected easy, full or truth, with a picture size or a count if "
                "wanted: easy_96px, full_500train, easy_96px_500train."
            )
        kind, size, train = match[1], int(match[2] or 64), int(match[3] or TRAIN[match[1]])
        if size < 32 or train < 1:
            raise ConfigError(f"tfds:scenes/{name}: found {size} px and {train} pictures, expected at least 32 and 1.")
        return cls(name=name, description=f"{kind} scenes, {size} px", kind=kind, size=size, train=train)

    def count(self, split: str) -> int:
        """Pictures of a split: 1,000 each to validate and test on, or an eighth of `train` where that is less."""
        count = self.train if split == "train" else min(1000, max(8, self.train // 8))
        return count + count % 2 if self.kind == "truth" else count


def held_out(kind: str) -> list[tuple[str, str]]:
    """The (color, shape) pairs that only `test_unseen` shows: one for each colour and each shape."""
    return list(zip(COLORS[: KINDS[kind]], SHAPES[: KINDS[kind]], strict=True))


def allowed(kind: str) -> list[tuple[str, str]]:
    """All other pairs."""
    held = set(held_out(kind))
    n = KINDS[kind]
    return [(c, s) for c in COLORS[:n] for s in SHAPES[:n] if (c, s) not in held]


def sample_scene(kind: str, split: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Objects of one scene; no two have the same colour and shape, and in `easy` not even one of them."""
    chosen: list[tuple[str, str]] = []
    count = 1 + int(rng.integers(2 if kind == "easy" else 3))
    pools = {"held": held_out(kind), "allowed": allowed(kind)}
    while len(chosen) < count:
        pool = pools["held" if split == "test_unseen" and not chosen else "allowed"]
        if kind == "easy":
            pool = [p for p in pool if all(p[0] != c and p[1] != s for c, s in chosen)]
        elif (
            chosen and rng.random() < 0.4
        ):  # a shared colour or shape: one attribute is then not enough to tell them apart
            pool = [p for p in pool if (p[0] == chosen[0][0]) != (p[1] == chosen[0][1])]
        pair = pick(rng, pool)
        if pair not in chosen:
            chosen.append(pair)
    centres = _centres(kind, count, rng)
    rng.shuffle(chosen)
    objects = []
    for (color, shape), (x, y) in zip(chosen, centres, strict=True):
        item: dict[str, Any] = {"color": str(color), "shape": str(shape)}
        if kind == "full":
            item |= {"size": pick(rng, SIZES), "texture": pick(rng, TEXTURES)}
        radius = RADIUS[item["size"]] if kind == "full" else (0.25 if count == 1 and kind == "easy" else 0.2)
        x, y = np.array([x, y]) + rng.uniform(-0.025, 0.025, 2)
        item |= {"x": round(float(x), 3), "y": round(float(y), 3)}
        item["radius"] = round(radius * float(rng.uniform(0.95, 1.05)), 3)
        objects.append(item)
    return objects


def _centres(kind: str, count: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    if kind != "easy":
        return [CELLS[k] for k in rng.permutation(4)[:count]]
    if count == 1:
        return [pick(rng, [(0.5, 0.5), (0.3, 0.5), (0.7, 0.5), (0.5, 0.3), (0.5, 0.7)])]
    ends = [(0.26, 0.5), (0.74, 0.5)]
    return ends if rng.integers(2) else [(y, x) for x, y in ends]


def _pairs(kind: str, split: str) -> list[tuple[str, str]]:
    """What may be shown and asked for."""
    return allowed(kind) + (held_out(kind) if split == "test_unseen" else [])


def _one_of_two(split: str, index: int, seed: int) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """(objects, sentences with their truth) of a `truth` picture, from what it and its other share."""
    rng = np.random.default_rng([seed, zlib.crc32(f"truth/{split}/two".encode()), index // 2])
    held = set(held_out("truth"))
    first, said = sample_scene("truth", split, rng), []
    while not said:  # a move that no sentence tells from where it was
        second = changed(first, _pairs("truth", split), CELLS, rng)
        if split != "test_unseen" or any((o["color"], o["shape"]) in held for o in second):
            said = sentences(first, second, rng)
    said = [said[k] for k in rng.permutation(len(said))]
    true_here = "true" if index % 2 == 0 else "false"
    other = {"true": "false", "false": "true"}[true_here]
    return (first, second)[index % 2], [(str(text), true_here if of_first else other) for text, of_first in said]


def make_record(kind: str, split: str, index: int, size: int = 64, seed: int = SEED) -> dict[str, Any]:
    """Picture `index` of a split as a Record (see mmjax/README.md); the scene is the same at every `size`."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{kind}/{split}".encode()), index])
    if kind == "truth":
        objects, asked = _one_of_two(split, index, seed)
        texts = captions(objects, rng)
    else:
        objects = sample_scene(kind, split, rng)
        texts = captions(objects, rng)
        asked = questions(objects, _pairs(kind, split), index, rng)
    ground = pick(rng, ("plain", "gradient", "noise", "stripes") if kind == "full" else ("plain", "gradient"))
    picture = scene_drawing.draw(objects, scene_drawing.background(ground, size, rng))
    return {
        "id": f"{split}/{index}",
        "image": scene_drawing.png(picture),
        "texts": texts,
        "qa": [{"question": question, "answers": [answer]} for question, answer in asked],
        "scene": objects,
    }


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Builds array_record files. Raise VERSION with every change of what is drawn or said: it is then drawn anew."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [SceneConfig.named(kind) for kind in KINDS]
    # Where tensorflow-datasets 4.9.10 looks for this file it needs importlib_resources, which it does not depend on.
    code_path = epath.Path(__file__)

    def _info(self) -> tfds.core.DatasetInfo:
        feature, size = tfds.features, self.builder_config.size
        words = feature.Sequence(feature.Text())
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=feature.FeaturesDict(
                {
                    "id": feature.Text(),
                    "image": feature.Image(shape=(size, size, 3), encoding_format="png"),
                    "texts": words,
                    "questions": words,
                    "answers": words,
                    "scene": feature.Text(doc="JSON"),
                }
            ),
            disable_shuffling=True,  # example i of a split is picture i
        )

    def _split_generators(self, _: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        for index in progress(range(config.count(split)), f"scenes ({split})", unit="scene"):
            record = make_record(config.kind, split, index, config.size)
            yield (
                index,
                {
                    "id": record["id"],
                    "image": io.BytesIO(record["image"]),
                    "texts": record["texts"],
                    "questions": [row["question"] for row in record["qa"]],
                    "answers": [row["answers"][0] for row in record["qa"]],
                    "scene": json.dumps(record["scene"]),
                },
            )


def prepare(name: str, cache: Path | None = None) -> Path:
    """Draws the set `name` unless it is there, and returns its folder.

    TensorFlow Datasets writes into a temporary folder and renames it, so an interrupted run leaves nothing half done. A
    lock makes a second process wait for the first and then find the set.
    """
    cache = cache or cache_folder()
    config = SceneConfig.named(name)
    with _quietly():
        builder = Scenes(config=name if name in KINDS else config, data_dir=os.fspath(cache))
    folder = Path(builder.data_dir)
    if (folder / "dataset_info.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "dataset_info.json").is_file():
            for left_over in folder.parent.glob("*incomplete*"):
                shutil.rmtree(left_over)
            total = sum(config.count(split) for split in SPLITS)
            print(f"Drawing {total:,} scenes into {folder} (once; about {total // 400 + 1} s).", flush=True)
            with _quietly():
                builder.download_and_prepare(file_format="array_record")
    return folder


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the notes of tensorflow-datasets: that it downloads, which it does not, and its bars within our bar."""
    tfds.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
        tfds.enable_progress_bar()
