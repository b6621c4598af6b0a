"""Image-text matching: does this text belong to this picture? With negatives that the contrastive towers find hard."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.losses import SumWeight
from mmjax.losses.classification import masked_sum


class Negatives(NamedTuple):
    """A wrong text for each picture, a wrong picture for each text.

    Attributes:
      text: [B] int32, row of a text that is wrong for picture b.
      text_valid: [B] bool, False where the batch has no text to draw for that picture.
      image: [M] int32, row of a picture that is wrong for text m.
      image_valid: [M] bool, as `text_valid`.
    """

    text: jax.Array
    text_valid: jax.Array
    image: jax.Array
    image_valid: jax.Array


def hard_negatives(
    similarity: jax.Array, positives: jax.Array, rng: jax.Array, temperature: float | jax.Array = 1.0
) -> Negatives:
    """Draws negatives with probability softmax(similarity / temperature) (ALBEF; Li et al., 2021, sec. 3.2).

    The lower the temperature, the harder. No gradient flows into the similarity.

    Args:
      similarity: [B, M], of the two towers; -inf where either side is padding: such a pair is never drawn.
      positives: [B, M] bool, never drawn either.
      rng: a key.
      temperature: above 0.
    """
    allowed = ~positives & (similarity > -jnp.inf)
    logits = jax.lax.stop_gradient(similarity).astype(jnp.float32) / jax.lax.stop_gradient(temperature)
    logits = jnp.where(allowed, logits, -jnp.inf)
    text_rng, image_rng = jax.random.split(rng)
    return Negatives(
        text=jax.random.categorical(text_rng, logits, axis=1).astype(jnp.int32),
        text_valid=allowed.any(axis=1),
        image=jax.random.categorical(image_rng, logits.T, axis=1).astype(jnp.int32),
        image_valid=allowed.any(axis=0),
    )


def nearest_negatives(allowed: jax.Array) -> Negatives:
    """For each row the nearest one before it, around the end of the batch, that is allowed: no draw, no model.

    Args:
      allowed: [B, B] bool: picture b and text m are both there, and do not belong together.
    """
    rows = jnp.arange(len(allowed))
    back = jnp.where(allowed, (rows[:, None] - rows) % len(allowed), len(allowed))
    ahead = jnp.where(allowed, (rows - rows[:, None]) % len(allowed), len(allowed))
    return Negatives(
        text=jnp.argmin(back, axis=1).astype(jnp.int32),
        text_valid=allowed.any(axis=1),
        image=jnp.argmin(ahead, axis=0).astype(jnp.int32),
        image_valid=allowed.any(axis=0),
    )


def matching_loss(logits: jax.Array, labels: jax.Array, valid: jax.Array | None = None) -> SumWeight:
    """Cross-entropy of match (1) against no match (0). logits: [N], or [N, 2] (no match, match); labels, valid: [N]."""
    margin = match_margin(logits)
    valid = jnp.ones(margin.shape, bool) if valid is None else valid
    return masked_sum(jax.nn.softplus(jnp.where(labels > 0, -margin, margin)), valid)


def matching_accuracy(logits: jax.Array, labels: jax.Array, valid: jax.Array | None = None) -> SumWeight:
    """How many pairs are on the right side of even odds; arguments as in `matching_loss`."""
    margin = match_margin(logits)
    valid = jnp.ones(margin.shape, bool) if valid is None else valid
    return masked_sum(((margin > 0) == (labels > 0)).astype(jnp.float32), valid)


def match_margin(logits: jax.Array) -> jax.Array:
    """Log odds of a match, [N] float32: a softmax over two logits is a sigmoid of their difference."""
    logits = logits.astype(jnp.float32)
    return logits[:, 1] - logits[:, 0] if logits.ndim == 2 else logits
