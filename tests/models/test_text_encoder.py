"""Options of the text tower: token types, padding that is read, the tanh pooler, decoders and encoders alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.errors import ConfigError
from mmjax.models.decoder import DecoderConfig
from mmjax.models.multimodal import HeadSpec, ModelConfig, Multimodal, TokenIds, initialise
from mmjax.models.patch_encoder import PatchEncoderConfig
from mmjax.models.text_encoder import TextEncoder, TextEncoderConfig

SMALL = {"width": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
IDS, MASK = jnp.array([[4, 9, 7, 0, 0]]), jnp.array([[1, 1, 1, 0, 0]], bool)


def make(**values):
    encoder = TextEncoder(TextEncoderConfig(**SMALL | values), 20, eos=2)
    return encoder, nn.unbox(encoder.init(jax.random.key(0), IDS)["params"])


def test_a_token_type_is_added_to_each_embedding():
    encoder, params = make(token_types=2, pool="mean")
    table = params["embed"]["token_type"]
    plain = make(pool="mean")[0]

    def shifted(by):
        embed = {"embedding": params["embed"]["embedding"], "position": params["embed"]["position"] + by}
        return plain.apply({"params": {**params, "embed": embed}}, IDS, MASK)[0].x

    types = jnp.array([[0, 0, 1, 1, 1]])
    got = encoder.apply({"params": params}, IDS, MASK)[0].x
    np.testing.assert_allclose(got, shifted(table[0]), atol=1e-5)
    got = encoder.apply({"params": params}, IDS, MASK, types=types)[0].x
    by = jnp.pad(table[types[0]], ((0, 123), (0, 0)))
    np.testing.assert_allclose(got, shifted(by), atol=1e-5)
    with pytest.raises(ConfigError, match="text_encoder.token_types: 0, but the batch has types"):
        plain.apply({"params": params}, IDS, MASK, types=types)


def test_read_padding_is_the_same_as_no_mask():
    encoder, params = make(read_padding=True, pool="last")
    got = encoder.apply({"params": params}, IDS, MASK)
    np.testing.assert_array_equal(got[1], make(pool="last")[0].apply({"params": params}, IDS)[1])
    np.testing.assert_array_equal(got[1], got[0].x[:, 4])  # the last position, a padded one
    with pytest.raises(ConfigError, match="read_padding: packed texts have no padding"):
        encoder.apply({"params": params}, IDS, None, jnp.ones_like(IDS), packed=1)


def test_highest_id_is_found_in_each_packed_text():
    encoder, params = make(pool="highest_id")
    ids, segments = jnp.array([[4, 19, 19, 5, 7, 0]]), jnp.array([[1, 1, 1, 2, 2, 0]])
    tokens, pooled = encoder.apply({"params": params}, ids, None, segments, packed=2)
    np.testing.assert_array_equal(pooled[0], tokens.x[0, jnp.array([1, 4])])


def test_pooler_is_tanh_of_a_dense_layer():
    encoder, params = make(pool="cls", pooler="tanh")
    tokens, pooled = encoder.apply({"params": params}, IDS, MASK)
    want = np.tanh(np.float64(tokens.x[:, 0]) @ np.float64(params["pooler"]["kernel"]) + params["pooler"]["bias"])
    np.testing.assert_allclose(pooled, want, atol=1e-5)


@pytest.mark.parametrize(
    ("parts", "made"),
    [
        ({"decoder": DecoderConfig(**SMALL, memory="prefix")}, {"decoder"}),
        ({"decoder": DecoderConfig(**SMALL), "text_encoder": TextEncoderConfig(**SMALL)}, {"decoder", "text_encoder"}),
    ],
)
def test_models_of_text_alone_have_all_their_parameters(parts, made):
    model = Multimodal(ModelConfig(patch_encoder=None, **parts), tokens=TokenIds(20))
    params = jax.eval_shape(lambda key: nn.unbox(initialise(model, key)), jax.random.key(0))
    assert set(params) == made
    memory = None
    if "text_encoder" in made:
        assert "cross_attention" in params["decoder"]["transformer"]["block_00"]
        memory = jax.eval_shape(lambda p: model.apply({"params": p}, IDS, method="encode_text"), params).tokens
    decoded = jax.eval_shape(lambda p, m: model.apply({"params": p}, IDS, MASK, m, method="decode"), params, memory)
    assert decoded.logits.shape == (1, 5, 20)


def test_a_head_over_a_picture_without_a_vector_is_an_error():
    tower = PatchEncoderConfig(**SMALL, patch=4, pool="none")
    model = Multimodal(ModelConfig(patch_encoder=tower), (8, 8), heads=(HeadSpec("label", 3, "image"),))
    with pytest.raises(ConfigError, match="head 'label' reads 'image', but only"):
        jax.eval_shape(lambda key: initialise(model, key), jax.random.key(0))
