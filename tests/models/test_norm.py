"""The norms against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models.norm import Norm
from mmjax.models.transformer_config import NORMS, TransformerConfig


@pytest.mark.parametrize("kind", NORMS)
def test_norm_equals_its_formula_in_float64(kind):
    random = np.random.default_rng(0)
    x, scale, bias = random.normal(2.0, 3.0, (4, 6)), random.normal(size=6), random.normal(size=6)
    config = TransformerConfig(width=6, heads=1, norm=kind, eps=0.1)
    params = {"scale": jnp.asarray(scale)} | ({"bias": jnp.asarray(bias)} if kind == "layernorm" else {})
    got = Norm(config).apply({"params": params}, jnp.asarray(x, jnp.float32))
    centred = x - x.mean(-1, keepdims=True) if kind == "layernorm" else x
    want = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.1)
    want = want * (1 + scale if kind == "rmsnorm_offset" else scale) + (bias if kind == "layernorm" else 0)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", NORMS)
def test_norm_starts_without_a_scale(kind):
    config, x = TransformerConfig(width=6, heads=1, norm=kind, eps=0.0), jnp.array([[1.0, 3, 3, 1, 1, 3]])
    got = Norm(config).init_with_output(jax.random.key(0), x)[0]
    assert float(jnp.mean(jnp.square(got))) == pytest.approx(1.0, rel=1e-5)
