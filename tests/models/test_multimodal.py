"""The composed model: parts, absent modalities, one encoding a picture, padding, compute type."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import build
from mmjax.errors import ConfigError
from mmjax.models.decoder import DecoderConfig
from mmjax.models.forward import Forward
from mmjax.models.fusion import FusionConfig
from mmjax.models.multimodal import (
    HeadSpec,
    ModelConfig,
    Multimodal,
    TokenIds,
    Tokens,
    initialise,
    resolve_dtype,
)
from mmjax.models.patch_encoder import PatchEncoder, PatchEncoderConfig
from mmjax.models.text_encoder import TextEncoder, TextEncoderConfig

SMALL = {"width": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
IDS = TokenIds(vocab_size=20, pad=0, bos=1, eos=2, image=3)


@functools.cache
def make(fusion="cross_attention", memory="cross_attention", dtype="float32", **decoder):
    config = ModelConfig(
        patch_encoder=PatchEncoderConfig(**SMALL | {"width": 12}, patch=4),
        text_encoder=TextEncoderConfig(**SMALL),
        fusion=FusionConfig(name=fusion, depth=1),
        decoder=DecoderConfig(**SMALL, memory=memory, **decoder),
    )
    heads = (HeadSpec("vqa", 5, "fused"), HeadSpec("label", 3, "image"))
    model = Multimodal(config, (8, 8), tokens=IDS, heads=heads, contrastive="sigmoid", dtype=dtype)
    params = jax.jit(lambda key: nn.unbox(initialise(model, key)))(jax.random.key(0))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    return model, treedef.unflatten(
        [v + 0.2 * jax.random.normal(k, v.shape) for v, k in zip(leaves, keys, strict=True)]
    )


def batch(texts=2, length=5):
    mask = jnp.arange(length) < jnp.array([[[length], [3]], [[2], [4]]])
    ids = jnp.where(mask, jax.random.randint(jax.random.key(0), (2, 2, length), 4, 20), IDS.pad)
    image = jax.random.randint(jax.random.key(1), (2, 8, 8, 3), 0, 256).astype(jnp.uint8)
    return {"image": image, "text": ids[:, :texts], "text_mask": mask[:, :texts]}


def apply(model, params, method, *arguments, **options):
    return jax.jit(lambda p, a: model.apply({"params": p}, *a, method=method, **options))(params, arguments)


def tokens(rows, length, width, seed=0):
    return Tokens(jax.random.normal(jax.random.key(seed), (rows, length, width)))


def test_initialise_makes_every_part_and_only_those_asked_for():
    params = make()[1]
    assert set(params) == {
        "patch_encoder", "text_encoder", "fusion", "decoder", "head_vqa", "head_label", "image_projection",
        "text_projection", "contrastive_log_scale", "contrastive_bias",
    }  # fmt: skip
    tower = Multimodal(ModelConfig(patch_encoder=PatchEncoderConfig(**SMALL, patch=4)), (8, 8))
    boxed = jax.eval_shape(lambda key: initialise(tower, key), jax.random.key(0))
    assert set(boxed) == {"patch_encoder"}
    with pytest.raises(ConfigError, match="config.model.decoder: none, but a task needs it"):
        apply(tower, boxed, "decode", jnp.zeros((1, 2), int))


@pytest.mark.parametrize(("kind", "scale", "bias"), [("sigmoid", 10.0, -10.0), ("softmax", 1 / 0.07, 0.0)])
def test_contrastive_scale_starts_as_in_the_papers(kind, scale, bias):
    model = dataclasses.replace(make()[0], contrastive=kind)
    params = jax.jit(lambda key: nn.unbox(initialise(model, key)))(jax.random.key(0))
    log_scale, start = apply(model, params, "contrastive_scale")
    assert float(jnp.exp(log_scale)) == pytest.approx(scale, rel=1e-5) and float(start) == bias
    assert not np.any(Forward(model, params, {}).head("vqa", jnp.ones((2, 8))))  # heads start indifferent


@pytest.mark.parametrize("fusion", ["concat", "cross_attention", "gated_cross_attention"])
def test_padding_of_texts_changes_no_output(fusion):
    model, params = make(fusion)
    clean = batch()
    dirty = {**clean, "text": jnp.where(clean["text_mask"], clean["text"], 17)}
    mask = clean["text_mask"].reshape(4, -1)

    @jax.jit
    def outputs(batch):
        f = Forward(model, params, batch)
        logits = f.decode(f.batch["text"].reshape(4, -1), mask, f.memory()).logits
        return f.image().embedding, f.text().embedding, f.fuse().pooled, jnp.where(mask[..., None], logits, 0)

    jax.tree.map(np.testing.assert_array_equal, outputs(clean), outputs(dirty))
    np.testing.assert_allclose(jnp.linalg.norm(outputs(clean)[0], axis=-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("fusion", ["none", "concat", "cross_attention", "gated_cross_attention"])
def test_either_modality_may_be_absent(fusion):
    model, params = make(fusion)
    both = batch()
    fuse = jax.jit(lambda batch: Forward(model, params, batch).fuse())
    text_only = fuse({k: v for k, v in both.items() if k != "image"})
    image_only = fuse({"image": both["image"]})
    assert text_only.pooled.shape == (4, 8) and image_only.pooled.shape == (2, 8)
    reads = not np.allclose(fuse(both).pooled, text_only.pooled, atol=1e-4)
    assert reads == (fusion != "none")
    with pytest.raises(ConfigError, match="neither text nor a picture"):
        apply(model, params, "fuse", None, None)


def test_gated_fusion_is_the_identity_at_the_start():
    model, _ = make("gated_cross_attention")
    fresh = jax.jit(lambda key: nn.unbox(initialise(model, key)))(jax.random.key(0))
    text = tokens(4, 3, 8)
    fused = apply(model, fresh, "fuse", text, tokens(2, 4, 12, seed=1))
    np.testing.assert_array_equal(fused.tokens.x, text.x)


def test_each_picture_is_encoded_once_however_many_tasks_ask(monkeypatch):
    calls, real = [], PatchEncoder.__call__

    def counted(self, image, *arguments, **options):
        calls.append(image.shape)
        return real(self, image, *arguments, **options)

    monkeypatch.setattr(PatchEncoder, "__call__", counted)
    model, params = make()
    data = batch()
    data |= {"question": data["text"], "question_mask": data["text_mask"]}

    def step(params):
        forward = Forward(model, params, data, jax.random.key(0), train=True)
        used = (
            forward.image().embedding.sum() + forward.fuse("text").pooled.sum() + forward.fuse("question").pooled.sum()
        )
        return used + forward.decode(data["text"].reshape(4, -1), None, forward.memory()).logits.sum()

    calls.clear()
    jaxpr = jax.make_jaxpr(step)(params)
    assert calls == [(2, 8, 8, 3)]  # two pictures, four texts, four uses
    assert str(jaxpr).count("u8[2,8,8,3]") == 1


def dots(jaxpr):
    """(operand types, result type) of every dot_general, sub-jaxprs included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(str(v.aval.dtype) for v in equation.invars), str(equation.outvars[0].aval.dtype)
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from dots(inner)


