"""Classification losses: one label of C (softmax), or any number of C (sigmoid)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mmjax.losses import SumWeight


def cross_entropy_terms(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """-sum_c q_c log softmax(logits)_c with q = (1 - s) onehot + s / C (Szegedy et al., 2016, sec. 7).

    Written as logsumexp minus picked logits: no one-hot array. A label out of range gives a number without meaning: the
    caller masks it. logits: [..., C]; labels: [...] int; returns [...] float32.
    """
    logits = logits.astype(jnp.float32)
    index = jnp.clip(labels, 0, logits.shape[-1] - 1)[..., None]
    wanted = jnp.take_along_axis(logits, index, axis=-1)[..., 0]
    if label_smoothing:
        wanted = (1.0 - label_smoothing) * wanted + label_smoothing * logits.mean(axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - wanted


def masked_sum(terms: jax.Array, valid: jax.Array) -> SumWeight:
    """Sum of the terms [...] where valid [...], and how many those are."""
    return jnp.where(valid, terms, 0.0).sum(dtype=jnp.float32), valid.sum(dtype=jnp.float32)


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    valid: jax.Array | None = None,
    *,
    label_smoothing: float = 0.0,
    weights: jax.Array | None = None,
) -> SumWeight:
    """Cross-entropy of one label of C. logits: [B, C]; labels: [B] int, below 0 is ignored; valid: [B] bool.

    weights: [B], how much a row counts, in the sum and in the weight; None is 1 for each.
    """
    terms, counted = cross_entropy_terms(logits, labels, label_smoothing), _labelled(labels, valid)
    if weights is None:
        return masked_sum(terms, counted)
    return masked_sum(weights * terms, counted)[0], masked_sum(weights, counted)[0]


def balanced(counts: Sequence[int]) -> tuple[float, ...]:
    """Class weights N / (C * n_c) of class counts n_c, as scikit-learn's "balanced"; 0 for a class without rows."""
    present, total = sum(n > 0 for n in counts), sum(counts)
    return tuple(total / (present * n) if n else 0.0 for n in counts)


def mixed(x: jax.Array, shares: jax.Array) -> jax.Array:
    """Mixup (Zhang et al., 2018): each row with the one before it. x: [B, ...]; shares: [B], of a row's own part."""
    shares = shares.reshape(-1, *[1] * (x.ndim - 1))
    return shares * x + (1.0 - shares) * jnp.roll(x, 1, axis=0)


def accuracy(logits: jax.Array, labels: jax.Array, valid: jax.Array | None = None) -> SumWeight:
    """How many rows have their label on top; arguments as in `cross_entropy`."""
    return masked_sum((logits.argmax(axis=-1) == labels).astype(jnp.float32), _labelled(labels, valid))


def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array, valid: jax.Array | None = None) -> SumWeight:
    """C yes-or-no questions a row. The sum is over rows and classes, the weight counts rows.

    logits: [B, C]; targets: [B, C], 0, 1 or a soft score between (VQA; Teney et al., 2018, sec. 3.6); valid: [B] bool.
    """
    valid = jnp.ones(logits.shape[:1], bool) if valid is None else valid
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    # softplus(x) - t x = -t log sigmoid(x) - (1 - t) log sigmoid(-x), and never overflows
    return masked_sum((jax.nn.softplus(logits) - targets * logits).sum(axis=-1), valid)


def _labelled(labels: jax.Array, valid: jax.Array | None) -> jax.Array:
    return labels >= 0 if valid is None else valid & (labels >= 0)
