"""The one block that all towers are made of: ViT, BERT, CLIP, GPT-2 and Llama are settings of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.activations import ACTIVATIONS
from mmjax.models.attention import attend
from mmjax.models.dense import Dense
from mmjax.models.norm import Norm
from mmjax.models.positions import rope_frequencies, rotate
from mmjax.models.tokens import Tokens
from mmjax.models.transformer_config import BIASED, TransformerConfig

kernel_init = nn.initializers.xavier_uniform()


class Attention(nn.Module):
    """Multi-head attention of a sequence over itself or over a memory; H query heads share G key and value heads."""

    config: TransformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
        positions: jax.Array | None = None,
        past: tuple[jax.Array, jax.Array] | None = None,
        index: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """x: [B, N, D] -> ([B, N, D], (k, v)).

        memory: [Bm, M, E], read in place of x; Bm divides B, and query row r reads memory row r // (B // Bm).
        mask: [Bm or B, 1 or N, M]. bias: [B, H, N, M], added to the logits. positions: [B, N], turns on rotary
          positions.
        past: keys and values [B, G, T, d]. With `index`, those of x are written there first; without, they are those
          of a memory that was projected before.

        k and v are [B, G, T, d] too, as the products read them: a cache is not turned around again at each token.
        """
        c = self.config
        biased = BIASED[c.attention_bias or ("all" if c.bias else "none")]

        def project(name: str, x: jax.Array, features: int, axes: tuple[str, str]) -> jax.Array:
            dense = Dense(
                features,
                use_bias=name in biased,
                dtype=self.dtype,
                kernel_init=kernel_init,
                kernel_axes=axes,
                bias_axes=axes[1:],
                name=name,
            )
            return dense(x)

        def split(name: str, x: jax.Array, heads: int, axis: str) -> jax.Array:
            return project(name, x, heads * c.head_dim, ("embed", axis)).reshape(*x.shape[:2], heads, c.head_dim)

        q = split("query", x, c.heads, "heads")
        if past is not None and index is None:
            k, v = past
        else:
            source = x if memory is None else memory
            k, v = (split(name, source, c.kv_heads, "kv") for name in ("key", "value"))
            if positions is not None:
                q, k = (rotate(part, positions, rope_frequencies(c)) for part in (q, k))
            k, v = jnp.moveaxis(k, 2, 1), jnp.moveaxis(v, 2, 1)
        if index is not None:
            k, v = (jax.lax.dynamic_update_slice(p, new, (0, 0, index, 0)) for p, new in zip(past, (k, v), strict=True))
        q = nn.with_logical_constraint(q, ("batch", "length", "act_heads", None))
        # Queries of one memory row lie side by side: reading a shared memory is a reshape, it is never repeated.
        rows = k.shape[0]
        if x.shape[0] % rows:
            raise ValueError(f"attention: {x.shape[0]} rows of queries cannot share {rows} rows of memory evenly.")
        mask = None if mask is None else mask[:, None]
        out = attend(
            q.reshape(rows, -1, c.heads, c.head_dim),
            jnp.moveaxis(k, 1, 2),  # turned back there: no copy is made
            jnp.moveaxis(v, 1, 2),
            mask=mask,
            bias=bias,
            scale=c.attention_scale or None,
            softcap=c.attention_softcap,
        )
        out = out.reshape(*x.shape[:2], c.heads * c.head_dim)
        return project("out", out, x.shape[-1], ("heads", "embed")), (k, v)


class MLP(nn.Module):
    """Two layers with an activation between, optionally gated."""

    config: TransformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, N, D] -> [B, N, D]."""
        c = self.config
        dense = functools.partial(Dense, use_bias=c.bias, dtype=self.dtype, kernel_init=kernel_init)
        wide = functools.partial(dense, c.mlp_dim, kernel_axes=("embed", "mlp"), bias_axes=("mlp",))
        activation = ACTIVATIONS[c.activation]
        up = wide(name="up")(x)
        hidden = activation(wide(name="gate")(x)) * up if c.gated else activation(up)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "act_mlp"))
        return dense(x.shape[-1], kernel_axes=("mlp", "embed"), bias_axes=("embed",), name="down")(hidden)


