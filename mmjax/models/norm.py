"""The norms of the block."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.transformer_config import TransformerConfig


class Norm(nn.Module):
    """LayerNorm (Ba et al., 2016) or RMSNorm (Zhang and Sennrich, 2019) over the last axis, computed in float32.

    "rmsnorm_offset" stores scale - 1: zero at the start, and where weight decay pulls to (Gemma).
    """

    config: TransformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., D] -> [..., D] in `dtype`."""
        boxed = functools.partial(nn.with_logical_partitioning, names=("embed",))
        x = x.astype(jnp.float32)
        if self.config.norm == "layernorm":
            x = x - jnp.mean(x, -1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + self.config.eps)
        offset = self.config.norm == "rmsnorm_offset"
        start = nn.initializers.zeros if offset else nn.initializers.ones
        scale = self.param("scale", boxed(start), x.shape[-1:])
        x = x * (1.0 + scale if offset else scale)
        if self.config.norm == "layernorm" and self.config.bias:
            x = x + self.param("bias", boxed(nn.initializers.zeros), x.shape[-1:])
        return x.astype(self.dtype)
