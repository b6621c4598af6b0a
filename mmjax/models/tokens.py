"""A batch of sequences, and which of their tokens belong together."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Tokens(NamedTuple):
    """A sequence. x: [B, N, D]; mask: [B, N] bool, True where a token is real, or None where all are.

    segments: [B, N] int32 where several rows are packed into one: 1, 2, ... for their tokens, 0 for padding. Rows that
    are packed together do not see each other.
    """

    x: jax.Array
    mask: jax.Array | None = None
    segments: jax.Array | None = None

    def side_by_side(self, owner: jax.Array) -> Tokens:
        """Tokens [B * S, N, D] of pictures, each a row -> [B, S * N, D], a memory for packed rows.

        owner: [B, S] int32, the segment that reads picture s of each sequence, 0 where there is no such picture.
        """
        rows = owner.shape[0]
        segments = jnp.repeat(owner, self.x.shape[1], axis=1)
        if self.mask is not None:
            segments = jnp.where(self.mask.reshape(rows, -1), segments, 0)
        return Tokens(self.x.reshape(rows, -1, self.x.shape[-1]), segments > 0, segments)


def same_row(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Segments [B, N] and [B, M] -> [B, N, M] bool: a token reads those of its own segment, and nobody padding."""
    return (queries[:, :, None] == keys[:, None]) & (keys > 0)[:, None]
