"""The block against plain NumPy, and the promises of the stack: padding, scan, remat, grouped keys, rotary."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import build
from mmjax.errors import ConfigError
from mmjax.models.block import Block
from mmjax.models.sizes import size_of
from mmjax.models.tokens import Tokens
from mmjax.models.transformer import Transformer
from mmjax.models.transformer_config import TransformerConfig

CONFIG = TransformerConfig(width=8, depth=3, heads=2, mlp_dim=12).sized()


def noisy(tree, scale=0.3):
    """Every parameter moved by noise, so that zeros (biases, gates) hide nothing."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    return treedef.unflatten([v + scale * jax.random.normal(k, v.shape) for v, k in zip(leaves, keys, strict=True)])


def make(config, **attributes):
    """(stack, parameters)."""
    stack = Transformer(config, **attributes)
    x = jnp.zeros((1, 2, config.width))
    memory = None if stack.cross == "none" else Tokens(jnp.zeros((1, 2, stack.memory_width or config.width)))
    params = jax.jit(lambda key: nn.unbox(stack.init(key, x, memory=memory)["params"]))(jax.random.key(0))
    return stack, noisy(params)


def run(stack, params, x, **options):
    static = {k: options.pop(k) for k in ("causal", "train") if k in options}
    return jax.jit(lambda p, x, o: stack.apply({"params": p}, x, **o, **static)[0])(params, x, options)


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def numpy_norm(p, x, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def numpy_attention(p, x, source, heads, mask):
    def dense(name, v):
        return v @ p[name]["kernel"] + p[name]["bias"]

    q, k, v = dense("query", x), dense("key", source), dense("value", source)
    d = q.shape[-1] // heads
    out = np.zeros_like(q)
    for b in range(x.shape[0]):
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            for i in range(x.shape[1]):
                logits = k[b, :, part] @ q[b, i, part] / np.sqrt(d)
                weights = np.exp(logits - logits.max()) * mask[b, i]
                out[b, i, part] = weights / weights.sum() @ v[b, :, part]
    return dense("out", out)


def numpy_mlp(p, x):
    hidden = np.maximum(0, x @ p["up"]["kernel"] + p["up"]["bias"])
    return hidden @ p["down"]["kernel"] + p["down"]["bias"]


@pytest.mark.parametrize("norm_first", [True, False])
def test_block_equals_a_loop_in_numpy(norm_first):
    config = dataclasses.replace(CONFIG, depth=2, activation="relu", norm_first=norm_first)
    stack, params = make(config, cross="plain", memory_width=6)
    x, memory = normal(2, 4, 8), normal(2, 5, 6, seed=1)
    got = run(stack, params, x, causal=True, memory=Tokens(memory))
    p, y, source = jax.tree.map(np.float64, params), np.float64(x), np.float64(memory)
    causal, full = np.tril(np.ones((2, 4, 4))), np.ones((2, 4, 5))
    for i in range(2):
        layer = p[f"block_0{i}"]

        def residual(y, name, branch, layer=layer):
            if norm_first:
                return y + branch(numpy_norm(layer[name], y, config.eps))
            return numpy_norm(layer[name], y + branch(y), config.eps)

        y = residual(y, "attention_norm", lambda v, layer=layer: numpy_attention(layer["attention"], v, v, 2, causal))
        y = residual(
            y, "cross_norm", lambda v, layer=layer: numpy_attention(layer["cross_attention"], v, source, 2, full)
        )
        y = residual(y, "mlp_norm", lambda v, layer=layer: numpy_mlp(layer["mlp"], v))
    if norm_first:
        y = numpy_norm(p["final_norm"], y, config.eps)
    assert ("final_norm" in params) == norm_first
    np.testing.assert_allclose(got, y, atol=2e-5)


def test_gated_block_reads_memory_before_the_layer_as_flamingo_does():
    config = dataclasses.replace(CONFIG, depth=1, activation="relu")
    stack, params = make(config, cross="gated", cross_only=True)
    x, memory = normal(1, 3, 8), normal(1, 5, 8, seed=1)
    p, y, source = jax.tree.map(np.float64, params["block_00"]), np.float64(x), np.float64(memory)
    read = numpy_attention(p["cross_attention"], numpy_norm(p["cross_norm"], y, 1e-6), source, 2, np.ones((1, 3, 5)))
    y = y + np.tanh(p["cross_gate"]) * read
    y = y + np.tanh(p["cross_mlp_gate"]) * numpy_mlp(p["cross_mlp"], numpy_norm(p["cross_mlp_norm"], y, 1e-6))
    np.testing.assert_allclose(run(stack, params, x, memory=Tokens(memory)), y, atol=2e-5)


@pytest.mark.parametrize("cross", ["plain", "gated"])
def test_padding_of_sequence_and_memory_changes_no_valid_output(cross):
    stack, params = make(CONFIG, cross=cross)
    x, memory = normal(2, 5, 8), normal(2, 6, 8, seed=1)
    mask, seen = jnp.arange(5) < jnp.array([[3], [5]]), jnp.arange(6) < jnp.array([[6], [2]])
    out = run(stack, params, x, mask=mask, memory=Tokens(memory, seen))
    other = run(
        stack,
        params,
        jnp.where(mask[..., None], x, 7.0),
        mask=mask,
        memory=Tokens(jnp.where(seen[..., None], memory, 7.0), seen),
    )
    np.testing.assert_array_equal(out[mask], other[mask])
    alone = run(stack, params, x[:1, :3], memory=Tokens(memory[:1]))
    np.testing.assert_allclose(out[0, :3], alone[0], atol=1e-5)


def test_rows_that_share_a_memory_equal_rows_with_a_copy_each():
    stack, params = make(CONFIG, cross="plain")
    x, memory, seen = normal(6, 3, 8), normal(2, 4, 8, seed=1), jnp.arange(4) < jnp.array([[4], [2]])
    shared = run(stack, params, x, memory=Tokens(memory, seen))
    copies = run(stack, params, x, memory=Tokens(jnp.repeat(memory, 3, 0), jnp.repeat(seen, 3, 0)))
    np.testing.assert_allclose(shared, copies, atol=1e-5)
    with pytest.raises(ValueError, match="cannot share 4 rows"):
        run(stack, params, x, memory=Tokens(normal(4, 4, 8)))


@pytest.mark.parametrize("train", [False, True])
def test_scan_and_remat_change_neither_values_nor_gradients(train):
    base = dataclasses.replace(CONFIG, dropout=0.2, drop_path=0.3)
    x, mask = normal(4, 5, 8), jnp.arange(5) < jnp.array([[3], [5], [4], [5]])
    params = make(base)[1]

    def value_and_gradient(**changes):
        stack = Transformer(dataclasses.replace(base, **changes))

        def loss(params, x):
            out = run(stack, params, x, mask=mask, train=train, rngs={"dropout": jax.random.key(3)})
            return jnp.sum(jnp.sin(out) * mask[..., None])

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)

    truth = value_and_gradient()
    # 1e-6 of the largest gradient: that of a key bias is zero but for rounding, so leaf by leaf would compare noise.
    largest = max(float(jnp.max(jnp.abs(v))) for v in jax.tree.leaves(truth[1]))
    kinds = [{"scan": True}, {"remat": "full"}, {"remat": "dots", "scan": True}, {"remat": "dots_no_batch"}]
    for changes in kinds if train else kinds[:2]:
        value, gradient = value_and_gradient(**changes)
        assert float(value) == pytest.approx(float(truth[0]), rel=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * largest), gradient, truth[1])
    if train:
        still = run(Transformer(base), params, x, mask=mask)
        assert float(jnp.sum(jnp.sin(still) * mask[..., None])) != pytest.approx(float(truth[0]), rel=1e-2)


