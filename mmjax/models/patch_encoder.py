"""Pictures -> patch tokens: a vision transformer (Dosovitskiy et al., 2021) that reads any size and aspect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import choice
from mmjax.errors import ConfigError
from mmjax.models.block import Norm, Tokens, TransformerConfig
from mmjax.models.dense import Dense
from mmjax.models.heads import Pool
from mmjax.models.transformer import Transformer


@dataclass(frozen=True)
class PatchEncoderConfig(TransformerConfig):
    """The picture tower.

    Attributes:
      patch: side of a patch in pixels; both sides of the picture must be multiples of it.
      stem: "linear" (one projection a patch) or "conv" (3x3 convolutions of stride 2, then 1x1: Xiao et al., 2021).
      stem_bias: the patch projection has a bias (CLIP's has none).
      position: "learned" (a grid of the training size, resampled bilinearly for others) or "sincos" (2-D, fixed; MoCo
        v3).
      pool: "cls" (an extra token), "mean", or "attention" (MAP head, SigLIP).
      patch_dropout: share of patches that a training step leaves out (FLIP: Li et al., 2023).
    """

    patch: int = 16
    stem: str = choice("linear", "conv")
    stem_bias: bool = True
    position: str = choice("learned", "sincos")
    pool: str = choice("mean", "cls", "attention")
    patch_dropout: float = 0.0

    def check(self, where: str) -> None:
        super().check(where)
        if self.patch < 1 or (self.stem == "conv" and (self.patch < 2 or self.patch & (self.patch - 1))):
            raise ConfigError(
                f"{where}.patch: found {self.patch}, expected a power of two for stem 'conv', else 1 or more."
            )
        if self.position == "sincos" and self.sized(where).width % 4:
            raise ConfigError(
                f"{where}.width: position 'sincos' needs a multiple of 4, found {self.sized(where).width}."
            )
        if not 0 <= self.patch_dropout < 1:
            raise ConfigError(f"{where}.patch_dropout: found {self.patch_dropout}, expected a share in [0, 1).")


class PatchEncoder(nn.Module):
    """Pictures -> tokens in reading order (row by row, from the top left), and one vector a picture.

    Attributes:
      image_size: (height, width) in pixels that the learned grid of positions is made for.
      mean, std: of the pixels in [0, 1], a value a channel; from the processor. uint8 pictures are normalised with
        them.
    """

    config: PatchEncoderConfig
    image_size: tuple[int, int]
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: jax.Array, mask: jax.Array | None = None, *, train: bool = False
    ) -> tuple[Tokens, jax.Array]:
        """image: [B, H, W, 3], uint8, or float that is normalised already; mask: [B, N] bool, patches that are real.

        Returns tokens [B, N, D] (N = H/p * W/p, and one more in front with pool "cls") and the pooled vectors [B, D].
        """
        c = self.config.sized()
        grid = grid_of(image.shape[1:3], c.patch)
        if image.dtype == jnp.uint8:
            mean, std = (jnp.asarray(v, jnp.float32) * 255 for v in (self.mean, self.std))
            image = (image.astype(jnp.float32) - mean) / std
        image = image.astype(self.dtype)
        project = Dense(
            c.width,
            use_bias=c.stem_bias,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            kernel_axes=("patch", "embed"),
            bias_axes=("embed",),
            name="stem",
        )
        if c.stem == "conv":
            image = self._convolutions(image, c)
            x = project(image.reshape(image.shape[0], -1, image.shape[-1]))
        else:
            x = project(patchify(image, c.patch))
        x = x + self._positions(grid, c).astype(self.dtype)
        if train and c.patch_dropout:
            x, mask = self._drop_patches(x, mask, c.patch_dropout)
        if c.pool == "cls":
            boxed = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, None, "embed"))
            cls = self.param("cls", boxed, (1, 1, c.width)).astype(self.dtype)
            x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, c.width)), x], 1)
            mask = None if mask is None else jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        x, _ = Transformer(c, self.dtype, name="transformer")(x, mask=mask, train=train)
        tokens = Tokens(x, mask)
        how = "first" if c.pool == "cls" else c.pool
        return tokens, Pool(how, c, self.dtype, name="pool")(tokens)

    def _convolutions(self, image: jax.Array, c: PatchEncoderConfig) -> jax.Array:
        """[B, H, W, 3] -> [B, H/p, W/p, D]: log2(p) convolutions that halve the sides and double the channels to D."""
        layers = c.patch.bit_length() - 1
        init = nn.with_logical_partitioning(nn.initializers.he_normal(), (None, None, None, "embed"))
        for i in range(layers):
            features = max(8, c.width >> (layers - 1 - i))
            image = nn.Conv(
                features,
                (3, 3),
                2,
                ((1, 1), (1, 1)),
                use_bias=False,
                dtype=self.dtype,
                kernel_init=init,
                name=f"conv_{i}",
            )(image)
            # The paper has BatchNorm; a norm over channels keeps rows independent of each other.
            image = jax.nn.relu(Norm(c, self.dtype, name=f"conv_norm_{i}")(image))
        return image

    def _positions(self, grid: tuple[int, int], c: PatchEncoderConfig) -> jax.Array:
        """[1, N, D]."""
        if c.position == "sincos":
            return jnp.asarray(sincos_2d(grid, c.width))[None]
        made_for = grid_of(self.image_size, c.patch)
        boxed = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, None, "embed"))
        return resample(self.param("position", boxed, (*made_for, c.width)), grid).reshape(1, -1, c.width)

    def _drop_patches(self, x: jax.Array, mask: jax.Array | None, share: float) -> tuple[jax.Array, jax.Array | None]:
        """Keeps the same number of patches in each row, drawn at random; real ones before padding. Order is kept."""
        keep = max(1, round(x.shape[1] * (1 - share)))
        noise = jax.random.uniform(self.make_rng("dropout"), x.shape[:2])
        if mask is not None:
            noise = noise + ~mask
        rows = jnp.sort(jnp.argsort(noise, axis=1)[:, :keep], axis=1)
        x = jnp.take_along_axis(x, rows[..., None], 1)
        return x, None if mask is None else jnp.take_along_axis(mask, rows, 1)


def grid_of(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Patches down and across a picture of `size` = (height, width) pixels."""
    height, width = size
    if height % patch or width % patch or not height or not width:
        nearest = tuple(max(1, round(side / patch)) * patch for side in size)
        raise ConfigError(
            f"config.model.patch_encoder.patch: {patch} does not divide the picture size {height} x {width}. "
            f"Set config.processor.image.size to {nearest[0]} x {nearest[1]}, or another patch."
        )
    return height // patch, width // patch


def patchify(image: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] -> [B, H/p * W/p, p * p * C]: patches row by row, pixels of a patch row by row, channels last."""
    b, h, w, c = image.shape
    x = image.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, patch * patch * c)


def resample(table: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Learned positions [h, w, D] for another grid, bilinearly; the table itself where the grid is its own."""
    return table if table.shape[:2] == grid else jax.image.resize(table, (*grid, table.shape[-1]), "bilinear")


def sincos_2d(grid: tuple[int, int], width: int) -> np.ndarray:
    """Fixed 2-D positions [N, D] float32 (Chen et al., 2021, MoCo v3): sin and cos of the column, then of the row."""
    rows, columns = np.mgrid[: grid[0], : grid[1]]
    frequencies = 10000.0 ** (-np.arange(width // 4) / max(1, width // 4 - 1))
    x, y = (v.reshape(-1, 1) * frequencies for v in (columns, rows))
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], 1).astype(np.float32)
