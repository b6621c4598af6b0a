import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.models import dense
from mmjax.models.dense import Dense, contract, matmul, matmul_path


def arrays(*shapes, dtype=jnp.float32):
    generator = np.random.default_rng(0)
    return [jnp.asarray(generator.normal(size=shape), dtype) for shape in shapes]


def mesh_of(count):
    return jax.make_mesh((count,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:count])


def dots(function, *args):
    """The operand dtypes of every dot_general in the jaxpr of `function`."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield tuple(v.aval.dtype.name for v in equation.invars)
            for inner in jax.core.jaxprs_in_params(equation.params):
                yield from walk(inner)

    return list(walk(jax.make_jaxpr(function)(*args).jaxpr))


@pytest.mark.parametrize("path", ["plain", "flat", "flat_amx"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-7)])
def test_every_path_equals_numpy_in_value_and_gradients(path, dtype, tolerance):
    x, g = arrays((2, 3, 5), (2, 3, 7), dtype=dtype)
    (kernel,) = arrays((5, 7))
    y, backward = jax.vjp(jax.jit(lambda x, w: matmul(x, w, path)), x, kernel)
    dx, dw = backward(g)
    assert (y.dtype, dx.dtype, dw.dtype) == (dtype, dtype, jnp.float32)
    x64, g64, w64 = (np.asarray(a.astype(dtype), np.float64) for a in (x, g, kernel))
    expected = x64 @ w64, g64 @ w64.T, np.einsum("abd,abf->df", x64, g64)
    for found, want in zip((y, dx, dw), expected, strict=True):
        np.testing.assert_allclose(np.asarray(found, np.float64), want, atol=tolerance * np.abs(want).max())
    np.testing.assert_allclose(dw, expected[2], atol=1e-6 * np.abs(expected[2]).max())  # never rounded to bf16


@pytest.mark.parametrize("path", ["plain", "flat", "flat_amx"])
def test_bf16_sums_beyond_the_bf16_mantissa(path):
    x = jnp.ones((1024, 1024), jnp.bfloat16)  # a bf16 accumulator stops at 256
    y, backward = jax.vjp(lambda x, w: matmul(x, w, path), x, jnp.ones((1024, 1024)))
    for found in (y, *backward(y / 1024)):
        assert found.min() == found.max() == 1024


@pytest.mark.parametrize("path", ["plain", "flat_amx"])
def test_bf16_backward_multiplies_bf16_only(path):
    x, kernel = arrays((4, 8), (8, 8), dtype=jnp.bfloat16)
    found = dots(
        jax.grad(lambda x, w: matmul(x, w, path).astype(jnp.float32).sum(), (0, 1)), x, kernel.astype(jnp.float32)
    )
    assert found == [("bfloat16", "bfloat16")] * 3
    mixed = jax.grad(lambda x, w: jnp.dot(x, w, preferred_element_type=jnp.float32).sum(), (0, 1))
    assert ("float32", "bfloat16") in dots(mixed, x, kernel)  # what JAX does by itself, hence the rule


def test_contract_equals_autodiff_of_einsum():
    a, b, g = arrays((2, 3, 4), (2, 5, 4), (2, 3, 5))
    spec = "bqd,bkd->bqk"
    found, backward = jax.vjp(lambda a, b: contract(spec, a, b), a, b)
    want, reference = jax.vjp(lambda a, b: jnp.einsum(spec, a, b), a, b)
    for x, y in zip((found, *backward(g)), (want, *reference(g)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


def test_path_follows_backend_mesh_and_dtype(monkeypatch):
    monkeypatch.setattr(dense, "cpu_has_amx", lambda: True)
    assert matmul_path(jnp.bfloat16)[0] == "flat_amx"
    assert matmul_path(jnp.float32)[0] == "flat"
    with jax.set_mesh(mesh_of(1)):
        assert matmul_path(jnp.bfloat16)[0] == "flat_amx"
    with jax.set_mesh(mesh_of(8)):
        assert matmul_path(jnp.bfloat16) == ("plain", "the mesh has 8 devices")
        assert jax.jit(lambda: jnp.zeros(matmul_path(jnp.float32)[0] == "plain"))().shape == (1,)
    monkeypatch.setattr(dense, "cpu_has_amx", lambda: False)
    assert matmul_path(jnp.bfloat16)[0] == "flat"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert matmul_path(jnp.bfloat16) == ("plain", "the backend is gpu")


def test_sharded_layer_gathers_no_operand():
    mesh = mesh_of(8)
    x, kernel = arrays((16, 4, 8), (8, 8), dtype=jnp.bfloat16)
    x, kernel = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))), kernel.astype(jnp.float32)

    def hlo(path):
        def loss(x, w):
            return (matmul(x, w, path or matmul_path(x.dtype)[0]).astype(jnp.float32) ** 2).sum()

        with jax.set_mesh(mesh):
            return jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile().as_text()

    assert "all-reduce" in hlo(None)  # the kernel's gradient
    assert "all-gather" not in hlo(None)
    assert "all-gather" in hlo("flat_amx")  # so that this test can fail


def test_dense_is_affine_with_float32_named_parameters():
    (x,) = arrays((2, 3, 4), dtype=jnp.bfloat16)
    layer = Dense(
        6, dtype=jnp.bfloat16, kernel_axes=("embed", "mlp"), bias_axes=("mlp",), bias_init=jax.nn.initializers.ones
    )
    boxed = layer.init(jax.random.key(0), x)["params"]
    assert {name: leaf.names for name, leaf in boxed.items()} == {"kernel": ("embed", "mlp"), "bias": ("mlp",)}
    params = {name: leaf.value for name, leaf in boxed.items()}
    assert all(leaf.dtype == jnp.float32 for leaf in params.values())
    y = layer.apply({"params": params}, x)
    assert y.dtype == jnp.bfloat16
    want = np.asarray(x, np.float64) @ np.asarray(params["kernel"], np.float64) + 1
    np.testing.assert_allclose(np.asarray(y, np.float64), want, atol=2**-6 * np.abs(want).max())