def test_each_remat_policy_holds_less_for_the_backward_pass():
    def held(remat):
        config = TransformerConfig(width=32, depth=4, heads=2, mlp_dim=64, remat=remat, scan=True).sized()
        stack = Transformer(config)
        params = nn.unbox(jax.eval_shape(lambda: stack.init(jax.random.key(0), jnp.zeros((1, 2, 32)))["params"]))
        gradient = jax.jit(jax.grad(lambda p, x: jnp.sum(stack.apply({"params": p}, x)[0] ** 2)))
        lowered = gradient.lower(params, jax.ShapeDtypeStruct((16, 32, 32), jnp.float32))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    # Under scan, where a CPU too keeps what the policy says; unrolled, its compiler merges the recomputation away.
    assert held("full") < held("dots_no_batch") < held("dots") < held("none")


def test_parameters_are_one_subtree_a_layer_with_or_without_scan():
    trees = []
    for scan in (False, True):
        stack = Transformer(dataclasses.replace(CONFIG, scan=scan))
        trees.append(jax.eval_shape(lambda s=stack: s.init(jax.random.key(0), jnp.zeros((1, 2, 8)))["params"]))
    assert set(trees[0]) == {"block_00", "block_01", "block_02", "final_norm"}
    assert trees[0]["block_01"]["mlp"]["up"]["kernel"].names == ("embed", "mlp")
    assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])


def test_layers_start_from_different_values():
    params = nn.unbox(Transformer(CONFIG).init(jax.random.key(0), jnp.zeros((1, 2, 8)))["params"])
    kernels = [params[f"block_0{i}"]["mlp"]["up"]["kernel"] for i in range(3)]
    assert not np.allclose(kernels[0], kernels[1]) and not np.allclose(kernels[1], kernels[2])


