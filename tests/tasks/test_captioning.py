"""Captions as the config says to write them, and how well the given ones are foreseen."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data.processor import Processor, ProcessorConfig
from mmjax.decoding import score
from mmjax.generation_config import GenerationConfig
from mmjax.models.decoder import DecoderConfig
from mmjax.models.forward import Forward
from mmjax.models.multimodal import ModelConfig, Multimodal, TokenIds, Tokens, initialise
from mmjax.models.patch_encoder import PatchEncoderConfig
from mmjax.tasks.captioning import Captioning

SMALL = {"width": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
TEXTS = [["a red ball", "one ball"], ["a blue cube on a table", "it is blue"], ["a red cube"]]


class Memory(list):
    name = "memory"

    def annotations(self, i):
        return self[i]


RECORDS = Memory({"id": str(i), "texts": texts} for i, texts in enumerate(TEXTS))


@functools.cache
def processor():
    return Processor.fit(ProcessorConfig(length=10), [RECORDS], frozenset({"image", "text"}))


@functools.cache
def make():
    own = processor().tokenizer
    config = ModelConfig(patch_encoder=PatchEncoderConfig(**SMALL, patch=4), decoder=DecoderConfig(**SMALL, length=32))
    model = Multimodal(config, (8, 8), tokens=TokenIds(own.vocab_size, own.pad, own.bos, own.eos))
    shapes = nn.unbox(jax.eval_shape(lambda key: initialise(model, key), jax.random.key(0)))
    draw = np.random.default_rng(3)
    return model, jax.tree.map(lambda s: np.float32(draw.normal(size=s.shape)), shapes)


def batch():
    arrays = processor().arrays(
        RECORDS, np.zeros(3, np.uint64), frozenset({"text"}), train=False, captions=2, questions=1
    )
    image = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)
    return arrays | {"image": image, "valid": np.array([True, True, False]), "row": np.arange(3)}


def run(task):
    model, params = make()

    def both(params, batch):
        forward = Forward(model, params, batch, processor=processor())
        return task.loss(forward), task.predict(forward)

    losses, outputs = jax.device_get(jax.jit(both)(params, batch()))
    return losses, task.readable(outputs, processor())


@functools.cache
def greedy():
    return run(Captioning(name="captioning"))


def test_given_captions_are_foreseen_as_their_likelihood_says():
    losses, outputs = greedy()
    model, params = make()
    b = batch()
    memory = Forward(model, params, b).memory()
    ids, mask = (jnp.asarray(b[name].reshape(6, -1)) for name in ("text", "text_mask"))
    likelihood = score(model, params, ids, mask, Tokens(memory.x)).reshape(3, 2)
    np.testing.assert_allclose(outputs["nll"][:2], -likelihood[:2].sum(1), rtol=1e-5)
    assert outputs["nll"][:2].sum() == pytest.approx(losses["loss"][0], rel=1e-5)


def test_perplexity_is_over_all_tokens_of_all_captions_beside_the_unigram():
    losses, outputs = greedy()
    judge = Captioning(name="captioning").evaluator(processor(), RECORDS)
    judge.update(outputs, batch(), RECORDS)
    figures = {f.name: f for f in judge.figures()}
    perplexity = figures["captioning/perplexity"]
    total, count = losses["loss"]
    assert perplexity.n == count
    assert perplexity.value == pytest.approx(np.exp(total / count), rel=1e-5)
    assert figures["captioning/token_accuracy"].value == pytest.approx(losses["token_accuracy"][0] / count)
    assert 1 < perplexity.baseline < processor().tokenizer.vocab_size


def test_generation_settings_shape_the_captions():
    told = GenerationConfig(prefix="a red", num_beams=2, length=5, no_repeat_ngram=1)
    outputs = run(Captioning(name="captioning", generation=told))[1]
    begins = processor().tokenizer.tokens(["a red"])[0]
    assert outputs["ids"].shape == (3, len(begins) + 5)
    assert all(caption.startswith("a red") for caption in outputs["caption"])
    for ids in outputs["ids"]:
        words = [i for i in ids if i != processor().tokenizer.pad]
        assert len(set(words)) == len(words)


def test_drawn_captions_are_the_same_each_time_and_change_with_the_seed():
    first, again, other = (
        run(Captioning(name="captioning", generation=GenerationConfig(temperature=1.0, seed=seed)))[1]["ids"]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
