import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models.activations import ACTIVATIONS

X = np.linspace(-6, 6, 49)
SIGMOID = {"quick_gelu": 1.702, "silu": 1.0, "swish": 1.0}


def truth(name, x):
    if name == "gelu":
        return np.array([v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    if name in ("gelu_tanh", "gelu_new", "gelu_pytorch_tanh"):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return np.maximum(x, 0) if name == "relu" else x / (1 + np.exp(-SIGMOID[name] * x))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_slope_equal_the_formula(name):
    found = ACTIVATIONS[name](jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(found, truth(name, X), atol=1e-6)
    x = X[X != 0]  # relu has no slope there
    slope = jax.vmap(jax.grad(ACTIVATIONS[name]))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(slope, (truth(name, x + 1e-5) - truth(name, x - 1e-5)) / 2e-5, atol=5e-6)
