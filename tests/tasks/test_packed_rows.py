"""Packed rows through the run's own pipeline and tasks: logits, losses and gradients are those of the rows alone."""

import jax
import numpy as np
import pytest

from mmjax import assemble, sharding
from mmjax.config import merge
from mmjax.errors import ConfigError
from mmjax.experiment import from_mapping
from mmjax.models.forward import Forward
from mmjax.train_step import Objective, nested

ROWS, TOKENS, PLACES = 20, 48, 4
PACKED = {"data": {"train": {"pack_tokens": TOKENS, "pack_rows": PLACES}}}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def epoch_of(mapping):
    """(model, flat parameters, objective, the whole first epoch as one batch)."""
    config = from_mapping(merge(mapping, {"data": {"holdout": 0}}))
    data = assemble.open_data(config)
    processor = assemble.fit_processor(config, data)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    [pipeline] = assemble.train_pipelines(config, data, processor, mesh).values()
    whole = len(pipeline.layout.rows) if pipeline.layout else ROWS
    config = from_mapping(merge(mapping, {"data": {"holdout": 0, "train": {"batch_size": whole}}}))
    [pipeline] = assemble.train_pipelines(config, data, processor, mesh).values()
    model = assemble.build_model(config, processor)
    placed = assemble.layout(model, mesh)
    random = np.random.default_rng(0)
    params = {n: np.float32(random.normal(n.endswith("scale"), 0.2, s.shape)) for n, s in placed.shapes.items()}
    objective = Objective(model, {"main": config.tasks_of("main")}, config.train.accumulate)
    return model, params, objective, next(pipeline.batches(0, 1))


def same(got, want):
    """Equal to 1e-5 of each tensor's largest value; one that is zero but for rounding counts by the largest of all."""
    largest = max(float(np.max(np.abs(v))) for v in jax.tree.leaves(want))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.max(np.abs(b)) + 1e-6 * largest), got, want
    )


@pytest.mark.parametrize("aspect", ["square", "native"])
def test_captions_and_pairs_learn_from_packed_rows_what_they_learn_from_rows_alone(tiny_mapping, aspect):
    mapping = tiny_mapping("captioning", "contrastive_softmax", processor__image__aspect=aspect)
    model, params, objective, alone = epoch_of(mapping)
    *_, packed = epoch_of(merge(mapping, PACKED))
    assert alone["text"].shape == (ROWS, 1, 20) and packed["text"].shape[1:] == (TOKENS,)
    assert sorted(packed["row"][packed["valid"]]) == sorted(alone["row"]) == list(range(ROWS))

    def run(batch):
        loss, losses, gradient = objective.gradient(params, {}, {"main": batch}, jax.random.key(0))
        f = Forward(model, nested(params), batch)
        ids = batch["text"].reshape(-1, batch["text"].shape[-1])
        return f.decode(ids, None, f.memory(), segments=f.segments()).logits, loss, losses, gradient

    logits, *figures = jax.jit(run)(packed)
    truth, *wanted = jax.jit(run)(alone)
    same(figures, wanted)
    place = {int(row): i for i, row in enumerate(alone["row"])}
    for b, s in np.argwhere(packed["valid"]):
        i = place[int(packed["row"][b, s])]
        here = packed["text_segment"][b] == s + 1
        length = alone["text_mask"][i, 0].sum()
        np.testing.assert_array_equal(packed["text"][b, here], alone["text"][i, 0, :length])
        same(logits[b, here], truth[i, :length])


def test_conversations_learn_from_packed_rows_what_they_learn_from_rows_alone(tiny_mapping):
    mapping = tiny_mapping("chat", data__train__path="talks.json", processor__chat_length=40)
    _, params, objective, alone = epoch_of(mapping)
    packed_mapping = merge(mapping, {"data": {"train": {"pack_tokens": 80, "pack_rows": 4}}})
    *_, packed = epoch_of(packed_mapping)
    assert packed["chat"].shape[1:] == (80,) and len(packed["chat"]) * 80 < len(alone["chat"]) * 40
    assert not packed["image_valid"].all() and "chat_mask" not in packed
    run = jax.jit(lambda batch: objective.gradient(params, {}, {"main": batch}, jax.random.key(0)))
    same(run(packed), run(alone))


def test_accumulated_gradients_of_packed_rows_are_those_of_the_whole_batch(tiny_mapping):
    mapping = merge(tiny_mapping("captioning", "contrastive_softmax"), PACKED)
    _, params, whole, batch = epoch_of(mapping)
    batch = {name: array[: len(array) // 2 * 2] for name, array in batch.items()}
    parts = Objective(whole.model, whole.tasks, accumulate=2)
    made = [
        jax.jit(lambda b, o=o: o.gradient(params, {}, {"main": b}, jax.random.key(0)))(batch) for o in (whole, parts)
    ]
    same(made[1][2], made[0][2])


@pytest.mark.parametrize(
    ("tasks", "changes", "message"),
    [
        (["vqa"], {}, "pack_rows: the task 'vqa' does not read packed rows"),
        (["captioning"], {"model": {"decoder": {"memory": "prefix"}}}, "memory 'prefix' does not read packed rows"),
        (
            ["captioning"],
            {"processor": {"captions": 2}},
            "config.processor.captions: found 2, but a packed row has one",
        ),
        (["captioning"], {"data": {"train": {"pack_tokens": 10}}}, r"pack_tokens: found 10, but a row has 20 \(row"),
        (["captioning"], {"data": {"train": {"pack_tokens": 0}}}, "found pack_tokens 0 and pack_rows 4, expected both"),
        (["captioning"], {"data": {"train": {"buckets": [8]}}}, "buckets: found .* packed sequences have one length"),
        (["captioning"], {"model": {"decoder": {"length": 9}}}, "decoder.length: found 9 positions, but a row has 20"),
        (
            ["captioning"],
            {"data": {"test": {"pack_rows": 2}}},
            "data.test.pack_rows: given, but only training does this",
        ),
        (
            ["captioning"],
            {"data": {"train": {"path": "", "stream": "main", "a": {"path": "all.jsonl"}, "b": {"path": "all.jsonl"}}}},
            "the stream 'main' mixes sources, which cannot be packed yet",
        ),
    ],
)
def test_what_cannot_be_packed_is_an_error_that_says_so(tiny_mapping, tasks, changes, message):
    with pytest.raises(ConfigError, match=message):
        epoch_of(merge(merge(tiny_mapping(*tasks), PACKED), changes))
