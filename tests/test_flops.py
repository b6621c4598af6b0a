"""FLOPs against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import flops

B, D, L = 4, 8, 5


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def chain(x, ws):
    for w in ws:
        x = jnp.sin(x @ w)
    return x.sum()


def scanned(x, ws, remat=False):
    block = lambda x, w: (jnp.sin(x @ w), None)  # noqa: E731
    return jax.lax.scan(jax.checkpoint(block) if remat else block, x, ws)[0].sum()


FORWARD = 2 * L * B * D * D


def test_dot_general_with_batch_dimensions():
    f = lambda a, b: jnp.einsum("bhqd,bhkd->bhqk", a, b)  # noqa: E731
    assert flops.count(f, shape(2, 3, 5, 7), shape(2, 3, 11, 7)) == 2 * 2 * 3 * 5 * 11 * 7


@pytest.mark.parametrize("f", [chain, scanned, jax.jit(scanned)], ids=["loop", "scan", "jit"])
def test_gradient_costs_three_times_the_forward(f):
    assert flops.count(f, shape(B, D), shape(L, D, D)) == FORWARD
    assert flops.count(jax.grad(f, argnums=(0, 1)), shape(B, D), shape(L, D, D)) == 3 * FORWARD


def test_remat_costs_four_times_the_forward():
    f = lambda x, ws: scanned(x, ws, remat=True)  # noqa: E731
    assert flops.count(jax.grad(f, argnums=(0, 1)), shape(B, D), shape(L, D, D)) == 4 * FORWARD


def test_frozen_weights_cost_two_times_the_forward():
    assert flops.count(jax.grad(chain), shape(B, D), shape(L, D, D)) == 2 * FORWARD


def test_custom_derivatives_are_looked_into():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (product(x, w), (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    assert flops.count(product, shape(B, D), shape(D, D)) == 2 * B * D * D
    f = jax.grad(lambda x, w: jnp.sum(product(x, w) ** 2), argnums=(0, 1))
    assert flops.count(f, shape(B, D), shape(D, D)) == 3 * 2 * B * D * D

    @jax.custom_jvp
    def twice(x):
        return 2 * (x @ x)

    twice.defjvps(lambda t, out, x: 2 * (t @ x + x @ t))
    assert flops.count(twice, shape(D, D)) == 2 * D**3


def convolve(x, w, stride, padding, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), padding, dimension_numbers=numbers, feature_group_count=groups
    )


@pytest.mark.parametrize(
    ("stride", "padding", "groups", "places"),
    [(4, "VALID", 1, 9 * 16), (1, "VALID", 1, 81 * 16), (1, "VALID", 2, 81 * 16), (1, "SAME", 1, (12 * 4 - 4) ** 2)],
    ids=["patches", "valid", "groups", "same"],
)
def test_convolution_and_its_gradients(stride, padding, groups, places):
    """A 4 x 4 kernel on 12 x 12; SAME pads 1 and 2, which cut 1 + 2 + 1 taps a line."""
    x, w = shape(2, 12, 12, 6), shape(4, 4, 6 // groups, 10)
    forward = 2 * 2 * 10 * (6 // groups) * places
    f = lambda x, w: convolve(x, w, stride, padding, groups)  # noqa: E731
    assert flops.count(f, x, w) == forward
    assert flops.count(jax.grad(lambda x, w: jnp.sin(f(x, w)).sum(), argnums=(0, 1)), x, w) == 3 * forward


def test_convolution_equals_counting_in_numpy_the_taps_that_meet_ones():
    """Second way: a convolution of ones with ones adds 1 for each real multiply."""
    x, w = jnp.ones((1, 9, 7, 2)), jnp.ones((3, 3, 2, 1))
    f = lambda x, w: jax.lax.conv_general_dilated(  # noqa: E731
        x, w, (2, 1), ((2, 1), (0, 3)), (1, 2), (2, 1), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert flops.count(f, x, w) == 2 * float(f(x, w).sum())


def test_dearest_branch_of_a_cond_counts():
    f = lambda x, yes: jax.lax.cond(yes, lambda x: x @ x @ x, lambda x: x @ x, x)  # noqa: E731
    assert flops.count(f, shape(D, D), jax.ShapeDtypeStruct((), bool)) == 2 * 2 * D**3


def test_while_counts_once_and_says_so():
    f = lambda x: jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x)  # noqa: E731
    with pytest.warns(UserWarning, match="while loop"):
        assert flops.count(f, shape(D, D)) == 2 * D**3


def test_shard_map_counts_all_devices():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    spec = jax.sharding.PartitionSpec
    f = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(spec("data"), spec()), out_specs=spec("data"))
    assert flops.count(f, shape(8, D), shape(D, D)) == 2 * 8 * D * D


def test_peaks_are_known_by_exact_kind_and_never_guessed():
    known = {
        "NVIDIA H200": 989e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "TPU v5 lite": 197e12,
        "TPU v5p": 459e12,
        "TPU v4": 275e12,
    }
    assert {kind: flops.peak_flops(kind) for kind in known} == known
    assert all(flops.peak_flops(kind) is None for kind in ("cpu", "NVIDIA H100 PCIe", "TPU v9", "NVIDIA H2000"))


def test_memory_table_sees_arguments_and_donation():
    x = np.ones((256, 256), np.float32)
    plain = flops.memory_table(jax.jit(lambda x: x + 1).lower(x).compile())
    donated = flops.memory_table(jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile())
    assert plain["arguments"] == plain["outputs"] == x.nbytes
    assert (plain["aliased"], donated["aliased"]) == (0, x.nbytes)
    assert plain["peak"] - donated["peak"] == x.nbytes
