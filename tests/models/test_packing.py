"""Packed rows against the same rows alone: logits, vectors, gradients; nothing leaks between them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data.packing import Row, make_room, packed_arrays, patch_arrays
from mmjax.losses.language import next_token_loss
from mmjax.models.decoder import DecoderConfig
from mmjax.models.forward import Forward
from mmjax.models.fusion import FusionConfig
from mmjax.models.multimodal import ModelConfig, Multimodal, TokenIds, initialise
from mmjax.models.patch_encoder import PatchEncoderConfig
from mmjax.models.text_encoder import TextEncoder, TextEncoderConfig
from mmjax.models.tokens import Tokens

TOWER = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 16}
IMAGE = 3
LENGTH, ROWS = 24, 4  # of a packed sequence
SIDES = [(8, 12), (4, 8), (8, 8)]  # pictures: one of row 0, two of row 2; row 1 has none
PICTURES = [np.random.default_rng(i).integers(0, 256, (*s, 3), np.uint8) for i, s in enumerate(SIDES)]
OWNED = [PICTURES[:1], [], PICTURES[1:]]
TEXTS = [[1, IMAGE, 5, 6, 2], [1, 7, 2], [1, IMAGE, 8, IMAGE, 9, 2]]


@functools.cache
def make(memory="cross_attention", position="learned", fusion="none", length=14):
    config = ModelConfig(
        patch_encoder=PatchEncoderConfig(**TOWER | {"depth": 1}, patch=4),
        text_encoder=TextEncoderConfig(**TOWER | {"depth": 1}),
        fusion=FusionConfig(name=fusion, depth=1, pool="mean"),
        decoder=DecoderConfig(**TOWER, memory=memory, position=position, length=length, scan=True),
    )
    model = Multimodal(config, (8, 8), tokens=TokenIds(20, image=IMAGE))
    return model, drawn(lambda key: initialise(model, key))


def drawn(init):
    """Random values for the parameters of `init`, which is not compiled for it; norms scale by about 1."""
    random = np.random.default_rng(5)

    def draw(path, leaf):
        return jnp.asarray(random.normal(path[-1].key == "scale", 0.3, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, nn.unbox(jax.eval_shape(init, jax.random.key(0))))


def rows_of(placed):
    """The rows, each with room for its pictures where they stand in the text; row 2 learns its last tokens only."""
    rows = []
    for ids, pictures in zip(TEXTS, OWNED, strict=True):
        target = np.arange(len(ids)) > (3 if len(pictures) == 2 else 0)
        row = Row(np.array([i for i in ids if placed or i != IMAGE], np.int32), target, len(pictures))
        row = row if placed else row._replace(target=row.target[-len(row.ids) :])
        rows.append(make_room(row, IMAGE, [p.shape[0] * p.shape[1] // 16 for p in pictures]) if placed else row)
    return rows


def batch_of(rows):
    batch = packed_arrays([rows], "text", LENGTH, ROWS, pictures=3) | patch_arrays([PICTURES], 4, 14, pictures=3)
    return {name: jnp.asarray(array) for name, array in batch.items()}


def alone(model, params, pictures):
    """The tokens of one row's pictures [1, M, D], each through the plain path; masked where there are none."""
    if not pictures:
        return Tokens(jnp.zeros((1, 1, TOWER["width"])), jnp.zeros((1, 1), bool))
    made = [Forward(model, params, {"image": jnp.asarray(p)[None]}).image().tokens.x for p in pictures]
    return Tokens(jnp.concatenate(made, 1))


def same(got, want):
    """Equal to 1e-5 of each tensor's largest value; one that is zero but for rounding counts by the largest of all."""
    largest = max(float(jnp.max(jnp.abs(v))) for v in jax.tree.leaves(want))

    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.max(jnp.abs(b))) + 1e-6 * largest)

    jax.tree.map(check, got, want)


@pytest.mark.parametrize(
    ("memory", "position"),
    [("prefix", "learned"), ("cross_attention", "rope"), ("gated_cross_attention", "sincos")],
)
def test_logits_and_gradients_of_packed_rows_equal_those_of_the_rows_alone(memory, position):
    placed = memory == "prefix"
    model, params = make(memory, position)
    rows = rows_of(placed)

    def packed(params, batch):
        forward = Forward(model, params, batch)
        seen, segments = forward.memory(), forward.segments()
        logits = forward.decode(batch["text"], None, seen, segments=segments, placed=placed).logits
        return next_token_loss(logits, batch["text"], batch["text_target"])[0], logits

    def apart(params):
        total, made = 0.0, []
        for row, pictures in zip(rows, OWNED, strict=True):
            seen = None if placed and not pictures else alone(model, params, pictures)
            ids = jnp.asarray(row.ids)[None]
            made.append(Forward(model, params, {}).decode(ids, None, seen, placed=placed).logits)
            total += next_token_loss(made[-1], ids, jnp.asarray(row.target)[None])[0]
        return total, made

    run = jax.jit(jax.value_and_grad(packed, has_aux=True))
    (loss, logits), gradient = run(params, batch_of(rows))
    (total, made), truth = jax.jit(jax.value_and_grad(apart, has_aux=True))(params)
    segments = batch_of(rows)["text_segment"][0]
    same([logits[0, segments == i + 1] for i in range(3)], [v[0] for v in made])
    same((loss, gradient), (total, truth))
    # Another row 0 of the same length leaves the others as they are, to the last bit.
    other = [rows[0]._replace(ids=np.where(rows[0].ids == 5, 11, rows[0].ids)), *rows[1:]]
    (_, moved), _ = run(params, batch_of(other))
    np.testing.assert_array_equal(moved[0, segments > 1], logits[0, segments > 1])
    assert not np.allclose(moved[0, segments == 1], logits[0, segments == 1], atol=1e-3)


