"""A stack of the one block, unrolled or scanned, with or without a cache."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.block import POLICIES, Block, Norm, Tokens, TransformerConfig, same_row

__all__ = ["Cache", "Tokens", "Transformer", "TransformerConfig", "empty_cache"]


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
        train: bool = False,
    ) -> tuple[jax.Array, Cache | None]:
        """x: [B, N, D] -> ([B, N, D], the cache with x in it).

        mask: [B, N] bool, real tokens, or [B, N, N] bool, (query, key) pairs.
        segments: [B, N] int32, of packed rows (see `Tokens`). They read the memory's segment of their number, or all of
          a memory without segments. Not with a cache.
        causal: a token sees none after it, except those of prefix [B, N] bool, which all may see.
        positions: [B, N], turns on rotary positions. memory: Bm rows, Bm dividing B.
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

        block = Block(c, self.dtype, self.cross, self.cross_only, parent=None)
        layers = [self._layer(block, i) for i in range(c.depth)]
        rates = np.float32(c.drop_path) * np.arange(c.depth, dtype=np.float32) / np.float32(max(1, c.depth - 1))

        def apply_block(params, x, key, rate, past, shared):
            index, mask, positions, memory, memory_mask = shared
            return block.apply(
                {"params": params},
                x,
                mask=mask,
                positions=positions,
                memory=memory,
                past=past,
                index=index,
                memory_mask=memory_mask,
                drop_path=rate,
                train=train,
                rngs=None if key is None else {"dropout": key},
            )

        shared = (None if cache is None else cache.index, mask, positions, memory, memory_mask)
        if cache is not None:  # generation: a loop, for a scan would copy the whole cache at each token
            pasts = []
            for params, past in zip(layers, cache.layers, strict=True):
                x, kept = apply_block(params, x, None, 0.0, past, shared)
                pasts.append(kept)
            cache = cache._replace(layers=tuple(pasts), index=cache.index + x.shape[1])
        else:

            def step(x, layer):
                return apply_block(layer[0], x, *layer[1:], None, shared)[0]

            if c.remat != "none":
                step = jax.checkpoint(step, policy=POLICIES[c.remat], prevent_cse=not c.scan)
            if c.scan:
                stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
                keys = None if keys is None else jnp.stack(keys)
                x, _ = jax.lax.scan(lambda x, layer: (step(x, layer), None), x, (stacked, keys, rates))
            else:
                for i, layer in enumerate(layers):
                    x = step(x, (layer, None if keys is None else keys[i], rates[i]))
        if c.norm_first and not self.cross_only:
            x = Norm(c, self.dtype, name="final_norm")(x)
        return x, cache

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
