"""Packed rows and buckets through the pipeline: pure functions of (seed, step), and a bad row changes no other."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from mmjax.data.images import Augment, ImageSettings
from mmjax.data.layouts import layout_of
from mmjax.data.lengths import lengths_of
from mmjax.data.packed import make_pipeline, pack
from mmjax.data.processor import Processor, ProcessorConfig
from mmjax.data.sources import SourceConfig
from mmjax.data.sources.packed import PackedSource
from mmjax.errors import ConfigError

FEATURES = frozenset({"image", "text"})
CONFIG = ProcessorConfig(
    image=ImageSettings(size=8, aspect="native", tokens=6, patch=4), augment=Augment(flip=True, contrast=0.3), length=12
)
ROWS, STEPS = 23, 8
SOURCES = {
    "packed": SourceConfig(batch_size=4, pack_tokens=24, pack_rows=3),
    "buckets": SourceConfig(batch_size=4, buckets=(6, 8)),
}


class Memory:
    """A source in memory; row 5 has no caption, and `broken` rows no picture that can be read."""

    name, left_aside = "memory", {}

    def __init__(self, broken=()):
        self.broken, self.fingerprint = broken, "memory"

    def __len__(self):
        return ROWS

    def annotations(self, i):
        words = "".join([" word"] * (i % 7))
        return {"id": f"p{i}", "texts": [f"caption {j}{words}" for j in range(i % 3 + 1)] if i != 5 else []}

    def __getitem__(self, i):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(i).integers(0, 256, (10 + i, 20, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        return {**self.annotations(i), "image": b"no" if i in self.broken else buffer.getvalue()}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def processor():
    return Processor.fit(CONFIG, [Memory()], FEATURES, say=lambda line: None)


def pipeline(kind, processor, source=None, **options):
    source, config = source or Memory(), SOURCES[kind]
    layout = layout_of(config, "config.data.train", source, processor, FEATURES, 3)
    options = {"batch_size": config.batch_size, "train": True, "threads": 2, "seed": 3, "layout": layout, **options}
    return make_pipeline(source, processor, FEATURES, **options)


def same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype, name
        assert np.array_equal(first[name], second[name]), name


@pytest.fixture(scope="module", params=SOURCES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def truth(kind, processor):
    return list(pipeline(kind, processor).batches(0, STEPS))


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("start", [0, 5])
def test_threads_and_the_first_step_change_nothing(kind, processor, truth, threads, start):
    for batch, expected in zip(
        pipeline(kind, processor, threads=threads).batches(start, STEPS), truth[start:], strict=True
    ):
        same(batch, expected)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_see_the_one_global_batch(kind, processor, truth, processes):
    for part in (np.arange(4)[p::processes] for p in range(processes)):
        for batch, expected in zip(pipeline(kind, processor, rows=part).batches(0, STEPS), truth, strict=True):
            same(batch, {name: array[part] for name, array in expected.items()})


def test_there_are_no_more_shapes_than_said(kind, processor, truth):
    shapes = {tuple((name, array.shape) for name, array in sorted(batch.items())) for batch in truth}
    assert len(shapes) == pipeline(kind, processor).shapes == {"packed": 1, "buckets": 3}[kind]


def texts_of(batch, processor):
    """{row: its caption as words} of the valid rows of a batch."""
    if "text_segment" not in batch:
        rows = zip(batch["row"].tolist(), batch["text"][:, 0], batch["valid"], strict=True)
        return {row: processor.tokenizer.decode(ids) for row, ids, valid in rows if valid}
    found = {}
    for b, s in np.argwhere(batch["valid"]):
        ids = batch["text"][b, batch["text_segment"][b] == s + 1]
        found[int(batch["row"][b, s])] = processor.tokenizer.decode(ids)
    return found


def test_an_epoch_has_every_row_with_a_caption_of_its_own(kind, processor):
    made = pipeline(kind, processor, batch_size=1)
    steps = len(made.layout.rows) if kind == "packed" else 16  # a window, within the first epoch
    found = {}
    for batch in made.batches(0, steps):
        found |= texts_of(batch, processor)
    assert len(found) == (ROWS if kind == "packed" else 16)
    for row, text in found.items():
        assert text in (Memory().annotations(row)["texts"] or [""])


def test_an_unreadable_row_leaves_its_place_empty_and_changes_no_other(kind, processor, truth):
    broken, emptied = (2, 9, 11), 0
    dirty = pipeline(kind, processor, Memory(broken), max_bad_fraction=0.3)
    for batch, clean in zip(dirty.batches(0, STEPS), truth, strict=True):
        bad = np.isin(clean["row"], broken) & clean["valid"]
        np.testing.assert_array_equal(batch["valid"], clean["valid"] & ~bad)
        texts = texts_of(clean, processor)
        assert texts_of(batch, processor) == {row: text for row, text in texts.items() if row not in broken}
        for name in ("image", "image_grid", "row", "image_key"):
            np.testing.assert_array_equal(batch[name][batch["valid"]], clean[name][batch["valid"]])
        emptied += bad.sum()
    assert emptied >= 3 and len(dirty.bad) == 3


def test_a_packed_set_gives_the_same_batches(kind, processor, truth, tmp_path):
    pack(Memory(), processor, CONFIG, FEATURES, tmp_path / "p")
    for batch, expected in zip(
        pipeline(kind, processor, PackedSource(tmp_path / "p")).batches(0, STEPS), truth, strict=True
    ):
        same(batch, expected)


def test_lengths_are_those_of_the_longest_text_that_may_be_drawn(processor):
    lengths = lengths_of(Memory(), processor, "text")
    assert lengths.most == 12 and lengths.longest[5] == 0
    for row in (0, 4, 13):
        sizes = processor.encode(Memory().annotations(row)["texts"], 12)[1].sum(1)
        assert lengths.longest[row] == sizes.max() and np.isclose(lengths.mean[row], sizes.mean())


def test_streams_without_one_kind_of_texts_and_several_captions_are_refused(processor):
    for features in (frozenset({"image"}), frozenset({"text", "chat"})):
        with pytest.raises(
            ConfigError, match=r"train.pack_rows: the stream's tasks read .*, expected captions or conv"
        ):
            layout_of(SOURCES["packed"], "config.data.train", Memory(), processor, features, 0)
    several = dataclasses.replace(processor, captions=2)
    with pytest.raises(ConfigError, match="config.processor.captions: found 2, but a packed row has one"):
        layout_of(SOURCES["packed"], "config.data.train", Memory(), several, FEATURES, 0)