def test_grouped_keys_equal_keys_repeated_for_each_query_head():
    grouped = dataclasses.replace(CONFIG, heads=4, kv_heads=2, head_dim=2)
    stack, params = make(grouped)
    full = dict(params)
    for name in [n for n in params if n.startswith("block")]:
        attention = dict(params[name]["attention"])
        for part in ("key", "value"):
            kernel, bias = attention[part]["kernel"].reshape(8, 2, 2), attention[part]["bias"].reshape(2, 2)
            attention[part] = {
                "kernel": jnp.repeat(kernel, 2, 1).reshape(8, 8),
                "bias": jnp.repeat(bias, 2, 0).reshape(8),
            }
        full[name] = {**params[name], "attention": attention}
    x = normal(2, 5, 8)
    repeated = run(Transformer(dataclasses.replace(grouped, kv_heads=4)), full, x)
    np.testing.assert_allclose(run(stack, params, x), repeated, atol=1e-5)


def test_llama_settings_have_the_llama_parameters():
    config = TransformerConfig(
        width=8, depth=1, heads=2, kv_heads=1, mlp_dim=12, gated=True, norm="rmsnorm", bias=False
    )
    params = make(config.sized())[1]
    assert set(params["block_00"]["mlp"]) == {"up", "gate", "down"}
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    assert not any("bias" in name for name in names)
    assert params["block_00"]["attention"]["key"]["kernel"].shape == (8, 4)


def test_drop_path_grows_with_depth_and_keeps_the_mean():
    config = dataclasses.replace(CONFIG, depth=2, drop_path=0.5, norm_first=False)
    stack, params = make(config)
    x = jnp.broadcast_to(normal(1, 3, 8), (400, 3, 8))
    out = run(stack, params, x, train=True, rngs={"dropout": jax.random.key(0)})
    # Layer 0 drops nothing, the two branches of layer 1 half the rows each: four kinds of rows, equally many.
    kinds, counts = np.unique(np.round(np.asarray(out[:, 0, 0]), 4), return_counts=True)
    assert len(kinds) == 4 and counts.min() > 70


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": "So400"}, "config.t.size: no size 'So400'. Did you mean 'So400m'?"),
        (
            {"remat": "dot"},
            "config.t.remat: found 'dot', expected one of none, full, dots, dots_no_batch. Did you mean",
        ),
        ({"width": 100, "heads": 3}, "config.t.heads: 3 heads do not divide width 100"),
        ({"heads": 6, "kv_heads": 4}, "config.t.kv_heads: found 4"),
        ({"dropout": 1.0}, "config.t.dropout: found 1.0"),
        ({"depth": -1}, "config.t.depth: found -1"),
    ],
)
def test_impossible_sizes_are_errors(values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(TransformerConfig, values, "config.t")


def test_sizes_are_those_of_the_papers():
    assert size_of("B") == (768, 12, 12, 3072) and size_of("So400m") == (1152, 27, 16, 4304)
    sized = TransformerConfig(size="L", depth=2).sized()
    assert (sized.width, sized.depth, sized.heads, sized.head_dim, sized.mlp_dim) == (1024, 2, 16, 64, 4096)
    own = TransformerConfig(width=128).sized()
    assert (own.heads, own.mlp_dim) == (2, 512)


def test_adapters_are_the_identity_at_the_start_and_then_a_bottleneck_after_each_sub_layer():
    config, x = dataclasses.replace(CONFIG, adapter=4), jax.random.normal(jax.random.key(1), (2, 5, 8))
    plain, adapted = Block(CONFIG), Block(config)
    start = jax.jit(lambda key: nn.unbox(adapted.init(key, x)["params"]))(jax.random.key(0))
    params = noisy({n: p for n, p in start.items() if not n.endswith("adapter")})
    new = {n: p for n, p in start.items() if n.endswith("adapter")}
    assert new.keys() == {"attention_adapter", "mlp_adapter"} and new["mlp_adapter"]["down"]["kernel"].shape == (8, 4)
    apply = lambda block, p: np.asarray(block.apply({"params": p}, x)[0])  # noqa: E731
    assert np.array_equal(apply(adapted, {**params, **new}), apply(plain, params))
    params["mlp"] = jax.tree.map(jnp.zeros_like, params["mlp"])  # what is left is x + attention
    moved = {**new, "attention_adapter": noisy(new["attention_adapter"])}
    down, up = (moved["attention_adapter"][n] for n in ("down", "up"))
    h = apply(plain, params) - x
    expected = x + h + jax.nn.gelu(h @ down["kernel"] + down["bias"]) @ up["kernel"] + up["bias"]
    np.testing.assert_allclose(apply(adapted, {**params, **moved}), expected, atol=1e-5)