@pytest.mark.parametrize("memory", ["cross_attention", "prefix"])
def test_compute_type_reaches_every_matmul_and_sums_are_float32(memory, monkeypatch):
    # The path that accelerators take; on a CPU without bf16 units Dense widens its operands on purpose.
    monkeypatch.setattr("mmjax.models.dense.matmul_path", lambda dtype: ("plain", "as on an accelerator"))
    model, params = make("concat", memory)
    model, data = dataclasses.replace(model, dtype="bfloat16"), batch()

    def everything(params):
        forward = Forward(model, params, data)
        logits = forward.decode(data["text"].reshape(4, -1), None, forward.memory()).logits
        outputs = forward.head("vqa", forward.fuse().pooled), forward.image().embedding, forward.text().embedding
        return logits, *outputs

    def total(params):
        return sum(jnp.sum(v) for v in everything(params))

    forward = list(dots(jax.make_jaxpr(everything)(params).jaxpr))
    backward = list(dots(jax.make_jaxpr(jax.grad(total))(params).jaxpr))
    assert len(forward) > 30 and len(backward) > 2 * len(forward)
    assert set(forward) == set(backward) == {(("bfloat16", "bfloat16"), "float32")}
    assert {str(v.dtype) for v in jax.eval_shape(everything, params)} == {"float32"}
    assert {str(v.dtype) for v in jax.tree.leaves(params)} == {"float32"}


def test_dtype_auto_is_float32_on_cpu_only():
    assert [resolve_dtype("auto", p) for p in ("cpu", "gpu", "tpu")] == ["float32", "bfloat16", "bfloat16"]
    assert resolve_dtype("bfloat16", "cpu") == "bfloat16"


def test_training_draws_dropout_and_evaluation_does_not():
    model, params = make()
    text = dataclasses.replace(model.config.text_encoder, dropout=0.5)
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, text_encoder=text))
    still = [Forward(model, params, batch()).text().pooled for _ in range(2)]
    drawn = [Forward(model, params, batch(), jax.random.key(i), train=True).text().pooled for i in (0, 0, 1)]
    np.testing.assert_array_equal(*still)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.allclose(drawn[0], drawn[2]) and not np.allclose(drawn[0], still[0])
    with pytest.raises(ValueError, match="train=True needs rng"):
        Forward(model, params, batch(), train=True).text()


