"""Packed rows against the same rows alone: logits, vectors, gradients; nothing leaks between them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data.patches import cut
from mmjax.losses.language import next_token_loss
from mmjax.models.decoder import DecoderConfig
from mmjax.models.forward import Forward
from mmjax.models.multimodal import ModelConfig, Multimodal, TokenIds, initialise
from mmjax.models.patch_encoder import PatchEncoderConfig
from mmjax.models.text_encoder import TextEncoder, TextEncoderConfig
from mmjax.models.tokens import Tokens

TOWER = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 16}
LENGTH, ROWS = 16, 4  # of a packed sequence
SIDES = [(8, 12), (0, 0), (12, 4)]  # pictures, a row each; row 1 has none
PICTURES = [np.random.default_rng(i).integers(0, 256, (*s, 3), np.uint8) for i, s in enumerate(SIDES)]
TEXTS = [[1, 5, 6, 2], [1, 7, 2], [1, 8, 4, 9, 2]]


@functools.cache
def make(memory="cross_attention", position="learned", length=5):
    config = ModelConfig(
        patch_encoder=PatchEncoderConfig(**TOWER | {"depth": 1}, patch=4),
        text_encoder=TextEncoderConfig(**TOWER | {"depth": 1}),
        decoder=DecoderConfig(**TOWER, memory=memory, position=position, length=length, scan=True),
    )
    model = Multimodal(config, (8, 8), tokens=TokenIds(20))
    return model, drawn(lambda key: initialise(model, key))


def drawn(init):
    """Random values for the parameters of `init`, which is not compiled for it; norms scale by about 1."""
    random = np.random.default_rng(5)

    def draw(path, leaf):
        return jnp.asarray(random.normal(path[-1].key == "scale", 0.3, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, nn.unbox(jax.eval_shape(init, jax.random.key(0))))


def packed_texts(texts, length=LENGTH):
    """ids and segments [1, length] of texts one after the other."""
    ids, segments = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
    told = np.concatenate(texts)
    ids[0, : len(told)] = told
    segments[0, : len(told)] = np.repeat(np.arange(len(texts)) + 1, [len(t) for t in texts])
    return ids, segments


def batch_of(texts):
    ids, segments = packed_texts(texts)
    blank = [np.zeros((0, 0, 3), np.uint8)] * (ROWS - len(texts))
    pictures = {name: array[None] for name, array in cut([*PICTURES, *blank], 4, 7).items()}
    there = np.arange(ROWS)[None] < len(texts)
    seen = there & (pictures["image_grid"][..., 0] > 0)
    return {"text": ids, "text_segment": segments, "valid": there, "image_valid": seen, **pictures}


def alone(model, params, picture):
    """The tokens of one row's picture [1, N, D] through the plain path; masked where there is none."""
    if not picture.size:
        return Tokens(jnp.zeros((1, 1, TOWER["width"])), jnp.zeros((1, 1), bool))
    return Forward(model, params, {"image": jnp.asarray(picture)[None]}).image().tokens


def same(got, want):
    """Equal to 1e-5 of each tensor's largest value; one that is zero but for rounding counts by the largest of all."""
    largest = max(float(jnp.max(jnp.abs(v))) for v in jax.tree.leaves(want))

    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.max(jnp.abs(b))) + 1e-6 * largest)

    jax.tree.map(check, got, want)


@pytest.mark.parametrize(("memory", "position"), [("cross_attention", "rope"), ("gated_cross_attention", "learned")])
def test_logits_and_gradients_of_packed_rows_equal_those_of_the_rows_alone(memory, position):
    model, params = make(memory, position)

    def packed(params, batch):
        forward = Forward(model, params, batch)
        segments = forward.segments()
        logits = forward.decode(batch["text"], None, forward.memory(), segments=segments).logits
        targets = (segments > 0) & (segments == jnp.roll(segments, 1, 1))
        return next_token_loss(logits, batch["text"], targets)[0], logits

    def apart(params):
        total, made = 0.0, []
        for text, picture in zip(TEXTS, PICTURES, strict=True):
            ids, seen = jnp.asarray(text)[None], alone(model, params, picture)
            made.append(Forward(model, params, {}).decode(ids, None, seen).logits)
            total += next_token_loss(made[-1], ids, jnp.ones(ids.shape, bool))[0]
        return total, made

    run = jax.jit(jax.value_and_grad(packed, has_aux=True))
    (loss, logits), gradient = run(params, batch_of(TEXTS))
    (total, made), truth = jax.jit(jax.value_and_grad(apart, has_aux=True))(params)
    segments = batch_of(TEXTS)["text_segment"][0]
    same([logits[0, segments == i + 1] for i in range(3)], [v[0] for v in made])
    same((loss, gradient), (total, truth))
    # Another row 0 of the same length leaves the others as they are, to the last bit.
    (_, moved), _ = run(params, batch_of([[1, 11, 6, 2], *TEXTS[1:]]))
    np.testing.assert_array_equal(moved[0, segments > 1], logits[0, segments > 1])
    assert not np.allclose(moved[0, segments == 1], logits[0, segments == 1], atol=1e-3)


@pytest.mark.parametrize(
    ("pool", "position"), [("eos", "learned"), ("last", "rope"), ("cls", "sincos"), ("mean", "none")]
)
def test_pooled_texts_equal_those_of_the_texts_alone(pool, position):
    encoder = TextEncoder(TextEncoderConfig(**TOWER, pool=pool, position=position, length=6), 20, eos=2)
    texts = [[1, 7, 2, 9], [1, 5, 6, 8, 7, 2], [4, 2]]
    ids, segments = packed_texts(texts)
    params = drawn(lambda key: encoder.init(key, jnp.zeros((1, 2), int))["params"])

    @jax.jit
    def both(params):
        alone = [encoder.apply({"params": params}, jnp.asarray([text])) for text in texts]
        return encoder.apply({"params": params}, ids, None, segments, packed=ROWS), alone

    (tokens, pooled), alone = both(params)
    for i, (own, vector) in enumerate(alone):
        same(tokens.x[0, segments[0] == i + 1], own.x[0])
        same(pooled[0, i], vector[0])


def test_a_packed_row_longer_than_the_positions_is_nan():
    model, params = make(length=4)
    ids = jnp.array([[1, 5, 6, 1, 5, 6, 7, 8]])
    fits, long = jnp.array([[1, 1, 1, 2, 2, 3, 3, 3]]), jnp.array([[1, 1, 1, 2, 2, 2, 2, 2]])
    decode = jax.jit(lambda segments: Forward(model, params, {}).decode(ids, None, None, segments=segments).logits)
    assert np.isfinite(decode(fits)).all()
    assert np.isnan(decode(long)).all()


def test_packed_and_unpacked_do_not_mix():
    model, params = make()
    ids, segments = jnp.array([[1, 5, 6]]), jnp.array([[1, 1, 2]])
    packed = Tokens(jnp.zeros((1, 3, 16)), segments > 0, segments)

    def trace(model, params, method, *arguments, **options):
        jax.eval_shape(lambda: model.apply({"params": params}, ids, None, *arguments, method=method, **options))

    with pytest.raises(ValueError, match="the memory is packed; expected the segments of the rows"):
        trace(model, params, "decode", packed)
    with pytest.raises(ValueError, match="pool: found packed=0; expected the most rows"):
        trace(model, params, "encode_text", segments)
    with pytest.raises(ValueError, match="packed rows do not read a prefix"):
        trace(*make("prefix", length=8), "decode", packed, segments=segments)
