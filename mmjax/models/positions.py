"""Where a token stands: counted, as fixed vectors, as rotations (RoPE), and as distances (T5's relative buckets)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.transformer_config import TransformerConfig


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


def sincos_1d(length: int, width: int) -> np.ndarray:
    """Fixed positions [L, D] float32: sin, then cos (Vaswani et al., 2017, 3.5)."""
    half = width // 2
    angles = np.arange(length)[:, None] * 10000.0 ** (-np.arange(half) / max(1, half - 1))
    return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)


def rope_frequencies(config: TransformerConfig) -> np.ndarray:
    """Angles a step [d / 2] float32 of rotary positions (Su et al., 2021), slowed down as `config.rope_scaling` says.

    "linear" (Chen et al., 2023): all by `rope_factor`. "llama3" (transformers, modeling_rope_utils.py): by that factor
    those that turn less than `rope_low_factor` times in `rope_length` tokens, by nothing those that turn more than
    `rope_high_factor` times, and a mixture between.
    """
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-np.arange(half, dtype=np.float64) / half)
    if config.rope_scaling == "linear":
        frequencies = frequencies / config.rope_factor
    elif config.rope_scaling == "llama3":
        turns = config.rope_length * frequencies / (2 * math.pi)
        low, high = config.rope_low_factor, config.rope_high_factor
        kept = np.clip((turns - low) / (high - low), 0, 1)
        frequencies = (kept + (1 - kept) / config.rope_factor) * frequencies
    return frequencies.astype(np.float32)


def rotate(x: jax.Array, positions: jax.Array, frequencies: np.ndarray) -> jax.Array:
    """Turns pairs of features by position times frequency, halves paired as in Llama. x: [B, N, H, d], d even;
    positions: [B, N]; frequencies: [d / 2].
    """
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def relative_bucket(distance: jax.Array, buckets: int, longest: int, causal: bool) -> jax.Array:
    """The bucket in [0, buckets) of each distance (key position - query position), int32 -> int32 (Raffel et al., 2020,
    2.1; transformers, modeling_t5.py).

    Half of the buckets are one distance each, the others grow by a constant factor up to `longest`; all beyond share
    the last. causal: keys after the query count as distance 0; else the upper half of the buckets is theirs.
    """
    if causal:
        upper, far = 0, jnp.maximum(0, -distance)
    else:
        buckets = buckets // 2
        upper, far = jnp.where(distance > 0, buckets, 0), jnp.abs(distance)
    exact = buckets // 2
    # A table of all distances, not a logarithm of each: float32 logarithms of devices differ at the edges of buckets.
    steps = np.arange(longest + 1)
    grown = np.log(np.maximum(steps, 1).astype(np.float32) / exact) / math.log(longest / exact) * (buckets - exact)
    of_step = np.where(steps < exact, steps, np.minimum(exact + grown.astype(np.int32), buckets - 1))
    return upper + jnp.take(jnp.asarray(of_step, jnp.int32), jnp.minimum(far, longest))
