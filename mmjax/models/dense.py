"""The dense layer of every model part: float32 parameters, `dtype` compute, float32 accumulation."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


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
        y = jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=jnp.float32)
        if self.use_bias:
            bias = nn.with_logical_partitioning(self.bias_init, self.bias_axes)
            y = y + self.param("bias", bias, (self.features,), jnp.float32)
        return y.astype(self.dtype)
