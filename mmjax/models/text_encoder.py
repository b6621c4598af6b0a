"""Token ids -> hidden vectors: BERT's, CLIP's and SigLIP's text tower are settings of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import choice
from mmjax.errors import ConfigError
from mmjax.models.heads import POOLERS, Pool, pooler
from mmjax.models.positions import positions_of, sincos_1d
from mmjax.models.tokens import Tokens
from mmjax.models.transformer import Transformer
from mmjax.models.transformer_config import TransformerConfig


@dataclass(frozen=True)
class TextEncoderConfig(TransformerConfig):
    """The text tower.

    Attributes:
      length: longest text in tokens, the size of the table of learned positions.
      causal: a token sees only those before it (CLIP); False sees all (BERT, SigLIP).
      position: "learned", "rope" (rotary), "sincos" (Vaswani et al., 2017), "relative" (T5), or "none".
      pool: "eos" (first end token, CLIP), "last" real token, "cls" (first token, BERT), "highest_id" (the end token of
        CLIP's first files, whose config says another), "mean", or "attention".
      pooler: what becomes of the pooled vector: nothing, or "tanh" of a dense layer (BERT).
      scale_embedding: multiply embeddings by sqrt(width) (Gemma).
      token_types: rows of a table that tells two sentences apart (BERT); all are of type 0 unless said. 0: no table.
      read_padding: padding is read like any other token (SigLIP).
      embed_only: no blocks: tokens are embeddings, for a fusion that is the whole text stack (BLIP).
    """

    length: int = 128
    causal: bool = False
    position: str = choice("learned", "rope", "sincos", "relative", "none")
    pool: str = choice("eos", "last", "cls", "highest_id", "mean", "attention")
    pooler: str = choice(*POOLERS)
    scale_embedding: bool = False
    token_types: int = 0
    read_padding: bool = False
    embed_only: bool = False

    def check(self, where: str) -> None:
        super().check(where)
        check_positions(self, where)
        if self.token_types < 0:
            raise ConfigError(f"{where}.token_types: found {self.token_types}, expected 0 (no table) or more.")


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
    """Embeddings of ids, with positions added where they are not the stack's.

    Attributes:
      types: rows of the table of token types, 0 for none.
      shared: its embeddings are read in place of a table of one's own.
    """

    config: Any
    vocab_size: int
    dtype: Any = jnp.float32
    where: str = "config.model.text_encoder"
    types: int = 0
    shared: TokenEmbedding | None = None

    def setup(self) -> None:
        c = self.config
        init = nn.initializers.normal(0.02)
        if self.shared is None:
            self.table = self.param(
                "embedding", nn.with_logical_partitioning(init, ("vocab", "embed")), (self.vocab_size, c.width)
            )
        else:
            self.table = self.shared.table
        if c.position == "learned":
            self.position = self.param(
                "position", nn.with_logical_partitioning(init, (None, "embed")), (c.length, c.width)
            )

        if self.types:
            self.token_type = self.param(
                "token_type", nn.with_logical_partitioning(init, (None, "embed")), (self.types, c.width)
            )

    def embed(self, ids: jax.Array, types: jax.Array | None = None) -> jax.Array:
        """ids: [B, L], types: [B, L] (None: 0) -> [B, L, D], without positions."""
        x = jnp.take(self.table, ids, axis=0).astype(self.dtype)
        if self.config.scale_embedding:
            x = x * jnp.asarray(self.config.width**0.5, self.dtype)
        if self.types:
            x = x + jnp.take(self.token_type, 0 if types is None else types, axis=0).astype(self.dtype)
        return x

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


class TextEncoder(nn.Module):
    """Texts -> one hidden vector a token, and one vector a text."""

    config: TextEncoderConfig
    vocab_size: int
    eos: int = -1
    dtype: Any = jnp.float32

    def setup(self) -> None:
        c = self.config.sized("config.model.text_encoder")
        self.embed = TokenEmbedding(c, self.vocab_size, self.dtype, types=c.token_types)
        if not c.embed_only:
            self.transformer = Transformer(c, self.dtype)
        self.pool = Pool("first" if c.pool == "cls" else c.pool, c, self.dtype, self.eos)
        if c.pooler == "tanh":
            self.pooler = pooler(c.width, self.dtype)

    def __call__(
        self,
        ids: jax.Array,
        mask: jax.Array | None = None,
        segments: jax.Array | None = None,
        *,
        types: jax.Array | None = None,
        packed: int = 0,
        train: bool = False,
    ) -> tuple[Tokens, jax.Array]:
        """ids: [B, L] int32; mask: [B, L] bool, real tokens (None: all are); types: [B, L] int32, of `token_types`.
        Returns tokens [B, L, D] and pooled [B, D].

        segments: [B, L] int32, of `packed` texts a row at most, in place of the mask; pooled is then [B, packed, D].
        """
        c = self.config
        if c.read_padding and segments is not None:
            raise ConfigError("config.model.text_encoder.read_padding: packed texts have no padding. Set it to false.")
        if types is not None and not c.token_types:
            raise ConfigError("config.model.text_encoder.token_types: 0, but the batch has types. Set how many.")
        mask = None if c.read_padding else mask if segments is None else segments > 0
        positions = positions_of(ids.shape, mask, segments=segments)
        x = self.embed.place(self.embed.embed(ids, types), positions, longest(c, ids.shape[1], segments))
        if not c.embed_only:
            x = self.transformer(x, mask=mask, segments=segments, causal=c.causal, positions=positions, train=train).x
        tokens = Tokens(x, mask, segments)
        pooled = self.pool(tokens, ids, packed=packed)
        return tokens, jnp.tanh(self.pooler(pooled)) if c.pooler == "tanh" else pooled


def longest(config: Any, length: int, segments: jax.Array | None) -> int:
    """Tokens that a row of a sequence of `length` may have: packed rows are no longer than `config.length` each, which
    is what the packer has to see to; a longer one makes its sequence NaN.
    """
    return length if segments is None else min(length, config.length)
