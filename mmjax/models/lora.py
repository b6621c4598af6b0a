"""LoRA (Hu et al., 2021): a dense kernel W [D, F] plus alpha / rank * A B, with A [D, rank] and B [rank, F].

The factors are siblings of the kernel in the flat tree ("x/query/kernel" has "x/query/lora_a" and "x/query/lora_b") and
are merged into it inside the step, so that no module knows of them: whatever reads a kernel (one layer, fused
projections, a scanned stack, a tied one) reads the merged one. B is zero at the start, so that W is unchanged exactly.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import ConfigError

_KERNEL, _A, _B = "/kernel", "/lora_a", "/lora_b"


@dataclasses.dataclass(frozen=True)
class AdaptConfig:
    """Attributes:
    lora: patterns of dense kernels (of a whole tower: all of its dense kernels). With any, what is trained are the
      factors and what `optimizer.train` names.
    rank, alpha: the size of the factors, and alpha / rank their scale.
    """

    lora: tuple[str, ...] = ()
    rank: int = 8
    alpha: float = 16.0

    def check(self, where: str) -> None:
        if self.rank < 1:
            raise ConfigError(f"{where}.rank: found {self.rank}, expected 1 or more.")
        if self.alpha <= 0:
            raise ConfigError(f"{where}.alpha: found {self.alpha}, expected more than 0.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def is_factor(name: str) -> bool:
    """Whether a flat name is a factor's."""
    return name.endswith((_A, _B))


def kernel_of(name: str) -> str:
    """The kernel's name, of a factor's."""
    return name.rpartition("/")[0] + _KERNEL


def factors_of(name: str) -> tuple[str, str]:
    """The names of A and B, of a kernel's."""
    stem = name.removesuffix(_KERNEL)
    return stem + _A, stem + _B


def dense_kernels(shapes: Mapping[str, Any]) -> list[str]:
    """Flat names of the kernels [D, F]."""
    return [n for n, leaf in shapes.items() if n.endswith(_KERNEL) and len(leaf.shape) == 2]


def boxed_factors(boxed: Mapping[str, Any], kernels: set[str], rank: int) -> dict[str, Any]:
    """Abstract factors of the named kernels, boxed with the kernel's own axis names: A lies as its rows, B as its
    columns. boxed: {flat name: abstract parameter, boxed}.
    """
    made = {}
    for name in sorted(kernels):
        leaf = boxed[name]
        rows, columns = leaf.names if hasattr(leaf, "names") else (None, None)
        shape = nn.meta.unbox(leaf)
        a, b = factors_of(name)
        made[a] = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((shape.shape[0], rank), shape.dtype), (rows, None))
        made[b] = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((rank, shape.shape[1]), shape.dtype), (None, columns))
    return made


def initial_factors(key: jax.Array, shapes: Mapping[str, Any]) -> dict[str, jax.Array]:
    """A ~ N(0, 1 / D), B = 0. A factor's numbers depend on the key and its name alone. shapes: of the factors."""
    made = {}
    for name, shape in shapes.items():
        if name.endswith(_B):
            made[name] = jnp.zeros(shape.shape, shape.dtype)
        else:
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))
            made[name] = jax.random.normal(own, shape.shape, shape.dtype) * shape.shape[0] ** -0.5
    return made


def merge(params: Mapping[str, jax.Array], scale: float | None) -> dict[str, jax.Array]:
    """Flat parameters with factors -> without: each W becomes W + scale * A B, in full float32 precision.

    scale: None only where there are no factors.
    """
    merged = {n: x for n, x in params.items() if not is_factor(n)}
    for name, a in params.items():
        if name.endswith(_A):
            kernel = kernel_of(name)
            product = jnp.matmul(a, params[factors_of(kernel)[1]], precision=jax.lax.Precision.HIGHEST)
            merged[kernel] = merged[kernel] + scale * product
    return merged