class Adapter(nn.Module):
    """x + up(gelu(down(x))) through a narrow layer; up is zero at the start (Houlsby et al., 2019, fig. 2)."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, N, D] -> [B, N, D]."""
        down = Dense(
            self.width,
            dtype=self.dtype,
            kernel_init=kernel_init,
            kernel_axes=("embed", None),
            bias_axes=(None,),
            name="down",
        )
        up = Dense(
            x.shape[-1],
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            kernel_axes=(None, "embed"),
            bias_axes=("embed",),
            name="up",
        )
        return x + up(ACTIVATIONS["gelu_tanh"](down(x)))


class Block(nn.Module):
    """One layer: self-attention, optionally a reading of the memory, MLP.

    Attributes:
      cross: "none"; "plain": cross-attention between self-attention and MLP (BLIP: Li et al., 2022); "gated": a
        cross-attention and an MLP of its own before the layer, each behind a tanh gate that is 0 at the start
        (Flamingo: Alayrac et al., 2022, fig. 4).
      cross_only: nothing but the reading of the memory (with "gated": the identity at the start).
    """

    config: TransformerConfig
    dtype: Any = jnp.float32
    cross: str = "none"
    cross_only: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
        positions: jax.Array | None = None,
        memory: Tokens | None = None,
        past: dict[str, jax.Array] | None = None,
        index: jax.Array | None = None,
        memory_mask: jax.Array | None = None,
        drop_path: jax.Array | float = 0.0,
        train: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """x: [B, N, D] -> ([B, N, D], the layer's part of the cache). memory.mask: [Bm, M], or [B, N, M] pairs.

        mask, bias, positions: of the self-attention, see `Attention`.
        """
        c = self.config
        kept: dict[str, jax.Array] = {}

        def residual(
            x: jax.Array, branch: Callable[[jax.Array], jax.Array], name: str, gated: bool = False
        ) -> jax.Array:
            norm = Norm(c, self.dtype, name=f"{name}_norm")
            out = branch(norm(x) if c.norm_first else x)
            if c.norm_after:
                out = Norm(c, self.dtype, name=f"{name}_out_norm")(out)
            if c.layer_scale:
                boxed = nn.with_logical_partitioning(nn.initializers.constant(1e-5), ("embed",))
                out = out * self.param(f"{name}_layer_scale", boxed, out.shape[-1:]).astype(out.dtype)
            if c.adapter:
                out = Adapter(c.adapter, self.dtype, name=f"{name}_adapter")(out)
            if gated:
                value = self.param(f"{name}_gate", nn.with_logical_partitioning(nn.initializers.zeros, ()), ())
                out = out * jnp.tanh(value).astype(out.dtype)
            if train and c.dropout:
                out = nn.Dropout(c.dropout, deterministic=False)(out)
            if train and c.drop_path:
                keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - drop_path, (out.shape[0], 1, 1))
                out = jnp.where(keep, out / (1.0 - drop_path), 0).astype(out.dtype)
            x = nn.with_logical_constraint(x + out, ("batch", "length", "act_embed"))
            return x if c.norm_first else norm(x)

        def attention(x: jax.Array) -> jax.Array:
            old = None if index is None else (past["k"], past["v"])
            out, (kept["k"], kept["v"]) = Attention(c, self.dtype, name="attention")(
                x, mask=mask, bias=bias, positions=positions, past=old, index=index
            )
            return out

        def cross_attention(x: jax.Array) -> jax.Array:
            layer = Attention(c, self.dtype, name="cross_attention")
            source, seen = (None, memory_mask) if memory is None else memory[:2]
            old = (past["memory_k"], past["memory_v"]) if memory is None else None
            out, (kept["memory_k"], kept["memory_v"]) = layer(
                x, source, mask=seen if seen is None or seen.ndim == 3 else seen[:, None], past=old
            )
            return out

        reads = self.cross != "none" and (memory is not None or (past is not None and "memory_k" in past))
        if reads and self.cross == "gated":
            x = residual(x, cross_attention, "cross", gated=True)
            x = residual(x, MLP(c, self.dtype, name="cross_mlp"), "cross_mlp", gated=True)
        if not self.cross_only:
            x = residual(x, attention, "attention")
        if reads and self.cross == "plain":
            x = residual(x, cross_attention, "cross")
        if not self.cross_only:
            x = residual(x, MLP(c, self.dtype, name="mlp"), "mlp")
        return x, kept