@pytest.mark.parametrize(("pool", "at"), [("eos", 2), ("last", 3), ("cls", 0), ("highest_id", 3)])
def test_texts_are_pooled_where_the_config_says(pool, at):
    encoder = TextEncoder(TextEncoderConfig(**SMALL, pool=pool), 20, eos=2)
    ids, mask = jnp.array([[1, 7, 2, 9, 0]]), jnp.array([[1, 1, 1, 1, 0]], bool)
    params = encoder.init(jax.random.key(0), ids)["params"]
    out, pooled = encoder.apply({"params": params}, ids, mask)
    np.testing.assert_array_equal(pooled, out.x[:, at])


@pytest.mark.parametrize("position", ["learned", "rope", "sincos", "relative", "none"])
def test_only_positions_tell_the_order_of_a_text(position):
    encoder = TextEncoder(TextEncoderConfig(**SMALL, pool="mean", position=position), 20)
    ids = jnp.array([[4, 5, 6, 7]])
    params = encoder.init(jax.random.key(0), ids)["params"]
    a, b = (encoder.apply({"params": params}, i)[1] for i in (ids, ids[:, ::-1]))
    assert np.allclose(a, b, atol=1e-6) == (position == "none")
    shifted = encoder.apply({"params": params}, jnp.array([[0, 4, 5, 6, 7]]), jnp.array([[0, 1, 1, 1, 1]], bool))[1]
    np.testing.assert_allclose(shifted, a, atol=1e-5)  # padding on the left shifts nothing


def test_a_text_longer_than_its_positions_is_an_error():
    encoder = TextEncoder(TextEncoderConfig(**SMALL, length=4), 20)
    with pytest.raises(ConfigError, match="text_encoder.length: found 4 learned positions for a sequence of 5"):
        encoder.init(jax.random.key(0), jnp.zeros((1, 5), int))


@pytest.mark.parametrize("memory", ["cross_attention", "gated_cross_attention", "prefix"])
def test_later_tokens_change_no_earlier_logits_and_memory_changes_all(memory):
    model, params = make("none", memory, position="rope", tie=memory != "prefix")
    ids, seen = jnp.array([[1, 5, 6, 7]]), tokens(1, 4, 12)
    logits = apply(model, params, "decode", ids, None, seen).logits
    later = apply(model, params, "decode", ids.at[0, 2].set(9), None, seen).logits
    np.testing.assert_allclose(logits[:, :2], later[:, :2], atol=1e-6)
    assert not np.allclose(logits[:, 2:], later[:, 2:], atol=1e-3)
    moved = apply(model, params, "decode", ids, None, Tokens(seen.x.at[0, 3].add(1.0))).logits
    assert (np.abs(moved - logits).max(-1) > 1e-4).all()


def test_prefix_tokens_see_each_other_both_ways_and_no_text():
    model, params = make("none", "prefix", position="rope")
    seen = tokens(1, 3, 12)
    ids = jnp.array([[3, 3, 3, 1, 5]])

    def hidden(ids, seen):
        return apply(model, params, "decode", ids, None, seen, placed=True).hidden

    base = hidden(ids, seen)
    moved = hidden(ids, Tokens(seen.x.at[0, 2].add(1.0)))
    assert (np.abs(moved - base).max(-1) > 1e-5).all()  # the first prefix token sees the last
    np.testing.assert_allclose(hidden(ids.at[0, 3].set(8), seen)[:, :3], base[:, :3], atol=1e-6)


def test_placeholders_equal_a_prefix_in_front_and_a_wrong_count_is_nan():
    model, params = make("none", "prefix", position="rope")
    seen, ids = tokens(2, 3, 12), jnp.array([[1, 5], [1, 6]])
    placed = jnp.concatenate([jnp.full((2, 3), IDS.image), ids], 1)
    front = apply(model, params, "decode", ids, None, seen)
    inside = apply(model, params, "decode", placed, None, seen, placed=True)
    np.testing.assert_allclose(front.logits, inside.logits[:, 3:], atol=1e-5)
    wrong = apply(model, params, "decode", placed.at[0, 0].set(7), None, seen, placed=True).logits
    assert np.isnan(wrong[0]).any() and not np.isnan(wrong[1]).any()


def test_config_builds_with_sizes_derived_and_checked():
    config = build(ModelConfig, {"patch_encoder": {"size": "Ti"}, "text_encoder": {"size": "mu"}}, "config.model")
    assert config.fusion.sized("f", config.text_encoder.sized()).width == 32 and config.decoder is None
    with pytest.raises(ConfigError, match="config.model.fusion.name: found 'cross', expected one of none, concat"):
        build(ModelConfig, {"fusion": {"name": "cross"}}, "config.model")
    with pytest.raises(ConfigError, match="config.model: no patch_encoder, text_encoder, sound_encoder or decoder"):
        build(ModelConfig, {"patch_encoder": None}, "config.model")
