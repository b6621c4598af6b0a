"""Options of the decoder: connectors, prefixes, heads, a table shared with the text encoder."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import build
from mmjax.decoding import generate
from mmjax.errors import ConfigError
from mmjax.models.decoder import DecoderConfig
from mmjax.models.fusion import FusionConfig
from mmjax.models.multimodal import ModelConfig, Multimodal, TokenIds, initialise
from mmjax.models.patch_encoder import PatchEncoderConfig
from mmjax.models.text_encoder import TextEncoderConfig
from mmjax.models.tokens import Tokens

SMALL = {"width": 8, "depth": 2, "heads": 2, "mlp_dim": 8}
IMAGE = 3


def drawn(model):
    """Random values for all parameters, norms about 1."""
    shapes = nn.unbox(jax.eval_shape(lambda key: initialise(model, key), jax.random.key(0)))
    random = np.random.default_rng(3)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(random.normal(path[-1].key == "scale", 0.4, leaf.shape), jnp.float32), shapes
    )


@functools.cache
def make(**values):
    decoder = DecoderConfig(**SMALL | {"memory": "prefix", "position": "rope", "activation": "relu"} | values)
    tower = PatchEncoderConfig(**SMALL | {"width": 12, "depth": 1}, patch=4, pool="none")
    model = Multimodal(ModelConfig(patch_encoder=tower, decoder=decoder), (8, 8), tokens=TokenIds(20, image=IMAGE))
    return model, drawn(model)


def decode(model, params, *arguments, **options):
    static = {k: options.pop(k) for k in ("placed",) if k in options}
    apply = jax.jit(lambda p, a, o: model.apply({"params": p}, *a, **o, **static, method="decode"))
    return apply(params, arguments, options)


def normal(*shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


IDS = jnp.array([[1, 7, 9, 4]])


@pytest.mark.parametrize(
    "values",
    [
        {"scale_output": True},
        {"logit_softcap": 1.5},
        {"head": "mlm"},
        {"head": "mlm", "tie": False, "logit_softcap": 2.0},
    ],
)
def test_logits_equal_their_formula(values):
    model, params = make(**values)
    p, (logits, hidden, _) = jax.tree.map(np.float64, params["decoder"]), decode(model, params, IDS)
    want = np.float64(hidden)
    if "head" in values:
        want = np.maximum(0, want @ p["head_dense"]["kernel"] + p["head_dense"]["bias"])
        want = want - want.mean(-1, keepdims=True)
        want = (
            want / np.sqrt((want**2).mean(-1, keepdims=True) + 1e-6) * p["head_norm"]["scale"] + p["head_norm"]["bias"]
        )
    want = want * (8**-0.5 if "scale_output" in values else 1)
    want = want @ (p["embed"]["embedding"] if values.get("tie", True) else p["output"]).T + p.get("head_bias", 0)
    cap = values.get("logit_softcap")
    np.testing.assert_allclose(logits, cap * np.tanh(want / cap) if cap else want, rtol=1e-4, atol=1e-5)


def test_the_mlp_connector_is_two_layers_with_a_gelu_between():
    model, params = make(connector="mlp")
    linear = make()[0]
    memory = normal(1, 3, 12)
    first, last = (params["decoder"][f"memory_projection_12{end}"] for end in ("", "_out"))
    between = jax.nn.gelu(memory @ first["kernel"] + first["bias"], approximate=False)
    got = decode(model, params, IDS, None, Tokens(memory)).logits
    rest = {k: v for k, v in params["decoder"].items() if not k.startswith("memory_projection")}
    moved = {**rest, "memory_projection_8": last}
    np.testing.assert_allclose(got, decode(linear, {"decoder": moved}, IDS, None, Tokens(between)).logits, atol=1e-5)


def test_a_causal_prefix_hides_later_memory_from_earlier():
    model, params = make(prefix_attention="causal")
    placed = jnp.array([[IMAGE, IMAGE, IMAGE, 1, 5]])
    memory = normal(1, 3, 12)
    a, b = (
        decode(model, params, placed, None, Tokens(m), placed=True).hidden for m in (memory, memory.at[0, 2].add(1))
    )
    np.testing.assert_array_equal(a[:, :2], b[:, :2])
    assert (np.abs(a - b)[:, 2:].max(-1) > 1e-5).all()


@pytest.mark.parametrize("prefix_attention", ["full", "causal"])
def test_a_prefix_of_text_is_seen_by_all_whether_memory_stands_before_it_or_not(prefix_attention):
    model, params = make(prefix_attention=prefix_attention)
    prefix, memory = jnp.array([[1, 1, 0, 0]], bool), Tokens(normal(1, 3, 12))
    for given in (None, memory):
        base = decode(model, params, IDS, None, given, prefix=prefix).hidden
        moved = decode(model, params, IDS.at[0, 1].set(11), None, given, prefix=prefix).hidden
        assert (np.abs(moved - base).max(-1) > 1e-5).all()  # the first token sees the second
        later = decode(model, params, IDS.at[0, 2].set(11), None, given, prefix=prefix).hidden
        np.testing.assert_array_equal(later[:, :2], base[:, :2])


@pytest.mark.parametrize(
    "values",
    [
        {"norm_after": True, "window": 3, "logit_softcap": 3.0, "attention_softcap": 2.0},
        {"position": "relative", "relative_buckets": 8, "relative_distance": 9, "scale_output": True},
        {"head": "mlm", "prefix_attention": "causal", "connector": "mlp", "length": 16, "position": "learned"},
    ],
)
@pytest.mark.parametrize("full", [False, True])
def test_generation_equals_taking_the_likeliest_token_of_the_whole_text_again_and_again(values, full):
    model, params = make(**values)
    prompt, mask = jnp.array([[0, 1, 7], [1, 9, 4]]), jnp.array([[0, 1, 1], [1, 1, 1]], bool)
    memory = Tokens(normal(2, 3, 12))
    write = jax.jit(
        lambda params: generate(
            model, params, memory, length=5, eos=-1, prefix_ids=prompt, prefix_mask=mask, prefix_full=full
        )
    )
    got = write(params)
    ids, seen = prompt, mask
    whole = jax.jit(lambda p, i, m, f: model.apply({"params": p}, i, m, memory, prefix=f, method="decode").logits)
    ids, seen = jnp.pad(prompt, ((0, 0), (0, 5))), jnp.pad(mask, ((0, 0), (0, 5)))
    shown = seen & full
    for i in range(5):
        ids = ids.at[:, 3 + i].set(jnp.argmax(whole(params, ids, seen, shown)[:, 2 + i], -1))
        seen = seen.at[:, 3 + i].set(True)
    np.testing.assert_array_equal(got, ids[:, 3:])


def test_a_shared_table_is_one_parameter_and_equals_two_copies():
    parts = {"text_encoder": TextEncoderConfig(**SMALL, position="relative", pool="mean"), "patch_encoder": None}
    decoder = DecoderConfig(**SMALL, position="relative")
    model = Multimodal(ModelConfig(**parts, decoder=decoder, share_embedding=True), tokens=TokenIds(20))
    params = drawn(model)
    assert "embed" not in params["decoder"]
    apart = dataclasses.replace(model, config=dataclasses.replace(model.config, share_embedding=False))
    copied = {**params, "decoder": {**params["decoder"], "embed": dict(params["text_encoder"]["embed"])}}

    def logits(model, params):
        def run(params):
            memory = model.apply({"params": params}, IDS, method="encode_text").tokens
            decoded = model.apply({"params": params}, IDS, None, memory, method="decode")
            return decoded.logits, model.apply({"params": params}, decoded.hidden, method="decoder_logits")

        return jax.jit(run)(params)

    one, two = logits(model, params), logits(apart, copied)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)
    np.testing.assert_array_equal(*one)


def test_fusion_over_embeddings_is_a_text_stack_that_reads_pictures_when_there_are_any():
    stack = SMALL | {"norm_first": False, "norm_input": True}
    model = Multimodal(
        ModelConfig(
            patch_encoder=PatchEncoderConfig(**SMALL, patch=4),
            text_encoder=TextEncoderConfig(width=8, embed_only=True),
            fusion=FusionConfig(name="cross_attention", **stack),
            text_vector="fusion",
        ),
        (8, 8),
        tokens=TokenIds(20),
        contrastive="softmax",
    )
    params = drawn(model)
    assert set(params["text_encoder"]) == {"embed"}
    # The same blocks without their reading of the picture are a text encoder of the usual kind.
    blocks = params["fusion"]["transformer"]
    plain = {k: {n: p for n, p in v.items() if not n.startswith("cross")} for k, v in blocks.items()}
    alone = Multimodal(
        ModelConfig(patch_encoder=None, text_encoder=TextEncoderConfig(**stack, pool="cls")), tokens=TokenIds(20)
    )
    want = alone.apply(
        {"params": {"text_encoder": {**params["text_encoder"], "transformer": plain}}}, IDS, method="encode_text"
    )
    got = model.apply({"params": params}, IDS, method="encode_text")
    np.testing.assert_allclose(got.pooled, want.pooled, atol=1e-5)
    projected = want.pooled @ params["text_projection"]["kernel"]
    np.testing.assert_allclose(got.embedding, projected / jnp.linalg.norm(projected), atol=1e-5)
    fused = model.apply({"params": params}, got.tokens, Tokens(normal(1, 4, 8)), method="fuse")
    assert not np.allclose(fused.pooled, want.pooled, atol=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text_vector": "fusion"}, "m.text_vector: 'fusion' needs text_encoder"),
        ({"share_embedding": True, "decoder": {"width": 64}}, "m.share_embedding: found widths"),
        ({"decoder": {"logit_softcap": -1}}, "m.decoder.logit_softcap: found -1"),
    ],
)
def test_options_that_cannot_be_are_errors(values, message):
    with pytest.raises(ConfigError, match=message):
        build(ModelConfig, values, "m")


def test_fusion_may_read_pictures_of_another_width_as_they_are():
    small = {"name": "cross_attention", "project_image": False}
    config = ModelConfig(
        patch_encoder=PatchEncoderConfig(**SMALL | {"width": 12}, patch=4),
        text_encoder=TextEncoderConfig(**SMALL),
        fusion=FusionConfig(**small),
    )
    model = Multimodal(config, (8, 8), tokens=TokenIds(20))
    params = drawn(model)
    assert set(params["fusion"]) == {"transformer"}
    assert params["fusion"]["transformer"]["block_00"]["cross_attention"]["key"]["kernel"].shape == (12, 8)
    text, image = Tokens(normal(1, 3, 8)), Tokens(normal(1, 4, 12))
    a, b = (model.apply({"params": params}, text, i, method="fuse").pooled for i in (image, Tokens(image.x + 1)))
    assert not np.allclose(a, b, atol=1e-3)
    with pytest.raises(ConfigError, match="m.project_image: false, but 'concat'"):
        build(FusionConfig, {**small, "name": "concat"}, "m")