def test_whole_pictures_side_by_side_are_a_packed_memory_too():
    model, params = make("prefix")
    pictures = np.random.default_rng(9).integers(0, 256, (2, 8, 8, 3), np.uint8)
    texts = [np.array([1, IMAGE, 5]), np.array([1, 7, IMAGE])]
    rows = [make_room(Row(ids, np.ones(3, bool)), IMAGE, [4]) for ids in texts]
    batch = packed_arrays([rows], "text", 14, 2, pictures=3) | {"image": np.zeros((1, 3, 8, 8, 3), np.uint8)}
    batch["image"][0, :2] = pictures

    @jax.jit
    def logits(batch):
        f = Forward(model, params, batch)
        return f.decode(batch["text"], None, f.memory(), segments=f.segments(), placed=True).logits

    f = Forward(model, params, {"image": jnp.asarray(pictures)})
    want = jax.jit(lambda ids: f.decode(ids, None, f.memory(), placed=True).logits)(np.stack([r.ids for r in rows]))
    got = logits(batch)
    for i in range(2):
        same(got[0, batch["text_segment"][0] == i + 1], want[i])
    wrong = batch | {"image_row": np.array([[2, 2, 0]], np.int32)}  # both pictures to row 2, which has room for one
    assert np.isnan(logits(wrong)).any()


@pytest.mark.parametrize("fusion", ["concat", "cross_attention"])
def test_fused_vectors_of_packed_rows_equal_those_of_the_rows_alone(fusion):
    model, params = make(fusion=fusion)
    rows = rows_of(placed=False)

    @jax.jit
    def both(params, batch):
        wanted = []
        for row, pictures in zip(rows, OWNED, strict=True):
            ids = jnp.asarray(row.ids)[None, None]
            forward = Forward(model, params, {"text": ids, "text_mask": jnp.ones(ids.shape, bool)})
            wanted.append(forward.fuse_tokens(forward.text().tokens, alone(model, params, pictures)).pooled[0])
        return Forward(model, params, batch).fuse().pooled, wanted

    got, wanted = both(params, batch_of(rows))
    assert got.shape == (1, ROWS, TOWER["width"])
    same(list(got[0, :3]), wanted)


@pytest.mark.parametrize(
    ("pool", "position"), [("eos", "learned"), ("last", "rope"), ("cls", "sincos"), ("mean", "none")]
)
def test_pooled_texts_equal_those_of_the_texts_alone(pool, position):
    encoder = TextEncoder(TextEncoderConfig(**TOWER, pool=pool, position=position, length=6), 20, eos=2)
    texts = [[1, 7, 2, 9], [1, 5, 6, 8, 7, 2], [4, 2]]
    batch = packed_arrays([[Row(np.array(t), np.ones(len(t), bool)) for t in texts]], "text", 16, ROWS)
    params = drawn(lambda key: encoder.init(key, jnp.zeros((1, 2), int))["params"])

    @jax.jit
    def both(params, ids, segments):
        alone = [encoder.apply({"params": params}, jnp.asarray([text])) for text in texts]
        return encoder.apply({"params": params}, ids, None, segments, packed=ROWS), alone

    (tokens, pooled), alone = both(params, batch["text"], batch["text_segment"])
    for i, (own, vector) in enumerate(alone):
        same(tokens.x[0, batch["text_segment"][0] == i + 1], own.x[0])
        same(pooled[0, i], vector[0])


def test_a_packed_row_longer_than_the_positions_is_nan():
    model, params = make(length=4)
    ids = jnp.array([[1, 5, 6, 1, 5, 6, 7, 8]])
    fits, long = jnp.array([[1, 1, 1, 2, 2, 3, 3, 3]]), jnp.array([[1, 1, 1, 2, 2, 2, 2, 2]])
    decode = jax.jit(lambda segments: Forward(model, params, {}).decode(ids, None, None, segments=segments).logits)
    assert np.isfinite(decode(fits)).all()
    assert np.isnan(decode(long)).all()


def test_packed_and_unpacked_do_not_mix():
    model, params = make("prefix")
    ids, segments = jnp.array([[1, 5, 6]]), jnp.array([[1, 1, 2]])
    packed = Tokens(jnp.zeros((1, 3, 16)), segments > 0, segments)

    def trace(method, *arguments, **options):
        jax.eval_shape(lambda: model.apply({"params": params}, ids, None, *arguments, method=method, **options))

    with pytest.raises(ValueError, match="the memory is packed; expected the segments of the rows"):
        trace("decode", packed, placed=True)
    with pytest.raises(ValueError, match="packed rows read a prefix at placeholders, placed=True"):
        trace("decode", packed, segments=segments)
    with pytest.raises(ValueError, match="pool: found packed=0; expected the most rows"):
        trace("encode_text", segments)
    model, params = make()
    with pytest.raises(ValueError, match="the memory is packed; expected the segments of the rows"):
        trace("decode", packed)
