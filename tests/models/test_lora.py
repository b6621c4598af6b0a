import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import assemble, sharding
from mmjax.config import build
from mmjax.errors import ConfigError
from mmjax.experiment import from_mapping
from mmjax.models import lora
from mmjax.train_step import Objective

RNG = np.random.default_rng(0)


def tree(**shapes):
    return {n.replace("__", "/"): jnp.asarray(RNG.normal(size=s), jnp.float32) for n, s in shapes.items()}


def test_merged_kernels_equal_the_two_products_of_a_dense_layer():
    """x (W + s A B) = x W + s (x A) B, for a fused projection [D, 3 F] too; what has no factors stays."""
    fused = {"a__fused__kernel": (6, 24), "a__fused__lora_a": (6, 2), "a__fused__lora_b": (2, 24)}
    params = tree(**fused, a__fused__bias=(24,), b__kernel=(6, 6))
    merged, x = lora.merge(params, 0.5), RNG.normal(size=(5, 6))
    assert merged.keys() == {"a/fused/kernel", "a/fused/bias", "b/kernel"}
    p = {n: np.asarray(v, np.float64) for n, v in params.items()}
    expected = x @ p["a/fused/kernel"] + 0.5 * (x @ p["a/fused/lora_a"]) @ p["a/fused/lora_b"]
    np.testing.assert_allclose(x @ np.asarray(merged["a/fused/kernel"]), expected, rtol=1e-5, atol=1e-5)
    assert merged["b/kernel"] is params["b/kernel"]


def test_factors_begin_at_nothing_and_depend_on_their_name_alone():
    shapes = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in
              {"x/lora_a": (400, 4), "x/lora_b": (4, 9), "y/lora_a": (400, 4)}.items()}  # fmt: skip
    made = lora.initial_factors(jax.random.key(0), shapes)
    alone = lora.initial_factors(jax.random.key(0), {"y/lora_a": shapes["y/lora_a"]})
    assert not np.any(made["x/lora_b"]) and np.array_equal(made["y/lora_a"], alone["y/lora_a"])
    assert not np.array_equal(made["x/lora_a"], made["y/lora_a"])
    assert np.std(made["x/lora_a"]) == pytest.approx(1 / 20, rel=0.1)
    kernel = jnp.asarray(RNG.normal(size=(400, 9)), jnp.float32)
    merged = lora.merge({"x/kernel": kernel, "x/lora_a": made["x/lora_a"], "x/lora_b": made["x/lora_b"]}, 2.0)
    assert np.array_equal(merged["x/kernel"], kernel)


def test_only_matrices_are_dense_kernels():
    shapes = tree(a__kernel=(2, 3), conv__kernel=(3, 3, 2, 2), a__bias=(3,), embed__embedding=(4, 2))
    assert lora.dense_kernels(shapes) == ["a/kernel"]


@pytest.mark.parametrize(("key", "value"), [("rank", 0), ("alpha", 0.0)])
def test_sizes_that_cannot_be_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"config.adapt.{key}: found 0"):
        build(lora.AdaptConfig, {key: value}, "config.adapt")


class Step:
    """A tiny run of two towers, fusion and a tied decoder with LoRA, up to its gradient."""

    def __init__(self, mapping):
        self.config = from_mapping(mapping)
        sizes = self.config.mesh
        devices = jax.devices()[: (sizes.data or 1) * sizes.fsdp * sizes.tensor]
        mesh, data = sharding.make_mesh(sizes, devices), assemble.open_data(self.config)
        processor = assemble.fit_processor(self.config, data)
        self.model = assemble.build_model(self.config, processor)
        self.plan = assemble.make_plan(self.config, self.model, data, mesh)
        pipeline = assemble.train_pipelines(self.config, data, processor, mesh)["main"]
        self.batch = {"main": sharding.put_batch(next(pipeline.batches(0, 1)), mesh, 8)}

    def params(self):
        """Drawn in NumPy, factors too: behind a B of zero the gradient of A is zero."""
        draw = np.random.default_rng(0)
        made = {}
        for name, shape in sorted(self.plan.layout.shapes.items()):
            spread = shape.shape[-2] ** -0.5 if len(shape.shape) > 1 else 0.1
            made[name] = np.float32(draw.normal(size=shape.shape) * spread + name.endswith("scale"))
        return jax.device_put(made, dict(self.plan.layout.shardings))

    def gradient(self, params=None, accumulate=1):
        objective = Objective(self.model, {"main": self.config.tasks_of("main")}, accumulate, self.config.adapt.scale)
        params = self.params() if params is None else params
        run = sharding.jit(self.plan.layout.mesh, lambda p, f, b: objective.gradient(p, f, b, jax.random.key(0))[::2])
        loss, gradient = run(
            {n: params[n] for n in self.plan.trainable}, {n: params[n] for n in self.plan.frozen}, self.batch
        )
        return float(loss), jax.device_get(gradient)


