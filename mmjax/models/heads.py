"""From tokens to one vector a row (pooling), and from that vector to the outputs of a task (head)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.block import MLP, Attention
from mmjax.models.dense import Dense, contract
from mmjax.models.norm import Norm
from mmjax.models.tokens import Tokens
from mmjax.models.transformer_config import TransformerConfig

POOLERS = ("none", "tanh")


class AttentionPool(nn.Module):
    """A learned probe reads the tokens, then x + MLP(norm(x)): the MAP head (Lee et al., 2019; SigLIP: Zhai et al.,
    2023).
    """

    config: TransformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, members: jax.Array | None) -> jax.Array:
        """x: [B, N, D]; members: [B, S, N] bool, the tokens of each of S rows; None: one row of all -> [B, S, D]."""
        width = x.shape[-1]
        boxed = nn.with_logical_partitioning(nn.initializers.xavier_uniform(), (None, None, "embed"))
        probe = self.param("probe", boxed, (1, 1, width)).astype(self.dtype)
        probe = jnp.broadcast_to(probe, (x.shape[0], 1 if members is None else members.shape[1], width))
        x, _ = Attention(self.config, self.dtype, name="attention")(probe, x.astype(self.dtype), mask=members)
        return x + MLP(self.config, self.dtype, name="mlp")(Norm(self.config, self.dtype, name="norm")(x))


class Pool(nn.Module):
    """One vector a row. how: "first" token, "last" real token, "eos" (the first `eos`), "highest_id" (the first token
    with the highest id), "mean" over real tokens, or "attention".
    """

    how: str
    config: TransformerConfig
    dtype: Any = jnp.float32
    eos: int = -1

    @nn.compact
    def __call__(self, tokens: Tokens, ids: jax.Array | None = None, *, packed: int = 0) -> jax.Array:
        """tokens.x: [B, N, D], ids: [B, N] int32 (for "eos" and "highest_id" only) -> [B, D]. "eos" takes the last real
        token where there is none.

        packed: S, how many rows a sequence of packed tokens has at most; then -> [B, S, D], noise where it has fewer.
        """
        x, mask, segments = tokens
        if (segments is None) != (packed == 0):
            raise ValueError(f"pool: found packed={packed}; expected the most rows of a packed sequence, else 0.")
        if packed:
            members = segments[:, None] == jnp.arange(1, packed + 1)[:, None]
        else:
            members = None if mask is None else mask[:, None]
        pooled = self._pooled(x, members, ids)
        return pooled if packed else pooled[:, 0]

    def _pooled(self, x: jax.Array, members: jax.Array | None, ids: jax.Array | None) -> jax.Array:
        """-> [B, S, D]. members: as in `AttentionPool`."""
        if self.how == "attention":
            return AttentionPool(self.config, self.dtype, name="pool")(x, members)
        if self.how == "first" and (members is None or members.shape[1] == 1):
            return x[:, :1]
        if members is None:
            members = jnp.ones((x.shape[0], 1, x.shape[1]), bool)
        if self.how == "mean":
            total = contract("bnd,bsn->bsd", x, members.astype(x.dtype))
            return (total / jnp.maximum(1, jnp.sum(members, -1, keepdims=True))).astype(x.dtype)
        if self.how == "first":
            at = jnp.argmax(members, -1)
        elif self.how == "highest_id":
            at = jnp.argmax(jnp.where(members, ids[:, None], -1), -1)
        else:
            at = jnp.max(jnp.where(members, jnp.arange(x.shape[1]), 0), -1)
        if self.how == "eos":
            is_eos = (ids == self.eos)[:, None] & members
            at = jnp.where(jnp.any(is_eos, -1), jnp.argmax(is_eos, -1), at)
        return jnp.take_along_axis(x, at[..., None], 1)


def pooler(width: int, dtype: Any, name: str | None = None) -> Dense:
    """The dense layer of the pooler "tanh": pooled = tanh(dense(pooled)) (BERT, ViT)."""
    return Dense(width, dtype=dtype, kernel_axes=("embed", None), bias_axes=(None,), name=name)


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
