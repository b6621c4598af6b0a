"""Pictures -> patch tokens: a vision transformer (Dosovitskiy et al., 2021) that reads any size and aspect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import choice, share
from mmjax.errors import ConfigError
from mmjax.models.dense import Dense
from mmjax.models.heads import POOLERS, Pool, pooler
from mmjax.models.norm import Norm
from mmjax.models.positions import sincos_1d
from mmjax.models.tokens import Tokens
from mmjax.models.transformer import Transformer
from mmjax.models.transformer_config import TransformerConfig


@dataclass(frozen=True)
class PatchEncoderConfig(TransformerConfig):
    """The picture tower.

    Attributes:
      patch: side of a patch in pixels; both sides of the picture must be multiples of it.
      cut_rim: or else the pixels at the bottom and right that fill no patch are left out (SigLIP So400m/14 at 384).
      stem: "linear" (one projection a patch) or "conv" (3x3 convolutions of stride 2, then 1x1: Xiao et al., 2021).
      stem_bias: the patch projection has a bias (CLIP's has none).
      position: "learned" (a grid of the training size, resampled bilinearly for others; it begins as "sincos") or
        "sincos" (2-D, fixed; MoCo v3).
      pool: "cls" (an extra token), "mean", "attention" (MAP head, SigLIP), or "none": only tokens are wanted.
      pooler: what becomes of the pooled vector: nothing, or "tanh" of a dense layer (ViT without a classifier).
      cls_position: the extra token has a learned position of its own (ViT, CLIP, DINOv2).
      tokens_cls: the extra token is among the tokens that others read.
      tokens_layer: those tokens are taken this many layers before the end, without the final norm (LLaVA: 1).
      patch_dropout: share of patches that a training step leaves out (FLIP: Li et al., 2023).
    """

    patch: int = 16
    cut_rim: bool = False
    stem: str = choice("linear", "conv")
    stem_bias: bool = True
    position: str = choice("learned", "sincos")
    pool: str = choice("mean", "cls", "attention", "none")
    pooler: str = choice(*POOLERS)
    cls_position: bool = False
    tokens_cls: bool = True
    tokens_layer: int = 0
    patch_dropout: float = share()

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
        if self.pool != "cls" and (self.cls_position or not self.tokens_cls):
            raise ConfigError(
                f"{where}.pool: found '{self.pool}', but cls_position or tokens_cls speak of an extra token. Expected "
                f"'cls', or neither of them."
            )
        if self.pool == "none" and self.pooler != "none":
            raise ConfigError(f"{where}.pooler: found '{self.pooler}' with pool 'none'. Expected 'none', or a pool.")
        if not 0 <= self.tokens_layer <= self.sized(where).depth:
            raise ConfigError(
                f"{where}.tokens_layer: found {self.tokens_layer}, expected 0 to the depth {self.sized(where).depth}."
            )


class Patches(NamedTuple):
    """Pictures in their own aspect, as sequences of N patches (NaViT: Dehghani et al., 2023; SigLIP 2's NaFlex).

    Attributes:
      values: [B, N, p * p * 3], as `patchify` cuts them, then padding; uint8, or float that is normalised already.
      grid: [B, 2] int32, rows and columns of each picture; 0 where there is none.
    """

    values: jax.Array
    grid: jax.Array

    @property
    def mask(self) -> jax.Array:
        """[B, N] bool, real patches."""
        return jnp.arange(self.values.shape[1]) < self.grid[:, :1] * self.grid[:, 1:]

    @property
    def positions(self) -> tuple[jax.Array, jax.Array]:
        """Row and column of each patch in its picture's grid, each [B, N] int32; anything for padding."""
        return jnp.divmod(jnp.arange(self.values.shape[1]), jnp.maximum(1, self.grid[:, 1:]))


def normalise(pixels: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """[..., 3] uint8 -> float32 with mean and std of each channel (of pixels in [0, 1]) taken off; float stays."""
    if pixels.dtype != jnp.uint8:
        return pixels
    mean, std = (jnp.asarray(v, jnp.float32) * 255 for v in (mean, std))
    return (pixels.astype(jnp.float32) - mean) / std


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
        self, image: jax.Array | Patches, mask: jax.Array | None = None, *, train: bool = False
    ) -> tuple[Tokens, jax.Array | None]:
        """image: [B, H, W, 3], uint8, or float that is normalised already, with mask [B, N] bool, patches that are
        real; or `Patches`.

        Returns tokens [B, N, D] (N = H/p * W/p, and one more in front with pool "cls") and the pooled vectors [B, D].
        Pool "none" gives None, and `tokens_cls=False` no token more.
        """
        c = self.config.sized()
        project = Dense(
            c.width,
            use_bias=c.stem_bias,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            kernel_axes=("patch", "embed"),
            bias_axes=("embed",),
            name="stem",
        )
        if isinstance(image, Patches):
            check_patches(image, c)
            shape = image.values.shape
            x = project(self._normalised(image.values.reshape(*shape[:2], -1, 3)).reshape(shape))
            tokens = Tokens(x + self._positions_at(image, c).astype(self.dtype), image.mask)
        else:
            grid = grid_of(image.shape[1:3], c.patch, c.cut_rim)
            image = image[:, : grid[0] * c.patch, : grid[1] * c.patch]
            image = self._normalised(image)
            if c.stem == "conv":
                image = self._convolutions(image, c)
                x = project(image.reshape(image.shape[0], -1, image.shape[-1]))
            else:
                x = project(patchify(image, c.patch))
            tokens = Tokens(x + self._positions(grid, c).astype(self.dtype), mask)
        if train and c.patch_dropout:
            tokens = self._drop_patches(tokens, c.patch_dropout)
        if c.pool == "cls":
            tokens = self._with_cls(tokens)
        stack = Transformer(c, self.dtype, name="transformer")
        out = stack(tokens.x, mask=tokens.mask, tap=c.tokens_layer, train=train)
        pooled = None
        if c.pool != "none":
            pool = Pool("first" if c.pool == "cls" else c.pool, c, self.dtype, name="pool")
            pooled = pool(tokens._replace(x=out.x))
        if c.pooler == "tanh":
            pooled = jnp.tanh(pooler(c.width, self.dtype, name="pooler")(pooled))
        tokens = tokens._replace(x=out.early if c.tokens_layer else out.x)
        return tokens if c.tokens_cls else jax.tree.map(lambda v: v[:, 1:], tokens), pooled

    def _normalised(self, pixels: jax.Array) -> jax.Array:
        """[..., 3] -> the same in the compute type; see `normalise`."""
        return normalise(pixels, self.mean, self.std).astype(self.dtype)

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
        return resample(self._table(c), grid).reshape(1, -1, c.width)

    def _positions_at(self, patches: Patches, c: PatchEncoderConfig) -> jax.Array:
        """[B, N, D]: for every picture what `_positions` gives for its grid."""
        row, column = patches.positions
        if c.position == "sincos":
            # A grid within N patches has no side longer than N.
            axis = jnp.asarray(sincos_1d(patches.values.shape[1], c.width // 2))
            return jnp.concatenate([jnp.take(axis, column, axis=0), jnp.take(axis, row, axis=0)], -1)
        table = self._table(c)
        down = reading(row, patches.grid[:, :1], table.shape[0])
        across = reading(column, patches.grid[:, 1:], table.shape[1])
        # One product with a [B, N, h * w] matrix: 0.2 % of the operations of a ViT-B on 256 patches.
        weights = (down[..., :, None] * across[..., None, :]).reshape(*row.shape, -1)
        return jnp.einsum("bnp,pd->bnd", weights, table.reshape(-1, c.width), precision="highest")

    def _table(self, c: PatchEncoderConfig) -> jax.Array:
        """Learned positions [h, w, D]; they begin as the fixed ones, which are as large as what the stem gives."""
        boxed = nn.with_logical_partitioning(as_sincos, (None, None, "embed"))
        return self.param("position", boxed, (*grid_of(self.image_size, c.patch, c.cut_rim), c.width))

    def _drop_patches(self, tokens: Tokens, share: float) -> Tokens:
        """Keeps the same number of patches in each row, drawn at random; real ones before padding. Order is kept."""
        keep = max(1, round(tokens.x.shape[1] * (1 - share)))
        noise = jax.random.uniform(self.make_rng("dropout"), tokens.x.shape[:2])
        if tokens.mask is not None:
            noise = noise + ~tokens.mask
        rows = jnp.sort(jnp.argsort(noise, axis=1)[:, :keep], axis=1)
        return jax.tree.map(lambda v: jnp.take_along_axis(v, rows[..., None] if v.ndim == 3 else rows, 1), tokens)

    def _with_cls(self, tokens: Tokens) -> Tokens:
        """The extra token in front."""
        x, mask, _ = tokens
        boxed = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, None, "embed"))
        cls = self.param("cls", boxed, (1, 1, x.shape[-1])).astype(self.dtype)
        if self.config.cls_position:
            cls = cls + self.param("cls_position", boxed, (1, 1, x.shape[-1])).astype(self.dtype)
        mask = None if mask is None else jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        return Tokens(jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, x.shape[-1])), x], 1), mask)


