"""A stack of the one block, unrolled or scanned, with or without a cache."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.block import Block
from mmjax.models.norm import Norm
from mmjax.models.positions import positions_of, relative_bucket
from mmjax.models.tokens import Tokens, same_row
from mmjax.models.transformer_config import POLICIES, TransformerConfig


class Cache(NamedTuple):
    """What generation keeps between steps, for T slots.

    Attributes:
      layers: a dict a layer: k, v [B, kv_heads, T, head_dim]; with memory, memory_k and memory_v [Bm, kv_heads, M,
        head_dim] too.
      valid: [B, T] bool, slots that hold a real token.
      index: int32 scalar, the first free slot.
      memory_mask: [Bm, M] bool or None.
    """

    layers: tuple[dict[str, jax.Array], ...]
    valid: jax.Array
    index: jax.Array
    memory_mask: jax.Array | None = None


class Stacked(NamedTuple):
    """x: [B, N, D] after the whole stack; cache: with x in it, None without one; early: [B, N, D] after the layers that
    come before the last `tap`, and before the final norm.
    """

    x: jax.Array
    cache: Cache | None
    early: jax.Array


class Transformer(nn.Module):
    """A stack of blocks. Parameters are one sub-tree a layer (`block_00`, ...); scan is only how a step runs.

    Attributes:
      config: with its sizes filled in (`config.sized()`).
      memory_width: last dimension of the memory that `cross` reads; 0 is the stack's own width.
    """

    config: TransformerConfig
    dtype: Any = jnp.float32
    cross: str = "none"
    cross_only: bool = False
    memory_width: int = 0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        segments: jax.Array | None = None,
        causal: bool = False,
        prefix: jax.Array | None = None,
        positions: jax.Array | None = None,
        memory: Tokens | None = None,
        cache: Cache | None = None,
        tap: int = 0,
        train: bool = False,
    ) -> Stacked:
        """x: [B, N, D] -> `Stacked`.

        mask: [B, N] bool, real tokens, or [B, N, N] bool, (query, key) pairs.
        segments: [B, N] int32, of packed rows (see `Tokens`). They read the memory's segment of their number, or all of
          a memory without segments. Not with a cache.
        causal: a token sees none after it, except those of prefix [B, N] bool, which all may see.
        positions: [B, N], which must count real tokens where a cache is used; None does so.
        memory: Bm rows, Bm dividing B.
        cache: attention is causal over its slots; without `memory`, the memory of an earlier step is read again.
        """
        c = self.config
        x = x.astype(self.dtype)
        if c.norm_input:
            x = Norm(c, self.dtype, name="input_norm")(x)
        keys = None
        if train and (c.dropout or c.drop_path):
            # One key for the whole stack, split by layer: a loop and a scan draw the same numbers.
            first, *keys = jax.random.split(self.make_rng("dropout"), c.depth + 1)
            if c.dropout:
                x = nn.Dropout(c.dropout, deterministic=False)(x, rng=first)
        x = nn.with_logical_constraint(x, ("batch", "length", "act_embed"))
        if segments is not None and cache is not None:
            raise ValueError("transformer: a cache holds rows that are not packed; found segments.")
        if memory is not None:
            seen = memory.mask
            if memory.segments is not None:
                if segments is None:
                    raise ValueError(
                        "transformer: the memory is packed; expected the segments of the rows that read it."
                    )
                seen = same_row(segments, memory.segments)
            memory = Tokens(memory.x.astype(self.dtype), seen)
        if positions is None:
            start = 0 if cache is None else jnp.sum(cache.valid, 1, keepdims=True, dtype=jnp.int32)
            real = None if mask is None or mask.ndim == 3 else mask
            positions = positions_of(x.shape[:2], real, start, segments)
        memory_mask = None
        if cache is not None:
            mask, cache = _attend_to_slots(cache, mask, prefix, x.shape[:2])
            cache = cache if memory is None else cache._replace(memory_mask=memory.mask)
            memory_mask = cache.memory_mask
        else:
            mask = None if mask is None else mask if mask.ndim == 3 else mask[:, None]
            if segments is not None:
                own = same_row(segments, segments)
                mask = own if mask is None else own & mask
            if causal:
                order = jnp.arange(x.shape[1])
                seen = order[:, None] >= order
                seen = seen[None] if prefix is None else seen | prefix[:, None]
                mask = seen if mask is None else seen & mask

        bias = near = None
        if c.position == "relative" or c.window:
            slots = positions if cache is None else positions_of(cache.valid.shape, cache.valid)
            distance = slots[:, None] - positions[:, :, None]
            if c.position == "relative":
                bias = self._relative_bias(distance, causal or cache is not None)
            if c.window:
                near = jnp.abs(distance) < c.window

        block = Block(c, self.dtype, self.cross, self.cross_only, parent=None)
        layers = [self._layer(block, i) for i in range(c.depth)]
        rates = np.float32(c.drop_path) * np.arange(c.depth, dtype=np.float32) / np.float32(max(1, c.depth - 1))

        narrow = np.arange(c.depth) % 2 == 0  # layers with a window

        def apply_block(x, params, key, rate, narrow, past):
            seen = mask
            if near is not None:
                seen = near | ~narrow if mask is None else mask & (near | ~narrow)
            return block.apply(
                {"params": params},
                x,
                mask=seen,
                bias=bias,
                positions=positions if c.position == "rope" else None,
                memory=memory,
                past=past,
                index=None if cache is None else cache.index,
                memory_mask=memory_mask,
                drop_path=rate,
                train=train,
                rngs=None if key is None else {"dropout": key},
            )

        def through(x, start, stop):
            """The layers from start to stop."""

            def step(x, layer):
                return apply_block(x, *layer, None)[0]

            if c.remat != "none":
                step = jax.checkpoint(step, policy=POLICIES[c.remat], prevent_cse=not c.scan)
            each = [(layers[i], keys and keys[i], rates[i], narrow[i]) for i in range(start, stop)]
            if not c.scan or not each:
                return functools.reduce(step, each, x)
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
            return jax.lax.scan(lambda x, layer: (step(x, layer), None), x, stacked)[0]

        if cache is not None:  # generation: a loop, for a scan would copy the whole cache at each token
            pasts = []
            for i, past in enumerate(cache.layers):
                x, kept = apply_block(x, layers[i], None, 0.0, narrow[i], past)
                pasts.append(kept)
            early, new = x, cache._replace(layers=tuple(pasts), index=cache.index + x.shape[1])
        else:
            early = through(x, 0, c.depth - tap)
            x, new = through(early, c.depth - tap, c.depth), None
        if c.norm_first and c.final_norm and not self.cross_only:
            x = Norm(c, self.dtype, name="final_norm")(x)
        return Stacked(x, new, early)

    def _relative_bias(self, distance: jax.Array, causal: bool) -> jax.Array:
        """Of distances [B, N, M] -> [B, H, N, M] float32."""
        c = self.config
        boxed = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, None))
        table = self.param("relative_bias", boxed, (c.relative_buckets, c.heads))
        rows = relative_bucket(distance, c.relative_buckets, c.relative_distance, causal)
        return jnp.moveaxis(jnp.take(table, rows, axis=0), -1, 1)

    def _layer(self, block: Block, i: int) -> Any:
        """Parameters of layer i, without their boxes. Only `init` traces the block to make them."""
        name = f"block_{i:02d}"
        if not self.is_initializing():
            if not self.has_variable("params", name):
                raise flax.errors.ScopeParamNotFoundError(name, "/".join(self.path))
            return nn.unbox(self.get_variable("params", name))

        def make(key: jax.Array) -> Any:
            # Parameters do not depend on the length: two tokens are enough.
            x = jnp.zeros((1, 2, self.config.width), self.dtype)
            memory = Tokens(jnp.zeros((1, 2, self.memory_width or self.config.width), self.dtype))
            return block.init(key, x, memory=None if self.cross == "none" else memory)["params"]

        return self.param(name, make)


def empty_cache(config: TransformerConfig, batch: int, slots: int, dtype: Any) -> Cache:
    """A cache of `slots` free slots for `batch` rows of a stack of `config`."""
    shape = (batch, config.kv_heads, slots, config.head_dim)
    layers = tuple({"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)} for _ in range(config.depth))
    return Cache(layers, jnp.zeros((batch, slots), bool), jnp.zeros((), jnp.int32))


def _attend_to_slots(
    cache: Cache, mask: jax.Array | None, prefix: jax.Array | None, shape: tuple[int, int]
) -> tuple[jax.Array, Cache]:
    """Which of the T slots each of N new tokens sees, [B, N, T], and the cache with the new tokens marked as real."""
    mask = jnp.ones(shape, bool) if mask is None else mask
    valid = jax.lax.dynamic_update_slice(cache.valid, mask, (0, cache.index))
    seen = (cache.index + jnp.arange(shape[1])[:, None] >= jnp.arange(valid.shape[1]))[None]
    if prefix is not None:
        seen = seen | jax.lax.dynamic_update_slice(jnp.zeros_like(valid), prefix, (0, cache.index))[:, None]
    return seen & valid[:, None], cache._replace(valid=valid)
