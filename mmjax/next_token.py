"""From the logits of a step to the token that is written: penalties, bans, filters, draws.

In the order and with the meaning of Hugging Face's logits processors, so that the same settings give the same text.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.generation_config import GenerationConfig


def adjusted(
    scores: jax.Array, text: jax.Array, written: jax.Array, new: jax.Array, config: GenerationConfig, eos: int
) -> jax.Array:
    """Logits or log-probabilities [R, V] after the repetition penalty and the bans of repeated n-grams and early ends.

    text: [R, T] int32, prompt and what was written; a slot that holds no token has an id of V or more. Its first
    `written` slots are filled, `new` of them by this generation.
    """
    if config.repetition_penalty != 1.0:
        rows = jnp.arange(len(scores))[:, None]
        seen = jnp.zeros(scores.shape, bool).at[rows, text].set(True, mode="drop")
        # Keskar et al., 2019, sec. 4.1; a negative score is multiplied, so that a penalty always lowers it.
        penalised = jnp.where(scores < 0, scores * config.repetition_penalty, scores / config.repetition_penalty)
        scores = jnp.where(seen, penalised, scores)
    if config.no_repeat_ngram:
        scores = jnp.where(_repeats(text, written, config.no_repeat_ngram, scores.shape[1]), -jnp.inf, scores)
    if config.min_length:
        ends = jnp.arange(scores.shape[1]) == eos
        scores = jnp.where(ends & (new < config.min_length), -jnp.inf, scores)
    return scores


def _repeats(text: jax.Array, written: jax.Array, n: int, vocab_size: int) -> jax.Array:
    """[R, V] bool: tokens that would complete an n-gram that the text has already (Paulus et al., 2018, sec. 2.5)."""
    rows, length = text.shape
    if length < n:
        return jnp.zeros((rows, vocab_size), bool)
    starts = jnp.arange(length - n + 1)
    windows = jnp.stack([text[:, i : i + len(starts)] for i in range(n)], -1)  # [R, S, n]
    tail = jax.lax.dynamic_slice(text, (0, jnp.maximum(written - (n - 1), 0)), (rows, n - 1)) if n > 1 else text[:, :0]
    same = jnp.all(windows[..., :-1] == tail[:, None], -1) & (starts + n <= written) & jnp.all(windows < vocab_size, -1)
    banned = jnp.where(same, windows[..., -1], vocab_size)
    return jnp.zeros((rows, vocab_size), bool).at[jnp.arange(rows)[:, None], banned].set(True, mode="drop")


def filtered(logits: jax.Array, config: GenerationConfig) -> jax.Array:
    """Logits [R, V] of the distribution that is drawn from: temperature, then top-k, then top-p; -inf is left out."""
    logits = logits / config.temperature
    if 0 < config.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, config.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if config.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        # A token stays when those before it have less than top_p: the likeliest always does (Holtzman et al., 2020).
        stays = jnp.cumsum(probabilities, axis=-1) - probabilities < config.top_p
        least = jnp.min(jnp.where(stays, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def choose(logits: jax.Array, keys: jax.Array | None, config: GenerationConfig) -> jax.Array:
    """logits [R, V] -> ids [R] int32: the likeliest, or drawn with a key a row [R] from `filtered`."""
    if config.temperature <= 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, filtered(logits, config)).astype(jnp.int32)
