"""Token ids -> hidden vectors: BERT's, CLIP's and SigLIP's text tower are settings of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import choice
from mmjax.errors import ConfigError
from mmjax.models.dense import contract
from mmjax.models.heads import Pool
from mmjax.models.transformer import Tokens, Transformer, TransformerConfig


@dataclass(frozen=True)
class TextEncoderConfig(TransformerConfig):
    """The text tower.

    Attributes:
      length: longest text in tokens, the size of the table of learned positions.
      causal: a token sees only those before it (CLIP); False sees all (BERT, SigLIP).
      position: "learned", "rope" (rotary), "sincos" (Vaswani et al., 2017), or "none".
      pool: "eos" (first end token, CLIP), "last" real token, "cls" (first token, BERT), "mean", or "attention".
      scale_embedding: multiply embeddings by sqrt(width) (Gemma).
    """

    length: int = 128
    causal: bool = False
    position: str = choice("learned", "rope", "sincos", "none")
    pool: str = choice("eos", "last", "cls", "mean", "attention")
    scale_embedding: bool = False

    def check(self, where: str) -> None:
        super().check(where)
        check_positions(self, where)


def check_positions(config: Any, where: str) -> None:
    """Whether `config.length` and the widths suit `config.position`."""
    sizes = config.sized(where)
    if config.length < 1:
        raise ConfigError(f"{where}.length: found {config.length}, expected 1 or more tokens.")
    if config.position == "rope" and sizes.head_dim % 2 or config.position == "sincos" and sizes.width % 2:
        raise ConfigError(
            f"{where}.position: '{config.position}' needs an even head_dim and width, "
            f"found {sizes.head_dim} and {sizes.width}."
        )


class TokenEmbedding(nn.Module):
    """Embeddings of ids, with positions added where they are not rotary."""

    config: Any
    vocab_size: int
    dtype: Any = jnp.float32
    where: str = "config.model.text_encoder"

    def setup(self) -> None:
        c = self.config
        init = nn.initializers.normal(0.02)
        self.table = self.param(
            "embedding", nn.with_logical_partitioning(init, ("vocab", "embed")), (self.vocab_size, c.width)
        )
        if c.position == "learned":
            self.position = self.param(
                "position", nn.with_logical_partitioning(init, (None, "embed")), (c.length, c.width)
            )

    def embed(self, ids: jax.Array) -> jax.Array:
        """ids: [B, L] -> [B, L, D], without positions."""
        x = jnp.take(self.table, ids, axis=0).astype(self.dtype)
        return x * jnp.asarray(self.config.width**0.5, self.dtype) if self.config.scale_embedding else x

    def place(self, x: jax.Array, positions: jax.Array, limit: int) -> jax.Array:
        """Adds positions [B, L] < `limit` to x [B, L, D]. ConfigError where the learned table is shorter."""
        c = self.config
        if c.position == "learned":
            if limit > c.length:
                raise ConfigError(
                    f"{self.where}.length: found {c.length} learned positions for a sequence of {limit} tokens. "
                    f"Set it to {limit} or more, or {self.where}.position to 'rope' or 'sincos'."
                )
            return x + jnp.take(self.position, positions, axis=0).astype(self.dtype)
        if c.position == "sincos":
            return x + jnp.take(jnp.asarray(sincos_1d(limit, c.width)), positions, axis=0).astype(self.dtype)
        return x

    def logits(self, x: jax.Array) -> jax.Array:
        """x: [B, L, D] -> [B, L, V] float32, by the same table (Press and Wolf, 2017)."""
        return contract("bld,vd->blv", x, self.table.astype(x.dtype))


class TextEncoder(nn.Module):
    """Texts -> one hidden vector a token, and one vector a text."""

    config: TextEncoderConfig
    vocab_size: int
    eos: int = -1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        ids: jax.Array,
        mask: jax.Array | None = None,
        segments: jax.Array | None = None,
        *,
        packed: int = 0,
        train: bool = False,
    ) -> tuple[Tokens, jax.Array]:
        """ids: [B, L] int32; mask: [B, L] bool, real tokens (None: all are). Returns tokens [B, L, D] and pooled [B,
        D].

        segments: [B, L] int32, of `packed` texts a row at most, in place of the mask; pooled is then [B, packed, D].
        """
        c = self.config.sized("config.model.text_encoder")
        embedding = TokenEmbedding(c, self.vocab_size, self.dtype, name="embed")
        mask = mask if segments is None else segments > 0
        positions = positions_of(ids.shape, mask, segments=segments)
        x = embedding.place(embedding.embed(ids), positions, longest(c, ids.shape[1], segments))
        x, _ = Transformer(c, self.dtype, name="transformer")(
            x,
            mask=mask,
            segments=segments,
            causal=c.causal,
            positions=positions if c.position == "rope" else None,
            train=train,
        )
        tokens = Tokens(x, mask, segments)
        how = "first" if c.pool == "cls" else c.pool
        return tokens, Pool(how, c, self.dtype, self.eos, name="pool")(tokens, ids, packed=packed)


def positions_of(
    shape: tuple[int, ...],
    mask: jax.Array | None,
    start: jax.Array | int = 0,
    segments: jax.Array | None = None,
) -> jax.Array:
    """Positions [B, L] int32 that count real tokens only, so that padding anywhere shifts nothing.

    With segments [B, L], each a stretch of the row, they start anew in each.
    """
    if mask is None:
        mask = jnp.ones(shape, bool)
    count = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
    if segments is not None:
        begins = segments != jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
        count -= jax.lax.cummax(jnp.where(begins, count - mask, 0), axis=1)
    return jnp.maximum(0, count - 1 + start)


def longest(config: Any, length: int, segments: jax.Array | None) -> int:
    """Tokens that a row of a sequence of `length` may have: packed rows are no longer than `config.length` each, which
    is what the packer has to see to; a longer one makes its sequence NaN.
    """
    return length if segments is None else min(length, config.length)


def sincos_1d(length: int, width: int) -> np.ndarray:
    """Fixed positions [L, D] float32: sin, then cos (Vaswani et al., 2017, 3.5)."""
    half = width // 2
    angles = np.arange(length)[:, None] * 10000.0 ** (-np.arange(half) / max(1, half - 1))
    return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)
