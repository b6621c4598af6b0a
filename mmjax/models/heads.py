"""From tokens to one vector a row (pooling), and from that vector to the outputs of a task (head)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.block import MLP, Attention, Norm, Tokens, TransformerConfig
from mmjax.models.dense import Dense, contract


class AttentionPool(nn.Module):
    """A learned probe reads the tokens, then x + MLP(norm(x)): the MAP head (Lee et al., 2019; SigLIP: Zhai et al.,
    2023).
    """

    config: TransformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Tokens) -> jax.Array:
        """tokens.x: [B, N, D] -> [B, D]."""
        width = tokens.x.shape[-1]
        boxed = nn.with_logical_partitioning(nn.initializers.xavier_uniform(), (None, None, "embed"))
        probe = self.param("probe", boxed, (1, 1, width)).astype(self.dtype)
        mask = None if tokens.mask is None else tokens.mask[:, None]
        probe = jnp.broadcast_to(probe, (tokens.x.shape[0], 1, width))
        x, _ = Attention(self.config, self.dtype, name="attention")(probe, tokens.x.astype(self.dtype), mask=mask)
        x = x + MLP(self.config, self.dtype, name="mlp")(Norm(self.config, self.dtype, name="norm")(x))
        return x[:, 0]


class Pool(nn.Module):
    """One vector a row. how: "first" token, "last" real token, "eos" (the first `eos`), "mean" over real tokens, or
    "attention".
    """

    how: str
    config: TransformerConfig
    dtype: Any = jnp.float32
    eos: int = -1

    @nn.compact
    def __call__(self, tokens: Tokens, ids: jax.Array | None = None) -> jax.Array:
        """tokens.x: [B, N, D], ids: [B, N] int32 (for "eos" only) -> [B, D]. "eos" takes the last real token where
        there is none.
        """
        x, mask = tokens
        if self.how == "first":
            return x[:, 0]
        if self.how == "attention":
            return AttentionPool(self.config, self.dtype, name="pool")(tokens)
        if mask is None:
            mask = jnp.ones(x.shape[:2], bool)
        if self.how == "mean":
            total = contract("bnd,bn->bd", x, mask.astype(x.dtype))
            return (total / jnp.maximum(1, jnp.sum(mask, 1, keepdims=True))).astype(x.dtype)
        at = jnp.max(jnp.where(mask, jnp.arange(x.shape[1]), 0), 1)
        if self.how == "eos":
            is_eos = (ids == self.eos) & mask
            at = jnp.where(jnp.any(is_eos, 1), jnp.argmax(is_eos, 1), at)
        return jnp.take_along_axis(x, at[:, None, None], 1)[:, 0]


class Head(nn.Module):
    """A linear map to `outputs` logits in float32, zero at the start: all outputs are equally likely (big_vision's
    `head_zeroinit`).
    """

    outputs: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        """pooled: [B, D] -> [B, outputs] float32."""
        dense = Dense(
            self.outputs,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            kernel_axes=("embed", None),
            bias_axes=(None,),
            name="logits",
        )
        return dense(pooled).astype(jnp.float32)
