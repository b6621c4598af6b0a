"""Beam search: which texts go on and which are finished. The decoder is run by `mmjax/decoding.py`.

Texts, scores and the moment to stop are those of Hugging Face's `generate` (transformers 5), whose heuristics are kept:
a model imported from there writes the same tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

_LOW = jnp.float32(-1e9)


class Beams(NamedTuple):
    """K beams for each of B rows, L tokens long at most.

    Attributes:
      ids, score: [B, K, L] int32, [B, K] float32: texts that go on, and their log-probabilities.
      best_ids, best_score: the same of the finished texts, log-probability / length ** length_penalty, best first.
      finished: [B, K] bool, whether a place among the finished is taken.
      open: [B] bool, whether the row may still find a better text.
    """

    ids: jax.Array
    score: jax.Array
    best_ids: jax.Array
    best_score: jax.Array
    finished: jax.Array
    open: jax.Array


def start(rows: int, beams: int, length: int, pad: int) -> Beams:
    """Beams before the first token. Only the first of a row counts: the others hold the same text."""
    ids = jnp.full((rows, beams, length), pad, jnp.int32)
    score = jnp.zeros((rows, beams), jnp.float32).at[:, 1:].set(_LOW)
    none = jnp.zeros((rows, beams), bool)
    return Beams(ids, score, ids, jnp.full((rows, beams), _LOW), none, jnp.ones(rows, bool))


def extend(
    beams: Beams, log_probs: jax.Array, step: jax.Array, *, eos: int, length_penalty: float, early_stopping: bool
) -> tuple[Beams, jax.Array]:
    """Beams with one token more, and the beam [B, K] that each of them continues.

    log_probs: [B, K, V] of the next token, after penalties. step: how many tokens the texts have; the last one that
    fits ends every text.
    """
    count, vocab_size, length = beams.ids.shape[1], log_probs.shape[-1], beams.ids.shape[2]
    total = (beams.score[..., None] + log_probs).reshape(len(beams.ids), -1)
    # Twice as many as there are beams: should K of them end, K are left to go on.
    score, place = jax.lax.top_k(total, 2 * count)
    parent, token = place // vocab_size, (place % vocab_size).astype(jnp.int32)
    ids = _take(beams.ids, parent).at[:, :, step].set(token)
    ends = (token == eos) | (step == length - 1)

    going, kept = jax.lax.top_k(score + ends * _LOW, count)
    # Only the K best may finish; the others are there to go on in their place.
    ended = ends & (jnp.arange(2 * count) < count)
    full = early_stopping & jnp.all(beams.finished, 1, keepdims=True)
    final = score / (step + 1.0) ** length_penalty
    final = final + (full | ~beams.open[:, None]) * _LOW + ~ended * _LOW
    merged = jnp.concatenate([beams.best_score, final], 1)
    best_score, best = jax.lax.top_k(merged, count)
    finished = _take(jnp.concatenate([beams.finished, ended], 1), best)
    worst = jnp.where(finished, jnp.min(best_score, 1, keepdims=True), _LOW)
    may_improve = jnp.any(going[:, :1] / (step + 1.0) ** length_penalty > worst, 1)
    extended = Beams(
        _take(ids, kept),
        going,
        _take(jnp.concatenate([beams.best_ids, ids], 1), best),
        best_score,
        finished,
        beams.open & may_improve,
    )
    return extended, _take(parent, kept)


def unfinished(beams: Beams, *, early_stopping: bool) -> jax.Array:
    """Whether some row may still change. With early_stopping a row is done when K of its texts are finished."""
    return jnp.any(beams.open) & ~(early_stopping & jnp.all(beams.finished))


def _take(array: jax.Array, index: jax.Array) -> jax.Array:
    """[B, N, ...] at [B, M] -> [B, M, ...]."""
    return jnp.take_along_axis(array, index.reshape(*index.shape, *[1] * (array.ndim - 2)), 1)
