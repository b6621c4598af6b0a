"""Writing text: generation with a cache in one `lax.while_loop`, and the likelihood of given texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.models.multimodal import Multimodal
from mmjax.models.transformer import Tokens


def generate(
    model: Multimodal,
    params: Mapping[str, Any],
    memory: Tokens | None = None,
    *,
    length: int,
    bos: int | None = None,
    eos: int | None = None,
    pad: int | None = None,
    prefix_ids: jax.Array | None = None,
    prefix_mask: jax.Array | None = None,
    prefix_full: bool = False,
    placed: bool = False,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    rng: jax.Array | None = None,
) -> jax.Array:
    """Token ids [B, length] int32 that follow the prompt: ... eos pad pad. Stops when all rows have their eos.

    Pure, to be jitted by the caller with everything but arrays static. bos, eos, pad: the model's where None.

    Args:
      memory: [Bm, N, D], Bm dividing B; read once.
      prefix_ids, prefix_mask: [B, P], the prompt, bos included; padding may stand anywhere. None: bos alone, a row a
        memory row.
      prefix_full: the prompt is read both ways (PaliGemma).
      placed: the prompt holds the `<image>` placeholders (see `Decoder`).
      temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature), which needs
        `rng`.
      top_k: draw among the k likeliest only; 0 is all.
      top_p: draw among the likeliest that together have this probability (Holtzman et al., 2020); 1 is all.
    """
    if temperature > 0 and rng is None:
        raise ValueError("generate: temperature > 0 needs rng.")
    if prefix_ids is None and memory is None:
        raise ValueError("generate: neither memory nor prefix_ids; the number of rows is unknown.")
    own = model.tokens
    bos, eos, pad = (own.bos if bos is None else bos, own.eos if eos is None else eos, own.pad if pad is None else pad)
    if prefix_ids is None:
        prefix_ids = jnp.full((memory.x.shape[0], 1), bos, jnp.int32)
    if prefix_mask is None:
        prefix_mask = jnp.ones(prefix_ids.shape, bool)
    rows, start = prefix_ids.shape
    variables = {"params": params}
    rng = jax.random.key(0) if rng is None else rng

    def pick(logits: jax.Array, done: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        token = next_token(logits, jax.random.fold_in(rng, step), temperature, top_k, top_p)
        token = jnp.where(done, pad, token)
        return token, done | (token == eos)

    in_front = None if placed else memory  # placeholders are slots of the prompt already
    cache = model.apply(variables, rows, start + length, in_front, method="start_cache")
    decoded = model.apply(
        variables,
        prefix_ids,
        prefix_mask,
        memory,
        cache=cache,
        prefix=prefix_mask if prefix_full else None,
        placed=placed,
        method="decode",
    )
    last = jnp.max(jnp.where(prefix_mask, jnp.arange(start), 0), axis=1)
    logits = jnp.take_along_axis(decoded.logits, last[:, None, None], axis=1)[:, 0]
    token, done = pick(logits, jnp.zeros(rows, bool), jnp.zeros((), jnp.int32))
    ids = jnp.full((rows, length), pad, jnp.int32).at[:, 0].set(token)

    def unfinished(state):
        step, _, done, _, _ = state
        return (step < length) & ~jnp.all(done)

    def write(state):
        step, token, done, ids, cache = state
        decoded = model.apply(variables, token[:, None], ~done[:, None], cache=cache, method="decode")
        token, done = pick(decoded.logits[:, 0], done, step)
        return step + 1, token, done, ids.at[:, step].set(token), decoded.cache

    return jax.lax.while_loop(unfinished, write, (jnp.ones((), jnp.int32), token, done, ids, decoded.cache))[3]


def next_token(
    logits: jax.Array, rng: jax.Array, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0
) -> jax.Array:
    """logits: [B, V] -> ids [B] int32; see `generate`."""
    if temperature <= 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    logits = logits / temperature
    if top_k or top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        if top_k:
            logits = jnp.where(logits < ordered[:, min(top_k, logits.shape[-1]) - 1, None], -jnp.inf, logits)
            ordered = jnp.where(jnp.arange(logits.shape[-1]) < top_k, ordered, -jnp.inf)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        # A token stays when those before it have less than top_p: the likeliest always does.
        stays = jnp.cumsum(probabilities, axis=-1) - probabilities < top_p
        least = jnp.min(jnp.where(stays, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(rng, logits).astype(jnp.int32)


def score(
    model: Multimodal,
    params: Mapping[str, Any],
    ids: jax.Array,
    mask: jax.Array,
    memory: Tokens | None = None,
    *,
    placed: bool = False,
) -> jax.Array:
    """Log-likelihood [B] float32 of each text given its first token and the memory: the sum of log p(ids[t] | ids[:t])
    over real tokens.

    ids: [B, L] int32, `bos tokens eos pad`; mask: [B, L] bool; memory: [Bm, N, D], Bm dividing B.
    """
    logits = model.apply({"params": params}, ids, mask, memory, placed=placed, method="decode").logits[:, :-1]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(mask[:, 1:], chosen, 0.0), axis=-1)
