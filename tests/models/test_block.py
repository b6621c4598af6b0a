"""Every option of the block against a loop in NumPy, by every way that a stack runs."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import sharding
from mmjax.models.positions import relative_bucket, rope_frequencies
from mmjax.models.tokens import Tokens
from mmjax.models.transformer import Transformer, empty_cache
from mmjax.models.transformer_config import BIASED, TransformerConfig

CONFIG = TransformerConfig(width=8, depth=2, heads=2, kv_heads=2, mlp_dim=12, activation="relu").sized()
RELATIVE = {"position": "relative", "relative_buckets": 8, "relative_distance": 9}
OPTIONS = {
    "post_norm": {"norm_first": False},
    "gated": {"gated": True},
    "rmsnorm": {"norm": "rmsnorm"},
    "rmsnorm_offset": {"norm": "rmsnorm_offset"},
    "norm_after": {"norm_after": True},
    "norm_after_post_norm": {"norm_after": True, "norm_first": False},
    "norm_input": {"norm_input": True},
    "no_final_norm": {"final_norm": False},
    "layer_scale": {"layer_scale": True},
    "no_bias": {"bias": False},
    "bias_all": {"bias": False, "attention_bias": "all"},
    "bias_none": {"attention_bias": "none"},
    "bias_qkv": {"bias": False, "attention_bias": "qkv"},
    "bias_no_key": {"attention_bias": "no_key"},
    "scale": {"attention_scale": 1.0},
    "softcap": {"attention_softcap": 0.7},
    "window": {"window": 2},
    "rope": {"position": "rope"},
    "rope_linear": {"position": "rope", "rope_scaling": "linear", "rope_factor": 3.0},
    "relative": RELATIVE,
}
# Together, as Gemma 2, T5 and a mixture of the others have them.
GROUPS = {
    "gemma": {
        "norm": "rmsnorm_offset", "norm_after": True, "bias": False, "attention_scale": 0.4, "attention_softcap": 2.0,
        "window": 3, "position": "rope", "gated": True, "heads": 4, "kv_heads": 2, "head_dim": 6,
        "rope_scaling": "llama3", "rope_factor": 4.0, "rope_length": 16,
    },
    "t5": RELATIVE | {"norm": "rmsnorm", "bias": False, "attention_scale": 1.0, "head_dim": 3},
    "others": {"layer_scale": True, "attention_bias": "no_key", "final_norm": False, "norm_input": True, "window": 2},
}  # fmt: skip


@functools.cache
def make(kind, **attributes):
    config = dataclasses.replace(CONFIG, **(OPTIONS | GROUPS)[kind]).sized()
    stack = Transformer(config, **attributes)
    memory = None if stack.cross == "none" else Tokens(jnp.zeros((1, 2, config.width)))
    shapes = jax.eval_shape(
        lambda key: stack.init(key, jnp.zeros((1, 2, config.width)), memory=memory), jax.random.key(0)
    )
    random = np.random.default_rng(7)

    def draw(leaf):
        return jnp.asarray(random.normal(0.4, 0.4, leaf.shape), jnp.float32)

    return stack, jax.tree.map(draw, nn.unbox(shapes)["params"])


def rows(*lengths, seed=0):
    return [np.random.default_rng(seed + i).normal(size=(n, 8)) for i, n in enumerate(lengths)]


def slow_norm(c, p, x):
    x = x - x.mean(-1, keepdims=True) if c.norm == "layernorm" else x
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + c.eps)
    return x * (p["scale"] + (c.norm == "rmsnorm_offset")) + p.get("bias", 0)


def slow_attention(c, p, x, source, see, rope=None, bias=None):
    """One row: x [N, D] reads source [M, D] where see [N, M]."""

    def project(name, v, heads):
        return (v @ p[name]["kernel"] + p[name].get("bias", 0)).reshape(len(v), heads, c.head_dim)

    q, k, v = project("query", x, c.heads), project("key", source, c.kv_heads), project("value", source, c.kv_heads)
    if rope is not None:
        half = c.head_dim // 2

        def turn(v):
            numbers = (v[..., :half] + 1j * v[..., half:]) * np.exp(1j * np.outer(np.arange(len(v)), rope))[:, None]
            return np.concatenate([numbers.real, numbers.imag], -1)

        q, k = turn(q), turn(k)
    out = np.zeros((len(x), c.heads, c.head_dim))
    for h in range(c.heads):
        g = h * c.kv_heads // c.heads
        for i in range(len(x)):
            logits = k[:, g] @ q[i, h] * (c.attention_scale or 1 / math.sqrt(c.head_dim))
            if c.attention_softcap:
                logits = c.attention_softcap * np.tanh(logits / c.attention_softcap)
            if bias is not None:
                logits = logits + bias[i, :, h]
            weights = np.where(see[i], np.exp(logits), 0)
            out[i, h] = weights / weights.sum() @ v[:, g]
    return out.reshape(len(x), -1) @ p["out"]["kernel"] + p["out"].get("bias", 0)


def slow_mlp(c, p, x):
    def dense(name, v):
        return v @ p[name]["kernel"] + p[name].get("bias", 0)

    up = dense("up", x)
    return dense("down", np.maximum(0, dense("gate", x)) * up if c.gated else np.maximum(0, up))


def truth(stack, params, x, causal=False, memory=None):
    """The whole stack on one row [N, D], in float64."""
    c, p = stack.config, jax.tree.map(np.float64, params)
    if c.norm_input:
        x = slow_norm(c, p["input_norm"], x)
    distance = np.arange(len(x)) - np.arange(len(x))[:, None]
    rope = rope_frequencies(c) if c.position == "rope" else None
    bias = None
    if c.position == "relative":
        bias = p["relative_bias"][
            np.asarray(relative_bucket(distance, c.relative_buckets, c.relative_distance, causal))
        ]
    for i in range(c.depth):
        layer = p[f"block_{i:02d}"]
        see = distance <= 0 if causal else np.full(distance.shape, True)
        if c.window and i % 2 == 0:
            see = see & (np.abs(distance) < c.window)

        def residual(x, name, branch, layer=layer):
            out = branch(slow_norm(c, layer[f"{name}_norm"], x) if c.norm_first else x)
            if c.norm_after:
                out = slow_norm(c, layer[f"{name}_out_norm"], out)
            x = x + out * (layer[f"{name}_layer_scale"] if c.layer_scale else 1)
            return x if c.norm_first else slow_norm(c, layer[f"{name}_norm"], x)

        x = residual(x, "attention", lambda v: slow_attention(c, layer["attention"], v, v, see, rope, bias))  # noqa: B023
        if memory is not None:
            every = np.full((len(x), len(memory)), True)
            x = residual(x, "cross", lambda v: slow_attention(c, layer["cross_attention"], v, memory, every))  # noqa: B023
        x = residual(x, "mlp", lambda v: slow_mlp(c, layer["mlp"], v))  # noqa: B023
    return slow_norm(c, p["final_norm"], x) if c.norm_first and c.final_norm else x


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def apply(stack, params, x, **options):
    static = {k: options.pop(k) for k in ("causal", "tap") if k in options}
    return jax.jit(lambda p, x, o: stack.apply({"params": p}, x, **o, **static))(
        params, jnp.asarray(x, jnp.float32), options
    )


@pytest.mark.parametrize("kind", OPTIONS)
def test_option_equals_a_loop_in_numpy(kind):
    stack, params = make(kind)
    (x,) = rows(6)
    causal = kind in ("window", "rope")
    close(apply(stack, params, x[None], causal=causal).x[0], truth(stack, params, x, causal))


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("causal", [False, True])
def test_padding_packing_scan_and_remat_equal_each_row_alone(kind, causal):
    stack, params = make(kind)
    a, b = rows(6, 4)
    want = [truth(stack, params, v, causal) for v in (a, b)]
    padded = np.stack([np.concatenate([np.ones((1, 8)), a]), np.concatenate([np.full((3, 8), 9.0), b])])
    mask = jnp.arange(7) >= jnp.array([[1], [3]])
    for changes in ({}, {"scan": True, "remat": "dots"}):
        other = dataclasses.replace(stack, config=dataclasses.replace(stack.config, **changes))
        got = apply(other, params, padded, mask=mask, causal=causal).x
        close(got[0, 1:], want[0])
        close(got[1, 3:], want[1])
    packed = np.concatenate([a, b, np.ones((2, 8))])[None]
    segments = jnp.array([[1] * 6 + [2] * 4 + [0] * 2])
    got = apply(other, params, packed, segments=segments, causal=causal).x[0]
    close(got[:6], want[0])
    close(got[6:10], want[1])


@pytest.mark.parametrize("kind", GROUPS)
def test_a_cache_gives_the_same_as_the_whole_sequence(kind):
    stack, params = make(kind, cross="plain")
    a, b, memory = rows(6, 5, 3)
    want = [truth(stack, params, v, True, memory) for v in (a, b)]

    @jax.jit
    def step(params, cache, x, mask, memory=None):
        return stack.apply({"params": params}, x, mask=mask, memory=memory, cache=cache)[:2]

    # Prompts of 3 and 2 tokens, the shorter with padding after it, then one token at a time.
    prompt = jnp.asarray(np.stack([a[:3], np.concatenate([b[:2], np.ones((1, 8))])]), jnp.float32)
    given = Tokens(jnp.asarray(np.stack([memory, memory]), jnp.float32))
    out, cache = step(
        params, empty_cache(stack.config, 2, 6, jnp.float32), prompt, jnp.array([[1, 1, 1], [1, 1, 0]], bool), given
    )
    close(out[0], want[0][:3])
    close(out[1, :2], want[1][:2])
    for i in range(3):
        new = jnp.asarray(np.stack([a[3 + i], b[2 + i]])[:, None], jnp.float32)
        out, cache = step(params, cache, new, jnp.ones((2, 1), bool))
        close(out[0, 0], want[0][3 + i])
        close(out[1, 0], want[1][2 + i])


@pytest.mark.parametrize("kind", GROUPS)
def test_options_give_the_same_loss_and_gradients_on_a_mesh(kind):
    stack, params = make(kind)
    x = jnp.asarray(np.stack(rows(5, 5, 5, 5)), jnp.float32)

    def loss(params, x):
        return jnp.sum(jnp.sin(stack.apply({"params": params}, x, causal=True).x))

    one = jax.jit(jax.value_and_grad(loss))(params, x)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    names = jax.eval_shape(lambda key: stack.init(key, x[:1, :2]), jax.random.key(0))["params"]
    layouts = nn.logical_to_mesh_sharding(nn.get_partition_spec(names), mesh, tuple(sharding.RULES.items()))
    step = sharding.jit(mesh, jax.value_and_grad(loss), in_shardings=(layouts, sharding.batch_sharding(mesh)))
    if kind == "t5":  # 2 heads of 3: kernels divide, heads too
        assert params["block_00"]["attention"]["query"]["kernel"].shape == (8, 6)
    many = step(params, x)
    assert float(one[0]) == pytest.approx(float(many[0]), rel=1e-5)
    largest = max(float(jnp.max(jnp.abs(v))) for v in jax.tree.leaves(one[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), one[1], many[1])


@pytest.mark.parametrize("kind", BIASED)
def test_attention_bias_says_which_projections_have_one(kind):
    stack = Transformer(dataclasses.replace(CONFIG, depth=1, bias=False, attention_bias=kind))
    params = jax.eval_shape(lambda key: stack.init(key, jnp.zeros((1, 2, 8))), jax.random.key(0))["params"]["block_00"]
    assert {name for name, part in params["attention"].items() if "bias" in part} == set(BIASED[kind])
    assert "bias" not in params["mlp"]["up"] and "bias" not in params["mlp_norm"]


def test_early_is_what_a_shorter_stack_gives_without_its_final_norm():
    stack, params = make("layer_scale")
    (x,) = rows(4)
    short = dataclasses.replace(stack, config=dataclasses.replace(stack.config, depth=1, final_norm=False))
    for scan in (False, True):
        whole = dataclasses.replace(stack, config=dataclasses.replace(stack.config, scan=scan))
        out = apply(whole, params, x[None], tap=1)
        np.testing.assert_allclose(out.early, apply(short, params, x[None]).x, atol=1e-6)
        close(out.x[0], truth(stack, params, x))


def test_layer_scale_starts_near_zero_and_so_the_stack_near_the_identity():
    stack = Transformer(dataclasses.replace(CONFIG, layer_scale=True, final_norm=False))
    x = jnp.asarray(rows(4)[0], jnp.float32)[None]
    out = stack.init_with_output(jax.random.key(0), x)[0].x
    assert 0 < float(jnp.max(jnp.abs(out - x))) < 1e-3
