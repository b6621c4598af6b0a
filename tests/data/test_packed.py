"""Packed rows give the batches of the rows that they were made from, without TensorFlow."""

import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mmjax.data.images import Augment, ImageSettings
from mmjax.data.mixture import Mixture
from mmjax.data.packed import PackedPipeline, make_pipeline, pack, packed_processor
from mmjax.data.pipeline import Pipeline
from mmjax.data.processor import Processor, ProcessorConfig
from mmjax.data.sources import SourceConfig, Subset
from mmjax.data.sources.opening import open_source
from mmjax.data.sources.packed import PackedSource
from mmjax.errors import ConfigError

FEATURES = frozenset({"image", "text", "question", "answer", "answer_text", "label", "labels", "chat"})
CONFIG = ProcessorConfig(
    image=ImageSettings(size=16), augment=Augment(flip=True, brightness=0.2, contrast=0.3), length=12, captions=2,
    questions=2, answer_length=6, chat_length=24,
)  # fmt: skip
ROWS = 11


def picture(i):
    pixels = np.random.default_rng(i).integers(0, 256, (5, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((20 + i, 24)).save(buffer, "JPEG" if i % 2 else "PNG")
    return buffer.getvalue()


class Memory:
    """A source in memory, whose rows have different numbers of everything; row 7 is a conversation about nothing."""

    name, fingerprint, left_aside = "memory", "memory", {"column 'url'": 3}

    def __init__(self, broken=()):
        self.broken = broken

    def __len__(self):
        return ROWS

    def annotations(self, i):
        side = " left" if i % 3 else ""
        record = {"id": f"p{i}", "texts": [f"caption {j} of {i}{side}" for j in range(i % 4)]}
        record["qa"] = [
            {"question": f"question {j} of {i}", "answers": ["yes", f"a{j}", f"b{i}", "yes"][: (i + j) % 5]}
            for j in range(i % 3)
        ]
        record["messages"] = [
            {"role": "user", "content": [{"type": "text", "text": f"what is {i}"}]},
            {"role": "assistant", "content": [{"type": "text", "text": f"it is {i}"}]},
        ]
        return record | ({"label": f"c{i % 2}"} if i % 4 else {}) | ({"labels": ["x", f"y{i % 2}"]} if i % 5 else {})

    def __getitem__(self, i):
        record = self.annotations(i)
        return record if i == 7 else {**record, "image": b"\xff\xd8\xffno" if i in self.broken else picture(i)}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def processor():
    return Processor.fit(CONFIG, [Memory()], FEATURES, say=lambda line: None)


@pytest.fixture(scope="module")
def folder(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "train"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmjax.data.packed.SHARD", 4 * 3 * 16 * 16)
        patch.setattr("mmjax.data.packed.BATCH", 4)
        pack(Memory(), processor, CONFIG, FEATURES, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["00000", "00001", "00002", "meta.json"]
    return folder


def same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype, name
        assert np.array_equal(first[name], second[name]), name


def batches(source, processor, features=FEATURES, **options):
    options = {"batch_size": 4, "train": True, "threads": 2, "seed": 3, **options}
    pipeline = make_pipeline(source, processor, features, **options)
    return list(pipeline.batches(0, 7 if options["train"] else None))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("threads", [0, 2])
def test_batches_are_those_of_the_unpacked_rows(folder, processor, train, threads):
    expected = batches(Memory(), processor, train=train)
    made = batches(PackedSource(folder), processor, train=train, threads=threads)
    assert len(made) == len(expected) == (7 if train else 3)
    for batch, truth in zip(made, expected, strict=True):
        same(batch, truth)


@pytest.mark.parametrize("feature", sorted(FEATURES))
def test_fewer_features_than_were_packed_may_be_wanted(folder, processor, feature):
    features = frozenset({feature, "image"} if feature == "chat" else {feature})  # a task that talks looks, too
    packed = batches(PackedSource(folder), processor, features)
    for batch, truth in zip(packed, batches(Memory(), processor, features), strict=True):
        same(batch, truth)


def test_what_is_drawn_may_be_set_anew_and_stays_the_same_draw(folder, processor):
    for changes in (
        {"captions": 1, "questions": 3, "augment": Augment()},
        {"captions": 3, "caption_choice": "first", "augment": Augment(brightness=0.5)},
    ):
        config = replace(CONFIG, **changes)
        packed = packed_processor([PackedSource(folder)], config, "config.processor")
        truth = Processor.fit(config, [Memory()], FEATURES, say=lambda line: None)
        assert packed.sha256 == truth.sha256
        for batch, expected in zip(batches(PackedSource(folder), packed), batches(Memory(), truth), strict=True):
            same(batch, expected)


def test_parts_and_mixtures_of_packed_rows_are_packed(folder, processor):
    rows = np.array([8, 1, 7, 2, 10])

    def mixed(source):
        return Mixture({"a": Subset(source, rows), "b": source}, {"a": 1.0, "b": 1.0}, "config.data.train")

    for batch, truth in zip(
        batches(mixed(PackedSource(folder)), processor), batches(mixed(Memory()), processor), strict=True
    ):
        same(batch, truth)


def test_records_come_back_with_a_key_for_the_picture(folder):
    source = PackedSource(folder)
    assert len(source) == ROWS and source.name == "memory" and source.left_aside == Memory.left_aside
    for i in range(ROWS):
        record = source.annotations(i)
        assert record.pop("key").startswith("picture ")
        assert record == Memory().annotations(i)


def test_bad_rows_stay_bad(processor, tmp_path):
    source = Memory(broken=(2, 9))
    options = {"max_bad_fraction": 0.3}
    pack(source, processor, CONFIG, FEATURES, tmp_path / "p", **options)
    packed = PackedSource(tmp_path / "p")
    assert {row: cause for row, (cause, _) in packed.bad.items()} == {2: "truncated", 9: "truncated"}
    for train in (True, False):
        for batch, truth in zip(
            batches(packed, processor, train=train, **options), batches(source, processor, train=train, **options),
            strict=True,
        ):  # fmt: skip
            same(batch, truth)
    with pytest.raises(ConfigError, match=r"memory, row \d \(p[29]\): no readable picture: truncated"):
        batches(packed, processor, train=False)


def test_the_format_is_told_by_its_meta_file(folder):
    assert isinstance(open_source(SourceConfig(path=str(folder)), "config.data.train"), PackedSource)
    with pytest.raises(ConfigError, match=r"config.data.train.prompt: found 'a \{text\}', but .* is packed"):
        open_source(SourceConfig(path=str(folder), prompt="a {text}"), "config.data.train")


def test_what_contradicts_the_pack_is_an_error_that_names_it(folder, processor, tmp_path):
    source = PackedSource(folder)
    where = "config.processor"
    with pytest.raises(ConfigError, match="config.processor.length: found 13, but 'memory' was packed with 12"):
        packed_processor([source], replace(CONFIG, length=13), where)
    with pytest.raises(ConfigError, match="config.processor.image.size: found 8"):
        packed_processor([source], replace(CONFIG, image=ImageSettings(size=8)), where)
    crops = replace(CONFIG, augment=Augment(crop_area=(0.5, 1.0)))
    with pytest.raises(ConfigError, match="config.processor.augment.crop_area: .* cannot be cut at random"):
        packed_processor([source], crops, where)
    with pytest.raises(ConfigError, match="crop_area"):
        pack(Memory(), replace(processor, augment=crops.augment), crops, FEATURES, tmp_path / "x")
    with pytest.raises(ConfigError, match="'memory' is not packed, but 'memory' is"):
        packed_processor([source, Memory()], CONFIG, where)
    with pytest.raises(ConfigError, match="packed by another processor .*differs in answer_length"):
        PackedPipeline(source, replace(processor, answer_length=7), FEATURES, batch_size=4, train=False)
    with pytest.raises(ConfigError, match="is packed already"):
        pack(source, processor, CONFIG, FEATURES, tmp_path / "x")
    with pytest.raises(ConfigError, match="--out: .* is not empty"):
        pack(Memory(), processor, CONFIG, FEATURES, folder)
    assert packed_processor([Memory()], CONFIG, where) is None


def test_a_feature_that_was_not_packed_is_named(processor, tmp_path):
    pack(Memory(), processor, CONFIG, frozenset({"text"}), tmp_path / "p")
    with pytest.raises(ConfigError, match="a task wants 'image', but 'memory' was packed with text"):
        batches(PackedSource(tmp_path / "p"), processor, frozenset({"image", "text"}))


def test_an_unfinished_pack_is_no_pack(folder, tmp_path):
    (tmp_path / "00000").mkdir()
    np.save(tmp_path / "00000" / "image.npy", np.zeros(3))
    with pytest.raises(ConfigError, match="no picture below"):
        open_source(SourceConfig(path=str(tmp_path)), "config.data.train")
    meta = json.loads((folder / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "mmjax packed": 99}))
    with pytest.raises(ConfigError, match="packed in version 99, expected 1"):
        open_source(SourceConfig(path=str(tmp_path)), "config.data.train")


def test_no_tensorflow_is_imported(folder):
    code = f"""
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None  # an import of either raises
from pathlib import Path
from mmjax.data.packed import make_pipeline
from mmjax.data.processor import Processor
from mmjax.data.sources import SourceConfig
from mmjax.data.sources.opening import open_source
source = open_source(SourceConfig(path={str(folder)!r}), "config.data.train")
processor = Processor.from_json(source.meta["processor"])
for train in (True, False):
    pipeline = make_pipeline(source, processor, frozenset({sorted(FEATURES)!r}), batch_size=4, train=train)
    assert len(list(pipeline.batches(0, 3))) == 3
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_pipelines_are_of_their_kind(folder, processor):
    options = {"batch_size": 4, "train": True}
    assert type(make_pipeline(Memory(), processor, FEATURES, **options)) is Pipeline
    assert type(make_pipeline(PackedSource(folder), processor, FEATURES, **options)) is PackedPipeline
