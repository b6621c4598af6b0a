"""Pictures to patch tokens: orientation, sizes, positions, normalisation, masks, native aspect."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import build
from mmjax.data.patches import cut
from mmjax.errors import ConfigError
from mmjax.models.patch_encoder import (
    PatchEncoder,
    PatchEncoderConfig,
    Patches,
    as_sincos,
    patchify,
    reading,
    resample,
    sincos_2d,
)

SMALL = {"width": 8, "depth": 1, "heads": 2, "mlp_dim": 8, "patch": 4}


def make(size=(8, 12), **values):
    encoder = PatchEncoder(PatchEncoderConfig(**SMALL | values), size, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    init = jax.jit(lambda key: nn.unbox(encoder.init(key, jnp.zeros((1, *size, 3)))["params"]))
    return encoder, init(jax.random.key(0))


def pixels(*shape):
    return jax.random.randint(jax.random.key(1), shape, 0, 256).astype(jnp.uint8)


def test_patches_are_cut_row_by_row_as_a_loop_cuts_them():
    image = np.arange(2 * 6 * 8 * 3).reshape(2, 6, 8, 3)
    got = np.asarray(patchify(jnp.asarray(image), 2))
    for row in range(3):
        for column in range(4):
            want = image[:, row * 2 : row * 2 + 2, column * 2 : column * 2 + 2].reshape(2, -1)
            np.testing.assert_array_equal(got[:, row * 4 + column], want)


@pytest.mark.parametrize("pool", ["cls", "mean", "attention"])
@pytest.mark.parametrize("stem", ["linear", "conv"])
def test_tokens_of_a_picture_that_is_not_square(stem, pool):
    encoder, params = make(stem=stem, pool=pool)
    tokens, pooled = encoder.apply({"params": params}, pixels(2, 8, 12, 3))
    assert tokens.x.shape == (2, 6 + (pool == "cls"), 8) and pooled.shape == (2, 8)


def test_uint8_is_normalised_and_float_is_taken_as_it_is():
    encoder, params = make()
    image = pixels(2, 8, 12, 3)
    normalised = (np.asarray(image) / 255 - np.array([0.4, 0.5, 0.6])) / np.array([0.2, 0.3, 0.4])
    got = encoder.apply({"params": params}, image)[1]
    np.testing.assert_allclose(got, encoder.apply({"params": params}, jnp.float32(normalised))[1], atol=1e-5)


def test_learned_positions_are_resampled_for_other_sizes_only():
    ramp = jnp.asarray(np.broadcast_to(np.arange(3.0), (2, 3))[..., None] * np.ones(8), jnp.float32)
    np.testing.assert_array_equal(resample(ramp, (2, 3)), ramp)
    wide = resample(ramp, (4, 6))
    np.testing.assert_allclose(wide[1, :, 0], [0, 0.25, 0.75, 1.25, 1.75, 2], atol=1e-5)
    encoder, params = make()
    assert encoder.apply({"params": params}, pixels(1, 16, 8, 3))[0].x.shape == (1, 8, 8)


def test_learned_positions_begin_as_the_fixed_ones():
    """Begun 50 times smaller than the stem's vectors, they left a model for long unable to say what is where."""
    learned, params = make((8, 12))
    fixed = learned.clone(config=dataclasses.replace(learned.config, position="sincos"))
    others = {k: v for k, v in params.items() if k != "position"}
    image = pixels(2, 8, 12, 3)
    want, got = fixed.apply({"params": others}, image), learned.apply({"params": params}, image)
    np.testing.assert_allclose(got[0].x, want[0].x, rtol=0, atol=1e-6)
    assert as_sincos(jax.random.key(0), (2, 3, 6)).shape == (2, 3, 6)  # a width that is no multiple of 4


def test_sincos_positions_are_distinct_and_need_no_parameters():
    table = sincos_2d((3, 5), 16)
    assert len(np.unique(np.round(table, 5), axis=0)) == 15
    np.testing.assert_allclose(table[7, :4], np.sin(2 * 10000.0 ** (-np.arange(4) / 3)), rtol=1e-5)  # row 1, column 2
    assert "position" not in make(position="sincos")[1]


@pytest.mark.parametrize("pool", ["cls", "mean", "attention"])
def test_padded_patches_change_nothing(pool):
    encoder, params = make(pool=pool)
    image, mask = pixels(1, 8, 12, 3), jnp.array([[1, 1, 0, 1, 1, 0]], bool)
    other = image.at[:, :, 8:].set(0)  # the third column of patches
    a, b = (encoder.apply({"params": params}, i, mask) for i in (image, other))
    np.testing.assert_array_equal(a[1], b[1])
    assert not np.allclose(a[1], encoder.apply({"params": params}, image)[1])


