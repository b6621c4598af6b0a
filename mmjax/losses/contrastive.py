"""Contrastive losses of two towers: pictures [B, E] against texts [M, E]; a picture may have several texts (M = B * K).

Which pairs are right is a mask: in-batch duplicates (the same picture twice, "a dog runs" under two pictures) are
positives, not negatives. Under jit on a mesh the embeddings are global arrays, so negatives come from all devices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.losses import SumWeight


def positives_from_keys(
    image_key: jax.Array, text_image_row: jax.Array, text_key: jax.Array, text_valid: jax.Array | None = None
) -> jax.Array:
    """Which pairs of the batch are right: those that some row of the batch says, equal keys being one thing.

    So a text is a positive of its own picture, of the same picture in another row, and of each picture that has the
    same caption.

    Args:
      image_key: [B] int, equal iff the pictures are the same.
      text_image_row: [M] int, the row of the picture that the text belongs to.
      text_key: [M] int, equal iff the texts are the same.
      text_valid: [M] bool; a text that is padding says nothing about its picture.

    Returns:
      [B, M] bool.
    """
    rows, texts = image_key.shape[0], text_key.shape[0]
    text_valid = jnp.ones(texts, bool) if text_valid is None else text_valid
    # Equal keys -> equal small numbers (below B and M); a table [B, M] of what is said then replaces [B, M, K]
    # compares.
    _, image = jnp.unique(image_key, return_inverse=True, size=rows)
    _, text = jnp.unique(text_key, return_inverse=True, size=texts)
    said = jnp.zeros((rows, texts), bool).at[image[text_image_row], text].max(text_valid)
    return said[image][:, text]


def sigmoid_contrastive(
    image: jax.Array,
    text: jax.Array,
    *,
    scale: jax.Array,
    bias: jax.Array,
    positives: jax.Array,
    image_valid: jax.Array | None = None,
    text_valid: jax.Array | None = None,
    chunk: int = 0,
) -> SumWeight:
    """Pairwise sigmoid loss (Zhai et al., 2023, alg. 1): -log sigmoid(z (scale <i, t> + bias)), z = 1 if right else -1.

    Args:
      image, text: [B, E], [M, E], unit length.
      scale, bias: scalars; the scale itself, not its logarithm.
      positives: [B, M] bool.
      image_valid, text_valid: [B], [M] bool; pairs with an invalid side are left out.
      chunk: texts at a time, with the backward pass recomputing them: peak memory [B, chunk] logits; 0 is all at once.

    Returns:
      The sum over valid pairs, and the number of valid pictures (the paper's normaliser).
    """
    image_valid, text_valid = _all_if_none(image_valid, image), _all_if_none(text_valid, text)
    scale, bias = jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)

    def loss_of(text, positives, text_valid):
        logits = scale * _dots(image, text) + bias
        terms = jax.nn.softplus(jnp.where(positives, -logits, logits))
        return jnp.where(image_valid[:, None] & text_valid, terms, 0.0).sum(dtype=jnp.float32)

    weight = image_valid.sum(dtype=jnp.float32)
    if not chunk or chunk >= text.shape[0]:
        return loss_of(text, positives, text_valid), weight

    count = -(-text.shape[0] // chunk)
    extra = count * chunk - text.shape[0]
    texts = jnp.pad(text, ((0, extra), (0, 0))).reshape(count, chunk, -1)
    valid = jnp.pad(text_valid, (0, extra)).reshape(count, chunk)
    pairs = jnp.pad(positives, ((0, 0), (0, extra))).reshape(-1, count, chunk).swapaxes(0, 1)

    @jax.checkpoint
    def add_chunk(total, inputs):
        return total + loss_of(*inputs), None

    total, _ = jax.lax.scan(add_chunk, jnp.zeros((), jnp.float32), (texts, pairs, valid))
    return total, weight


def softmax_contrastive(
    image: jax.Array,
    text: jax.Array,
    *,
    scale: jax.Array,
    positives: jax.Array,
    image_valid: jax.Array | None = None,
    text_valid: jax.Array | None = None,
) -> SumWeight:
    """Symmetric InfoNCE (CLIP; Radford et al., 2021, fig. 3), the target being uniform over a row's right partners.

    That is L_out of Khosla et al. (2020, eq. 2), in both directions (UniCL; Yang et al., 2022, eq. 2-3). The mean over
    pictures and the mean over texts weigh one half each. Rows without a right partner are left out. Arguments as in
    `sigmoid_contrastive`.

    Returns:
      (weight * loss, weight); the weight is the number of pictures that have a right text.
    """
    image_valid, text_valid = _all_if_none(image_valid, image), _all_if_none(text_valid, text)
    logits = jnp.asarray(scale, jnp.float32) * _dots(image, text)
    valid = image_valid[:, None] & text_valid
    positives = positives & valid
    image_sum, images = _multi_positive(logits, positives, valid)
    text_sum, texts = _multi_positive(logits.T, positives.T, valid.T)
    return 0.5 * (image_sum + text_sum * images / jnp.maximum(texts, 1.0)), images


def _multi_positive(logits: jax.Array, positives: jax.Array, valid: jax.Array) -> SumWeight:
    """Cross-entropy of each row [N, M] to its positives, all alike: logsumexp minus the mean positive logit."""
    count = positives.sum(axis=-1)
    # Finite, not -inf: a row with nothing valid then makes no NaN on the way either, which jax_debug_nans would report.
    total = jax.nn.logsumexp(jnp.where(valid, logits, -1e30), axis=-1)
    wanted = jnp.where(positives, logits, 0.0).sum(axis=-1) / jnp.maximum(count, 1)
    return jnp.where(count > 0, total - wanted, 0.0).sum(), (count > 0).sum(dtype=jnp.float32)


def _dots(image: jax.Array, text: jax.Array) -> jax.Array:
    """[B, E], [M, E] -> [B, M] float32, at highest precision: a scale of 100 turns the 1e-3 of a TF32 dot into 0.1."""
    image, text = image.astype(jnp.float32), text.astype(jnp.float32)
    return jnp.matmul(image, text.T, precision=jax.lax.Precision.HIGHEST)


def _all_if_none(valid: jax.Array | None, rows: jax.Array) -> jax.Array:
    return jnp.ones(rows.shape[0], bool) if valid is None else valid