@pytest.fixture(scope="module")
def many(tiny_mapping):
    def make(mesh, scan=False):
        mapping = tiny_mapping("captioning", "contrastive")
        mapping |= {"mesh": mesh, "adapt": {"lora": [".*/(attention|mlp)/.*"], "rank": 2, "alpha": 2}}
        for tower in ("patch_encoder", "text_encoder", "decoder"):
            mapping["model"][tower]["scan"] = scan
        mapping["model"]["fusion"] = {"name": "none"}
        return mapping

    return make


@pytest.fixture(scope="module")
def whole(many):
    """(loss, {kernel: gradient}) of the merged weights, without factors, on one device."""
    with_factors = Step(many({"data": 1}, scan=True))
    mapping = many({"data": 1}, scan=True)
    mapping.pop("adapt")
    merged = lora.merge(with_factors.params(), with_factors.config.adapt.scale)
    return with_factors, Step(mapping).gradient(merged)


def assert_same(one, other, whole):
    """As far as kernel gradients that agree to 1e-5 of their largest value allow: dB = s A^T dW, dA = s dW B^T.

    Where a kernel's gradient is all but 0, its value is a thousandth of the largest of all.
    """
    step, (_, gradients) = whole
    params = {n: np.abs(np.asarray(x)) for n, x in step.params().items()}
    floor = 1e-3 * max(np.abs(g).max() for g in gradients.values())
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    for name, gradient in one[1].items():
        kernel = lora.kernel_of(name)
        a, b = (params[n] for n in lora.factors_of(kernel))
        size = a.sum(0).max() if name.endswith("lora_b") else b.sum(1).max()
        size *= step.config.adapt.scale * max(np.abs(gradients[kernel]).max(), floor)
        assert np.abs(other[1][name] - gradient).max() < 1e-5 * size, name


@pytest.mark.slow
def test_gradients_of_factors_are_those_of_the_merged_weights_in_a_loop_a_scan_and_microbatches(many, whole):
    step, (loss, full) = whole
    params, scale, found = step.params(), step.config.adapt.scale, step.gradient()
    expected = {}
    for kernel in {lora.kernel_of(n) for n in step.plan.trainable}:
        a, b = lora.factors_of(kernel)
        expected[a] = scale * full[kernel] @ np.asarray(params[b]).T
        expected[b] = scale * np.asarray(params[a]).T @ full[kernel]
    assert found[1].keys() == expected.keys() and all(np.any(g) for g in found[1].values())
    assert_same((loss, expected), found, whole)
    mapping = many({"data": 1}, scan=True)
    for tower in ("patch_encoder", "text_encoder", "decoder"):
        mapping["model"][tower]["scan"] = False
    assert_same(found, Step(mapping).gradient(accumulate=2), whole)


@pytest.mark.slow
def test_gradients_of_factors_are_those_of_any_mesh(many, whole):
    step, _ = whole
    mixed = Step(many({"data": 2, "fsdp": 2, "tensor": 2}, scan=True))
    assert_same(step.gradient(), mixed.gradient(), whole)
    spec = {n: tuple(h.spec) for n, h in mixed.plan.layout.shardings.items()}
    stem = "patch_encoder/transformer/block_00/mlp/up/"
    assert spec[stem + "lora_a"] == ("fsdp", None) and spec[stem + "lora_b"] == (None, "tensor")
