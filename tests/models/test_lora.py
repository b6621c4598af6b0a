import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import build
from mmjax.errors import ConfigError
from mmjax.models import lora

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