def check_stem(c: PatchEncoderConfig) -> None:
    """Whether the encoder can read pictures as patches."""
    if c.stem == "conv":
        raise ConfigError(
            "config.model.patch_encoder.stem: 'conv' reads across patches, so it needs whole pictures. Set it to "
            "'linear', or config.processor.image.aspect to 'square'."
        )


def check_patches(patches: Patches, c: PatchEncoderConfig) -> None:
    """Whether the encoder can read pictures as patches of this size."""
    check_stem(c)
    values = patches.values.shape[-1]
    if values != c.patch * c.patch * 3:
        raise ConfigError(
            f"config.model.patch_encoder.patch: found patches of {values} values in the batch, expected "
            f"{c.patch * c.patch * 3} for a side of {c.patch}. Cut the pictures with the same patch."
        )


def grid_of(size: tuple[int, int], patch: int, cut_rim: bool = False) -> tuple[int, int]:
    """Patches down and across a picture of `size` = (height, width). ConfigError for a rim that is not to be cut."""
    height, width = size
    if cut_rim and min(size) >= patch:
        return height // patch, width // patch
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


def reading(index: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """Weights [..., size] with which place `index` of `length` along one side reads a table of `size`: the columns of
    `jax.image.resize`'s "bilinear" matrix (antialiased), for lengths that only the batch knows. One-hot where length
    is size. index, length: int32, broadcastable; finite for padding of length 0.
    """
    step = size / jnp.maximum(length, 1)
    at = (index + 0.5) * step - 0.5
    weights = jnp.maximum(0, 1 - jnp.abs(at[..., None] - jnp.arange(size)) / jnp.maximum(step, 1)[..., None])
    return weights / jnp.maximum(jnp.sum(weights, -1, keepdims=True), 1e-6)


def as_sincos(key: jax.Array, shape: tuple[int, int, int], dtype: Any = jnp.float32) -> jax.Array:
    """An initialiser for positions [h, w, D]: `sincos_2d`, cut to a D that is no multiple of 4."""
    height, width, features = shape
    fixed = sincos_2d((height, width), -(-features // 4) * 4)[:, :features]
    return jnp.asarray(fixed, dtype).reshape(shape)


def sincos_2d(grid: tuple[int, int], width: int) -> np.ndarray:
    """Fixed 2-D positions [N, D] float32 (Chen et al., 2021, MoCo v3): sin and cos of the column, then of the row."""
    rows, columns = np.mgrid[: grid[0], : grid[1]].reshape(2, -1)
    axis = sincos_1d(max(grid), width // 2)
    return np.concatenate([axis[columns], axis[rows]], 1)
