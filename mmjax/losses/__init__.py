"""Losses: pure functions of arrays. Each returns `(sum, weight)`, two float32 scalars; the loss is sum / weight.

Sums and weights add up over microbatches, hosts and evaluation batches, so that nothing is ever a mean of means.
Rows that a mask leaves out change neither the value nor a gradient. Arrays are global: under jit on a mesh the compiler
places them.
"""

import jax

SumWeight = tuple[jax.Array, jax.Array]
