"""Pictures to patch tokens: orientation, sizes, positions, normalisation, masks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import build
from mmjax.errors import ConfigError
from mmjax.models.patch_encoder import PatchEncoder, PatchEncoderConfig, patchify, resample, sincos_2d

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


def test_sizes_that_do_not_divide_are_errors():
    encoder, params = make()
    with pytest.raises(ConfigError, match="4 does not divide the picture size 8 x 10"):
        encoder.apply({"params": params}, pixels(1, 8, 10, 3))
    with pytest.raises(ConfigError, match="config.p.patch: found 14, expected a power of two"):
        build(PatchEncoderConfig, {"patch": 14, "stem": "conv"}, "config.p")