def test_patch_dropout_keeps_the_share_and_only_in_training():
    encoder, params = make(patch_dropout=0.5)
    image = pixels(2, 8, 12, 3)
    tokens, _ = encoder.apply({"params": params}, image, train=True, rngs={"dropout": jax.random.key(0)})
    assert tokens.x.shape == (2, 3, 8)
    assert encoder.apply({"params": params}, image)[0].x.shape == (2, 6, 8)
    mask = jnp.array([[1, 1, 1, 0, 0, 0]] * 2, bool)
    kept, _ = encoder.apply({"params": params}, image, mask, train=True, rngs={"dropout": jax.random.key(0)})
    assert bool(kept.mask.all())


def test_a_rim_that_fills_no_patch_is_not_read():
    encoder, params = make((10, 15), cut_rim=True)
    assert params["position"].shape == (2, 3, 8)
    image = pixels(1, 10, 15, 3)
    tokens, _ = encoder.apply({"params": params}, image)
    cut, _ = encoder.apply({"params": params}, image.at[:, 8:].set(7).at[:, :, 12:].set(9))
    np.testing.assert_array_equal(tokens.x, cut.x)
    assert tokens.x.shape == (1, 6, 8)


def test_sizes_that_do_not_divide_are_errors():
    encoder, params = make()
    with pytest.raises(ConfigError, match="4 does not divide the picture size 8 x 10"):
        encoder.apply({"params": params}, pixels(1, 8, 10, 3))
    with pytest.raises(ConfigError, match="config.p.patch: found 14, expected a power of two"):
        build(PatchEncoderConfig, {"patch": 14, "stem": "conv"}, "config.p")


def as_patches(pictures, tokens):
    """Pictures [H, W, 3] as `Patches`."""
    arrays = cut(pictures, 4, tokens)
    return Patches(jnp.asarray(arrays["image"]), jnp.asarray(arrays["image_grid"]))


def figures(encoder, params, inputs):
    """(tokens, pooled, gradient by the parameters of a function of both) of each input, in one compiled program."""

    def loss(params, image):
        tokens, pooled = encoder.apply({"params": params}, image)
        mask = jnp.ones(tokens.x.shape[:2], bool) if tokens.mask is None else tokens.mask
        return jnp.sum(jnp.sin(tokens.x) * mask[..., None]) + jnp.sum(jnp.cos(pooled)), (tokens, pooled)

    def run(params):
        made = [jax.grad(loss, has_aux=True)(params, image) for image in inputs]
        return [(*outputs, gradient) for gradient, outputs in made]

    return jax.jit(run)(params)


def same(a, b):
    """Equal to 1e-5 of the largest value; gradients that are zero but for rounding count by the largest of all."""
    largest = max(float(jnp.max(jnp.abs(v))) for v in jax.tree.leaves(b))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-6 * largest), a, b)


NATIVE = [("cls", "learned"), ("mean", "sincos"), ("attention", "learned")]


@pytest.mark.parametrize(("pool", "position"), NATIVE)
def test_a_square_picture_as_patches_equals_the_plain_path(pool, position):
    encoder, params = make((8, 8), pool=pool, position=position)
    picture = np.asarray(pixels(8, 8, 3))
    plain, native = figures(encoder, params, [jnp.asarray(picture)[None], as_patches([picture], 7)])
    np.testing.assert_allclose(native[0].x[:, : plain[0].x.shape[1]], plain[0].x, atol=5e-6)
    np.testing.assert_allclose(native[1], plain[1], atol=5e-6)
    same(native[2], plain[2])


@pytest.mark.parametrize("grid", [(4, 3), (8, 2), (3, 5), (1, 9)])
def test_positions_are_read_for_every_grid_as_the_plain_path_resamples_them(grid):
    table = jax.random.normal(jax.random.key(0), (4, 3, 5))
    down, across = (reading(jnp.arange(n), jnp.array(n), s) for n, s in zip(grid, (4, 3), strict=True))
    if grid == (4, 3):
        np.testing.assert_array_equal(down, np.eye(4))
        np.testing.assert_array_equal(across, np.eye(3))
    read = np.einsum("ih,jw,hwd->ijd", down, across, table)
    np.testing.assert_allclose(read, resample(table, grid), atol=1e-6)


