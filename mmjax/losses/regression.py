"""Losses of one number a row."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.losses import SumWeight
from mmjax.losses.classification import masked_sum


def squared(predicted: jax.Array, wanted: jax.Array, valid: jax.Array) -> SumWeight:
    """(predicted - wanted)^2. All [B]."""
    return masked_sum(jnp.square(predicted.astype(jnp.float32) - wanted), valid)


def huber(predicted: jax.Array, wanted: jax.Array, valid: jax.Array, delta: float = 1.0) -> SumWeight:
    """e^2 / 2 up to delta, then delta (|e| - delta / 2) (Huber, 1964): a stray value pulls with delta at most."""
    error = jnp.abs(predicted.astype(jnp.float32) - wanted)
    return masked_sum(jnp.where(error <= delta, jnp.square(error) / 2, delta * (error - delta / 2)), valid)
