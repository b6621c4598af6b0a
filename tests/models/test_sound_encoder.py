"""The sound tower: its convolutions against a loop, padding, lengths, and its place in the whole model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.errors import ConfigError
from mmjax.models.decoder import DecoderConfig
from mmjax.models.multimodal import ModelConfig, Multimodal, TokenIds, initialise
from mmjax.models.sound_encoder import SoundEncoder, SoundEncoderConfig

SMALL = {"width": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
CONFIG = SoundEncoderConfig(**SMALL, mel=5, length=6, activation="relu", attention_bias="no_key")


def make(config=CONFIG):
    encoder = SoundEncoder(config)
    return encoder, nn.unbox(jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((1, 4, 5)))["params"])


def frames(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("length", [11, 12])
def test_tokens_are_those_of_two_convolutions_in_a_loop(length):
    encoder, params = make()
    # The blocks add nothing when what they write is zero, and the norm is that of NumPy.
    params["transformer"]["block_00"] = jax.tree.map(jnp.zeros_like, params["transformer"]["block_00"])
    x = frames(1, length, 5)
    y = np.float64(x[0])
    for name, stride in (("conv_0", 1), ("conv_1", 2)):
        kernel = np.float64(params[name]["kernel"]).reshape(3, -1, 8)
        padded, out = np.pad(y, ((1, 1), (0, 0))), []
        for at in range(0, len(y), stride):
            out.append(sum(padded[at + i] @ kernel[i] for i in range(3)) + np.float64(params[name]["bias"]))
        y = np.maximum(0, out)
    y = y + np.float64(params["position"])
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    assert y.shape == (6, 8)
    np.testing.assert_allclose(encoder.apply({"params": params}, x).x[0], y, atol=1e-4)


def test_padded_frames_change_no_token_of_the_real_ones():
    encoder, params = make()
    x, mask = frames(2, 12, 5), jnp.arange(12) < jnp.array([[7], [12]])
    run = jax.jit(lambda x, mask=None: encoder.apply({"params": params}, x, mask))
    a, b = run(x, mask), run(jnp.where(mask[..., None], x, 5.0), mask)
    assert a.mask.tolist()[0] == [True] * 4 + [False] * 2
    np.testing.assert_array_equal(a.x, b.x)
    np.testing.assert_allclose(a.x[0, :4], run(x[:1, :7]).x[0], atol=1e-5)


def test_more_frames_than_positions_and_other_bands_are_errors():
    encoder, params = make()
    with pytest.raises(ConfigError, match="sound_encoder.length: found 6 positions for 7 tokens .13 frames."):
        encoder.apply({"params": params}, frames(1, 13, 5))
    with pytest.raises(ConfigError, match="sound_encoder.mel: found 5, but the batch has 4"):
        encoder.apply({"params": params}, frames(1, 12, 4))


def test_a_decoder_reads_sound_as_it_reads_pictures():
    config = ModelConfig(patch_encoder=None, sound_encoder=CONFIG, decoder=DecoderConfig(**SMALL))
    model = Multimodal(config, tokens=TokenIds(20))
    params = jax.jit(lambda key: nn.unbox(initialise(model, key)))(jax.random.key(0))
    assert set(params) == {"sound_encoder", "decoder"}

    @jax.jit
    def logits(x):
        memory = model.apply({"params": params}, x, method="encode_sound")
        return model.apply({"params": params}, jnp.array([[1, 5]]), None, memory, method="decode").logits

    x = frames(1, 12, 5)
    assert not np.allclose(logits(x), logits(x + 1), atol=1e-3)
