"""The mesh and the rules."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mmjax.errors import ConfigError
from mmjax.sharding import MeshConfig, check_batch, jit, local_rows, make_mesh, parameter_shardings, put_batch


def boxed(shape, names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def test_data_axis_takes_what_is_left_and_a_wrong_product_is_an_error():
    assert dict(make_mesh(MeshConfig(fsdp=2, tensor=2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    with pytest.raises(ConfigError, match="data=3 x fsdp=2 x tensor=1 = 6 devices, but there are 8"):
        make_mesh(MeshConfig(data=3, fsdp=2))


def test_parameters_get_the_axes_of_the_rules():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = parameter_shardings({"a/kernel": boxed((4, 6), ("embed", "mlp")), "a/bias": boxed((6,), (None,))}, mesh)
    assert shardings["a/kernel"].spec == P("fsdp", "tensor")
    assert shardings["a/bias"].spec == P(None)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (boxed((4, 6), ("embed", "mlpp")), "no rule for its axis 'mlpp'"),
        (boxed((4, 6), ("mlp", "heads")), "two of its axes .* fall on the mesh axis 'tensor'"),
        (boxed((4, 5), ("embed", "mlp")), r"its axis 'mlp' \(5\) does not divide by config.mesh.tensor=2"),
    ],
)
def test_a_layout_that_cannot_be_is_an_error(leaf, message):
    with pytest.raises(ConfigError, match=message):
        parameter_shardings({"x": leaf}, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))


def test_batch_must_split_over_data_and_fsdp_only():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    check_batch(4, 1, mesh, "x")
    with pytest.raises(ConfigError, match="The nearest that does is 8"):
        check_batch(6, 2, mesh, "x")


def test_one_process_holds_all_rows_and_batches_arrive_unchanged():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert local_rows(mesh, 8).tolist() == list(range(8))
    host = {"x": np.arange(16).reshape(8, 2)}
    device = put_batch(host, mesh, 8)["x"]
    np.testing.assert_array_equal(device, host["x"])
    assert device.sharding.spec == P(("data", "fsdp"))


def test_constraints_hold_inside_jit_whatever_thread_calls():
    import threading

    mesh = make_mesh(MeshConfig(data=8))
    run = jit(mesh, lambda x: nn.with_logical_constraint(x * 2, ("batch", None)))
    found = []
    threading.Thread(target=lambda: found.append(run(jnp.ones((8, 2))).sharding.spec)).start()
    while not found:
        pass
    assert found[0][0] == ("data", "fsdp") or found[0][0] == "data"


def test_one_more_shape_than_was_foreseen_is_an_error_and_no_silent_recompile():
    mesh = make_mesh(MeshConfig())
    double = jit(mesh, lambda x: 2 * x, versions=2)
    for length in (3, 5, 3, 5):
        assert double(np.ones(length)).shape == (length,)
    with pytest.raises(RuntimeError, match="compiled 3 versions, expected at most 2: a shape of its inputs varies"):
        double(np.ones(4))
