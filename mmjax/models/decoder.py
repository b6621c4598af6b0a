"""The decoder: writes text token by token, reading a memory (picture tokens or fused tokens)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import choice
from mmjax.errors import ConfigError
from mmjax.models.activations import ACTIVATIONS, gelu
from mmjax.models.dense import Dense, contract
from mmjax.models.norm import Norm
from mmjax.models.positions import positions_of
from mmjax.models.text_encoder import TokenEmbedding, check_positions, longest
from mmjax.models.tokens import Tokens
from mmjax.models.transformer import Cache, Transformer, empty_cache
from mmjax.models.transformer_config import TransformerConfig


class Decoded(NamedTuple):
    """logits: [B, L, V] float32, of the token after each; hidden: [B, L, D], from which they are made; cache: None
    without one.
    """

    logits: jax.Array
    hidden: jax.Array
    cache: Cache | None


@dataclass(frozen=True)
class DecoderConfig(TransformerConfig):
    """The language model.

    Attributes:
      memory: how it reads: "cross_attention" in each block (CoCa, BLIP), "gated_cross_attention" (Flamingo), or
        "prefix" (memory tokens, projected, stand before the text or at its `<image>` placeholders; LLaVA, PaliGemma).
      connector: how a memory of another width, and every prefix, is projected: "linear" (PaliGemma), or "mlp" (linear,
        gelu, linear: LLaVA 1.5).
      prefix_attention: of the memory's tokens in a prefix: "full" (they see each other both ways), "prompt" (so do they
        and what a task asks before the answer, as one: PaliGemma), or "causal" (LLaVA).
      length: longest sequence in tokens, the prefix included: the size of the table of learned positions.
      position: as in the text encoder.
      head: what comes before the logits' table: nothing ("linear"), or "mlm" (dense, activation, norm; and a bias a
        word after it: BERT, BLIP).
      tie: logits by the embedding table; False has a table of its own.
      scale_output: multiply the last hidden vectors by width ** -0.5 before the table (T5 v1.0).
      logit_softcap: logits become cap * tanh(logits / cap) (Gemma 2); 0 leaves them.
      scale_embedding: multiply token embeddings (not the memory) by sqrt(width) (Gemma).
    """

    memory: str = choice("cross_attention", "gated_cross_attention", "prefix")
    connector: str = choice("linear", "mlp")
    prefix_attention: str = choice("full", "prompt", "causal")
    length: int = 512
    position: str = choice("learned", "rope", "sincos", "relative", "none")
    head: str = choice("linear", "mlm")
    tie: bool = True
    scale_output: bool = False
    logit_softcap: float = 0.0
    scale_embedding: bool = False

    def check(self, where: str) -> None:
        super().check(where)
        check_positions(self, where)
        if self.logit_softcap < 0:
            raise ConfigError(f"{where}.logit_softcap: found {self.logit_softcap}, expected 0 (off) or more.")


CROSS = {"cross_attention": "plain", "gated_cross_attention": "gated", "prefix": "none"}


class Decoder(nn.Module):
    """A causal transformer with a language model head.

    Attributes:
      config: with its sizes filled in.
      memory_width: of the memory that the blocks read; a memory of another width is first projected to it.
      image_id: id of the `<image>` placeholder, -1 where the tokenizer has none.
      shared: the text encoder's embeddings, read in place of one's own.
    """

    config: DecoderConfig
    vocab_size: int
    memory_width: int
    image_id: int = -1
    dtype: Any = jnp.float32
    shared: TokenEmbedding | None = None

    def setup(self) -> None:
        c = self.config
        self.embed = TokenEmbedding(c, self.vocab_size, self.dtype, "config.model.decoder", shared=self.shared)
        self.transformer = Transformer(c, self.dtype, CROSS[c.memory], memory_width=self.memory_width)
        if not c.tie:
            boxed = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
            self.output = self.param("output", boxed, (self.vocab_size, c.width))
        if c.head == "mlm":
            self.head_dense = Dense(c.width, dtype=self.dtype, kernel_axes=("embed", None), bias_axes=(None,))
            self.head_norm = Norm(c, self.dtype)
            boxed = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
            self.head_bias = self.param("head_bias", boxed, (self.vocab_size,))

    @nn.compact
    def __call__(
        self,
        ids: jax.Array,
        mask: jax.Array | None = None,
        memory: Tokens | None = None,
        *,
        segments: jax.Array | None = None,
        cache: Cache | None = None,
        positions: jax.Array | None = None,
        prefix: jax.Array | None = None,
        placed: bool = False,
        train: bool = False,
    ) -> Decoded:
        """ids: [B, L] int32 -> logits aligned with them, also where a prefix stands before them.

        Args:
          mask: [B, L] bool, real tokens; None: all are.
          memory: Bm rows, Bm dividing B.
          segments: [B, L] int32, of packed rows, in place of the mask. Each reads the memory's segment of its number,
            or all of a memory without segments. Not with "prefix".
          cache: from `start_cache`. The memory is given with the first tokens only.
          positions: [B, L]; None counts the real tokens, those of a prefix included.
          prefix: [B, L] bool, tokens that all may see (a prompt that is read both ways: PaliGemma).
          placed: for "prefix": each row of ids holds an `<image>` placeholder for every memory token, or none at all.
            Another count makes the row NaN: it cannot be an error inside a compiled step. False: the memory stands
            before the ids.
        """
        c = self.config
        x, shown, before = self.embed.embed(ids), None, 0
        mask = mask if segments is None else segments > 0
        if memory is not None:
            memory = self._project(memory)
            if c.memory == "prefix":
                if segments is not None:
                    raise ValueError("decode: packed rows do not read a prefix; expected rows that are not packed.")
                x, mask, shown, before = self._place(x, ids, mask, memory, placed)
                memory = None
        if c.prefix_attention == "causal":
            shown = None
        if prefix is not None:
            prefix = jnp.pad(prefix, ((0, 0), (before, 0)))
            shown = prefix if shown is None else shown | prefix
        if positions is None:
            start = 0 if cache is None else jnp.sum(cache.valid, 1, keepdims=True, dtype=jnp.int32)
            positions = positions_of(x.shape[:2], mask, start, segments)
        limit = longest(c, x.shape[1], segments) if cache is None else cache.valid.shape[1]
        x = self.embed.place(x, positions, limit)
        x, cache, _ = self.transformer(
            x,
            mask=mask,
            segments=segments,
            causal=True,
            prefix=shown,
            positions=positions,
            memory=memory,
            cache=cache,
            train=train,
        )
        hidden = x[:, before:]
        return Decoded(self.logits(hidden), hidden, cache)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, V] float32; operands in the compute type, sums in float32."""
        c = self.config
        if c.head == "mlm":
            hidden = self.head_norm(ACTIVATIONS[c.activation](self.head_dense(hidden)))
        if c.scale_output:
            hidden = hidden * jnp.asarray(c.width**-0.5, hidden.dtype)
        table = self.embed.table if c.tie else self.output
        logits = contract("bld,vd->blv", hidden, table.astype(hidden.dtype))
        if c.head == "mlm":
            logits = logits + self.head_bias
        return c.logit_softcap * jnp.tanh(logits / c.logit_softcap) if c.logit_softcap else logits

    def start_cache(self, batch: int, length: int, memory: Tokens | None = None) -> Cache:
        """An empty cache for `batch` rows of `length` tokens, and the memory's where it is a prefix."""
        prefix = memory.x.shape[1] if memory is not None and self.config.memory == "prefix" else 0
        return empty_cache(self.config, batch, prefix + length, self.dtype)

    def _project(self, memory: Tokens) -> Tokens:
        """Into the width that the blocks read; a prefix always through a connector (LLaVA: Liu et al., 2023)."""
        width = memory.x.shape[-1]
        is_prefix = self.config.memory == "prefix"
        if not is_prefix and width == self.memory_width:
            return memory
        dense = functools.partial(
            Dense,
            self.config.width if is_prefix else self.memory_width,
            dtype=self.dtype,
            kernel_axes=(None, "embed"),
            bias_axes=("embed",),
        )
        # Pictures and fused tokens may differ in width: each has its connector.
        x = dense(name=f"memory_projection_{width}")(memory.x)
        if self.config.connector == "mlp":
            x = dense(name=f"memory_projection_{width}_out")(gelu(x))
        return memory._replace(x=x)

    def _place(
        self, x: jax.Array, ids: jax.Array, mask: jax.Array | None, memory: Tokens, placed: bool
    ) -> tuple[jax.Array, jax.Array | None, jax.Array, int]:
        """Embeddings with the memory among them, their mask, which all may see, and how many stand before the ids."""
        rows, count = x.shape[0], memory.x.shape[1]
        if memory.segments is not None:
            raise ValueError("decode: the memory is packed; expected the segments of the rows that read it.")
        memory = jax.tree.map(lambda v: jnp.repeat(v, rows // v.shape[0], axis=0), memory)
        if placed:
            here = self._placeholders(ids)
            held = jnp.sum(here, 1)[:, None, None]
            nth = jnp.clip(jnp.cumsum(here, 1) - 1, 0, count - 1)
            x = jnp.where(here[..., None], jnp.take_along_axis(memory.x, nth[..., None], 1), x)
            x = jnp.where((held == count) | (held == 0), x, jnp.nan)
            if memory.mask is not None:
                real = ~here | jnp.take_along_axis(memory.mask, nth, 1)
                mask = real if mask is None else mask & real
            return x, mask, here, 0
        prefix = jnp.arange(count + ids.shape[1]) < count
        if mask is not None or memory.mask is not None:
            mask = jnp.ones(ids.shape, bool) if mask is None else mask
            first = jnp.ones((rows, count), bool) if memory.mask is None else memory.mask
            mask = jnp.concatenate([first, mask], 1)
        x = jnp.concatenate([memory.x.astype(x.dtype), x], 1)
        return x, mask, jnp.broadcast_to(prefix, (rows, prefix.size)), count

    def _placeholders(self, ids: jax.Array) -> jax.Array:
        """[B, L] bool."""
        if self.image_id < 0:
            raise ConfigError("decode: the tokenizer has no <image> token. Expected one, or placed=False.")
        return ids == self.image_id