@pytest.mark.parametrize(("pool", "position"), NATIVE)
def test_pictures_of_other_aspects_equal_the_plain_path(pool, position):
    encoder, params = make((8, 8), pool=pool, position=position)
    pictures = [np.asarray(pixels(*size, 3)) for size in ((8, 12), (12, 4))]
    whole = [jnp.asarray(p)[None] for p in pictures]
    a, b, both = figures(encoder, params, [*whole, as_patches(pictures, 7)])
    for i, alone in enumerate((a, b)):
        np.testing.assert_allclose(both[0].x[i, : alone[0].x.shape[1]], alone[0].x[0], atol=5e-6)
        np.testing.assert_allclose(both[1][i], alone[1][0], atol=5e-6)
    same(both[2], jax.tree.map(jnp.add, a[2], b[2]))


def test_padding_of_patches_changes_nothing():
    encoder, params = make(pool="attention")
    patches = as_patches([np.asarray(pixels(8, 8, 3))], 7)
    dirty = patches._replace(values=jnp.where(patches.mask[..., None], patches.values, 77))
    apply = jax.jit(lambda p: encoder.apply({"params": params}, p))
    (clean, pooled), (other, again) = apply(patches), apply(dirty)
    np.testing.assert_array_equal(pooled, again)
    np.testing.assert_array_equal(clean.x[:, :4], other.x[:, :4])


def test_dropped_patches_are_padding_first():
    encoder, params = make(patch_dropout=0.5)
    patches = as_patches([np.asarray(pixels(8, 8, 3)), np.asarray(pixels(4, 8, 3))], 8)
    apply = jax.jit(lambda rngs: encoder.apply({"params": params}, patches, train=True, rngs=rngs))
    tokens, _ = apply({"dropout": jax.random.key(0)})
    assert tokens.mask.sum(1).tolist() == [4, 2]


def test_patches_of_another_size_and_a_stem_of_convolutions_are_errors():
    patches = as_patches([np.asarray(pixels(8, 8, 3))], 4)
    encoder, params = make(stem="conv")
    with pytest.raises(ConfigError, match="patch_encoder.stem: 'conv' reads across patches"):
        encoder.apply({"params": params}, patches)
    encoder, params = make(patch=2)
    with pytest.raises(ConfigError, match="patch_encoder.patch: found patches of 48 values in the batch, expected 12"):
        encoder.apply({"params": params}, patches)


def test_cls_position_is_added_to_the_extra_token():
    encoder, params = make(pool="cls", cls_position=True)
    plain = make(pool="cls")[0]
    moved = {**params, "cls": params["cls"] + params["cls_position"]}
    want = plain.apply({"params": {k: v for k, v in moved.items() if k != "cls_position"}}, pixels(1, 8, 12, 3))
    got = encoder.apply({"params": params}, pixels(1, 8, 12, 3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)
    assert float(jnp.max(jnp.abs(params["cls_position"]))) > 0


def test_tokens_may_be_those_of_an_earlier_layer_without_the_extra_token():
    image = pixels(2, 8, 12, 3)
    encoder, params = make(depth=3, pool="cls", tokens_layer=1, tokens_cls=False)
    tokens, pooled = encoder.apply({"params": params}, image)
    short = make(depth=2, pool="cls", final_norm=False)[0]
    kept = {**params, "transformer": {k: v for k, v in params["transformer"].items() if k.startswith("block_0")}}
    np.testing.assert_allclose(tokens.x, short.apply({"params": kept}, image)[0].x[:, 1:], atol=1e-5)
    np.testing.assert_array_equal(pooled, make(depth=3, pool="cls")[0].apply({"params": params}, image)[1])


def test_pooler_is_tanh_of_a_dense_layer_and_pool_none_gives_no_vector():
    image = pixels(1, 8, 12, 3)
    encoder, params = make(pool="cls", pooler="tanh")
    plain = {k: v for k, v in params.items() if k != "pooler"}
    tokens, pooled = make(pool="cls")[0].apply({"params": plain}, image)
    want = np.tanh(np.float64(pooled) @ np.float64(params["pooler"]["kernel"]) + np.float64(params["pooler"]["bias"]))
    np.testing.assert_allclose(encoder.apply({"params": params}, image)[1], want, atol=1e-5)
    encoder, params = make(pool="none")
    assert encoder.apply({"params": params}, image)[1] is None and "pool" not in params


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pool": "mean", "cls_position": True}, "t.pool: found 'mean', but cls_position"),
        ({"pool": "mean", "tokens_cls": False}, "t.pool: found 'mean', but cls_position or tokens_cls"),
        ({"pool": "none", "pooler": "tanh"}, "t.pooler: found 'tanh' with pool 'none'"),
        ({"tokens_layer": 5, "depth": 4}, "t.tokens_layer: found 5, expected 0 to the depth 4"),
    ],
)
def test_options_that_would_do_nothing_are_errors(values, message):
    with pytest.raises(ConfigError, match=message):
        build(PatchEncoderConfig, values, "t")
