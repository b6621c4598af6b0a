"""Language model losses: each position predicts the next token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.losses import SumWeight
from mmjax.losses.classification import cross_entropy_terms, masked_sum


def next_token_loss(logits: jax.Array, ids: jax.Array, mask: jax.Array, *, label_smoothing: float = 0.0) -> SumWeight:
    """-log p(ids[:, t + 1] | what came before), summed over the tokens that are to be predicted.

    Args:
      logits: [B, L, V]; those at position t predict token t + 1, those at the last position are not used.
      ids: [B, L] int, `bos tokens eos pad`.
      mask: [B, L] bool, True where the token counts as a target; position 0 is never a target.
      label_smoothing: share of the target's probability that is spread over all V tokens.
    """
    return masked_sum(cross_entropy_terms(logits[:, :-1], ids[:, 1:], label_smoothing), mask[:, 1:])


def token_accuracy(logits: jax.Array, ids: jax.Array, mask: jax.Array) -> SumWeight:
    """How many targets are the most likely token, given the true ones before; arguments as in `next_token_loss`."""
    return masked_sum((logits[:, :-1].argmax(axis=-1) == ids[:, 1:]).astype(jnp.float32), mask[:, 1:])


def foreseen(logits: jax.Array, ids: jax.Array, mask: jax.Array, rows: int) -> dict[str, jax.Array]:
    """What `evaluators.language.NextToken` reads: nll (nats) and hits [rows], summed over each row's targets.

    logits, ids, mask: as in `next_token_loss`, of rows * K texts, those of a row side by side.
    """
    targets, counts = ids[:, 1:], mask[:, 1:]
    nll = jnp.sum(jnp.where(counts, cross_entropy_terms(logits[:, :-1], targets), 0.0), 1)
    hits = jnp.sum(counts & (jnp.argmax(logits[:, :-1], -1) == targets), 1)
    return {"nll": nll.reshape(rows, -1).sum(1), "hits": hits.reshape(rows, -1).sum(1)}


def next_token_loss_chunked(
    hidden: jax.Array,
    embedding: jax.Array,
    ids: jax.Array,
    mask: jax.Array,
    chunk: int,
    *,
    label_smoothing: float = 0.0,
) -> SumWeight:
    """`next_token_loss` of logits hidden @ embedding.T that never exist whole: [B, chunk, V] at a time, not [B, L, V].

    Each chunk of positions is recomputed in the backward pass. The batch axis is not cut, so its sharding stays.

    Args:
      hidden: [B, L, D], the decoder's output before its language model head.
      embedding: [V, D], the output embedding (the transposed head kernel).
      ids, mask, label_smoothing: as in `next_token_loss`.
      chunk: positions at a time.
    """
    positions = ids.shape[1] - 1
    count = -(-positions // chunk)

    def split(array):  # [B, L - 1, ...] -> [count, B, chunk, ...]
        padding = [(0, 0), (0, count * chunk - positions)] + [(0, 0)] * (array.ndim - 2)
        array = jnp.pad(array, padding)
        return jnp.moveaxis(array.reshape(array.shape[0], count, chunk, *array.shape[2:]), 1, 0)

    @jax.checkpoint
    def add_chunk(totals, inputs):
        states, targets, valid = inputs
        # The cast is inside: the embedding's gradient then adds up over the chunks in its own precision, not in bf16.
        kernel = embedding.astype(states.dtype)
        logits = jnp.einsum("bcd,vd->bcv", states, kernel, preferred_element_type=jnp.float32)
        loss, weight = masked_sum(cross_entropy_terms(logits, targets, label_smoothing), valid)
        return (totals[0] + loss, totals[1] + weight), None

    start = (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
    totals, _ = jax.lax.scan(add_chunk, start, (split(hidden[:, :-1]), split(ids[:, 1:]), split(mask[:, 1:])))
    return totals
