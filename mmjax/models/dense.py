"""The dense layer of every model part, and the matrix products that it and attention are made of.

Float32 parameters, compute in `dtype`, float32 accumulation. JAX's own backward pass of a bf16 product that accumulates
in float32 multiplies float32 by bf16, which no bf16 matrix unit takes; so the backward passes are written here.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


@functools.cache
def cpu_has_amx() -> bool:
    """Whether this CPU has matrix units for bf16. Without them (AVX512-BF16 alone) bf16 is no faster than float32."""
    info = Path("/proc/cpuinfo")
    return info.exists() and "amx_bf16" in info.read_text()


def matmul_path(dtype: Any) -> tuple[str, str]:
    """How Dense multiplies here, and why: ("plain" | "flat" | "flat_amx", reason).

    plain: one dot_general on the input as it is: what GSPMD can shard.
    flat: a CPU and a mesh of one device. Leading dims collapse first, as XLA does not do by itself (4096x192 by
      192x768, forward + backward, float32: 27 ms against 43). bf16 is widened: XLA's float32 kernel is faster (7 ms
      against 10).
    flat_amx: bf16 on a CPU with AMX, where bf16 kernels were seen 2-4 times faster than float32 if the layouts are
      right. Without AMX the same path is slower than float32, so it is never chosen there.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if jax.default_backend() != "cpu":
        return "plain", f"the backend is {jax.default_backend()}"
    if not mesh.empty and mesh.size > 1:
        return "plain", f"the mesh has {mesh.size} devices"
    if jnp.dtype(dtype) == jnp.bfloat16 and cpu_has_amx():
        return "flat_amx", "bfloat16 on a CPU with AMX and one device"
    return "flat", f"{jnp.dtype(dtype).name} on a CPU with one device"


def _dot(a: jax.Array, b: jax.Array, dims: tuple) -> jax.Array:
    return jax.lax.dot_general(a, b, (dims, ((), ())), preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, kernel: jax.Array, path: str) -> jax.Array:
    """x [..., D] @ kernel [D, F] -> [..., F] in x's dtype, accumulated in float32, as is the kernel's gradient."""
    return _matmul_forward(x, kernel, path)[0]


def _operands(path: str, *arrays: jax.Array) -> list[jax.Array]:
    """The arrays as `path` multiplies them: collapsed to 2-D, and widened where the bf16 kernel is the slow one."""
    if path == "plain":
        return list(arrays)
    arrays = [a.reshape(-1, a.shape[-1]) for a in arrays]
    return arrays if path == "flat_amx" else [a.astype(jnp.float32) for a in arrays]


def _matmul_forward(x: jax.Array, kernel: jax.Array, path: str):
    a, b = _operands(path, x, kernel.astype(x.dtype))
    y = _dot(a, b, ((a.ndim - 1,), (0,))).astype(x.dtype)
    return y.reshape(*x.shape[:-1], kernel.shape[1]), (x, kernel)


def _matmul_backward(path: str, saved: tuple, grad: jax.Array):
    x, kernel = saved
    a, b, g = _operands(path, x, kernel.astype(x.dtype), grad)
    dx = _dot(g, b, ((g.ndim - 1,), (1,))).astype(x.dtype).reshape(x.shape)
    if path == "flat_amx":
        # XLA folds a transpose into the dot and then misses its fast kernel (150 against 540 GFLOP/s): make it real.
        transposed = with_layout_constraint(jax.lax.optimization_barrier(a.T), Layout(major_to_minor=(0, 1)))
        return dx, _dot(jax.lax.optimization_barrier(transposed), g, ((1,), (0,))).astype(kernel.dtype)
    leading = tuple(range(a.ndim - 1))
    return dx, _dot(a, g, (leading, leading)).astype(kernel.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def contract(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """einsum of two arrays with a float32 result; backward multiplies in the operands' dtype, float32 accumulated.

    spec: "abc,cd->abd": every index of one operand must stand in the other or in the result.
    """
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _contract_forward(spec: str, a: jax.Array, b: jax.Array):
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32), (a, b)  # not `contract`: remat must see the dot


def _contract_backward(spec: str, saved: tuple, grad: jax.Array):
    (a, b), (inputs, out) = saved, spec.split("->")
    first, second = inputs.split(",")
    to_a = jnp.einsum(f"{out},{second}->{first}", grad.astype(b.dtype), b, preferred_element_type=jnp.float32)
    to_b = jnp.einsum(f"{first},{out}->{second}", a, grad.astype(a.dtype), preferred_element_type=jnp.float32)
    return to_a.astype(a.dtype), to_b.astype(b.dtype)


contract.defvjp(_contract_forward, _contract_backward)


class Dense(nn.Module):
    """x [..., D] -> [..., F]: x @ kernel + bias, computed in `dtype`, accumulated in float32, returned in `dtype`.

    Attributes:
      features: F.
      kernel_axes: logical names of the kernel's dims [D, F].
      bias_axes: logical name of the bias' dim [F].
    """

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros
    kernel_axes: tuple[str | None, str | None] = (None, None)
    bias_axes: tuple[str | None] = (None,)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(self.kernel_init, self.kernel_axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        y = matmul(x.astype(self.dtype), kernel, matmul_path(self.dtype)[0])
        if self.use_bias:
            bias = nn.with_logical_partitioning(self.bias_init, self.bias_axes)
            y = (y + self.param("bias", bias, (self.features,), jnp.float32)).astype(self.dtype)
        return y
