"""The model applied to one batch, each part once however many tasks ask for it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from mmjax.errors import ConfigError
from mmjax.models.patch_encoder import Patches

if TYPE_CHECKING:
    from mmjax.data.processor import Processor
    from mmjax.models.decoder import Decoded
    from mmjax.models.fusion import Fused
    from mmjax.models.multimodal import ImageOutput, Multimodal, TextOutput, TokenIds
    from mmjax.models.transformer import Tokens


class Forward:
    """What the tasks of one stream see. Made anew inside each traced step; its results are kept for the length of the
    step.

    Attributes:
      batch: arrays of the batch, as in the table of mmjax/README.md.
      train: dropout, drop-path and patch dropout are on; needs `rng`.
      processor: for predictions that need words of the config or the answer list; None in training.
    """

    def __init__(
        self,
        model: Multimodal,
        params: Mapping[str, Any],
        batch: Mapping[str, jax.Array],
        rng: jax.Array | None = None,
        train: bool = False,
        processor: Processor | None = None,
    ):
        self.model, self.params, self.batch, self.train, self.processor = model, params, batch, train, processor
        self._key = rng
        self._kept: dict[str, Any] = {}

    @property
    def packed(self) -> int:
        """S, the most rows of a sequence, in a batch of packed rows; else 0."""
        valid = self.batch.get("valid")
        return 0 if valid is None or valid.ndim == 1 else valid.shape[1]

    def image(self) -> ImageOutput:
        """The batch's pictures, encoded: [B, H, W, 3], or in their own aspect, patches [B, N, P]; of packed rows [B, S,
        ...], then B * S rows.
        """

        def make() -> ImageOutput:
            picture = self._feature("image")
            if "image_grid" not in self.batch:
                return self._apply("encode_image", picture.reshape(-1, *picture.shape[-3:]))
            patches = Patches(picture.reshape(-1, *picture.shape[-2:]), self.batch["image_grid"].reshape(-1, 2))
            return self._apply("encode_image", patches)

        return self._once("image", make)

    def pictured(self) -> jax.Array:
        """[B], packed [B, S] bool: real rows that have a picture. A row without one (`image_valid`) holds a blank in
        its place.
        """
        valid = self._feature("valid")
        return valid & self.batch["image_valid"] if "image_valid" in self.batch else valid

    def text(self, feature: str = "text") -> TextOutput:
        """The texts [B, K, L] of a feature, encoded as [B * K, L]; or packed ones [B, L], pooled to [B, S, D]."""

        def make() -> TextOutput:
            ids, segments = self._feature(feature), self.segments(feature)
            if segments is not None:
                ids, segments = _packed_as_read(ids, segments, self.model.tokens)
                return self._apply("encode_text", ids, None, segments, packed=self.packed, stage=feature)
            mask = self._feature(f"{feature}_mask")
            ids, mask = _as_read(ids.reshape(-1, ids.shape[-1]), mask.reshape(-1, mask.shape[-1]), self.model.tokens)
            return self._apply("encode_text", ids, mask, stage=feature)

        return self._once(f"text/{feature}", make)

    def segments(self, feature: str = "text") -> jax.Array | None:
        """[B, L] int32 where the texts of a feature are packed: 1, 2, ... for their tokens, 0 for padding."""
        return self.batch.get(f"{feature}_segment")

    def fuse(self, feature: str = "text") -> Fused:
        """The texts of a feature with the pictures; either may be absent from the batch, which is not packed."""

        def make() -> Fused:
            text = self.text(feature) if feature in self.batch else None
            image = self.memory() if "image" in self.batch else None
            return self._apply("fuse", text and text.tokens, image)

        return self._once(f"fuse/{feature}", make)

    def fuse_tokens(self, text: Tokens | None, image: Tokens | None) -> Fused:
        """Fuses tokens that the task chose. text: [B * K, L, D]; image: [B, N, D]."""
        return self._apply("fuse", text, image)

    def memory(self) -> Tokens:
        """What texts and a decoder read: the patch tokens [B, N, D]; those of a row without a picture are masked. Of
        packed rows [B, S * N, D]: the text of segment s reads picture s alone.
        """
        tokens = self.image().tokens
        if self.packed:
            return tokens.side_by_side(jnp.where(self.pictured(), jnp.arange(1, self.packed + 1), 0))
        if "image_valid" not in self.batch:
            return tokens
        mask = jnp.broadcast_to(self.batch["image_valid"][:, None], tokens.x.shape[:2])
        return tokens._replace(mask=mask if tokens.mask is None else mask & tokens.mask)

    def decode(
        self,
        ids: jax.Array,
        mask: jax.Array | None,
        memory: Tokens | None,
        *,
        segments: jax.Array | None = None,
        prefix: jax.Array | None = None,
        placed: bool = False,
    ) -> Decoded:
        """ids: [B * K, L] int32, mask: [B * K, L] bool; memory: [B, N, D] or [B * K, N, D]; the rest: see `Decoder`."""
        return self._apply("decode", ids, mask, memory, segments=segments, prefix=prefix, placed=placed)

    def head(self, name: str, pooled: jax.Array) -> jax.Array:
        """[B, D] -> logits [B, outputs] float32."""
        return self.model.apply({"params": self.params}, name, pooled, method="head")

    def scale(self) -> tuple[jax.Array, jax.Array]:
        """(log scale, bias) of the contrastive logits."""
        return self.model.apply({"params": self.params}, method="contrastive_scale")

    def rng(self, name: str) -> jax.Array:
        """A key of this step for the use called `name`; in evaluation, without a key, always the same one."""
        key = jax.random.key(0) if self._key is None else self._key
        return jax.random.fold_in(key, zlib.crc32(name.encode()))

    def _apply(self, method: str, *arguments: Any, stage: str = "", **options: Any) -> Any:
        if self.train and self._key is None:
            raise ValueError("Forward: train=True needs rng.")
        rngs = {"dropout": self.rng(f"{method}/{stage}")} if self.train else None
        return self.model.apply(
            {"params": self.params}, *arguments, method=method, train=self.train, rngs=rngs, **options
        )

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def _feature(self, name: str) -> jax.Array:
        if name not in self.batch:
            raise ConfigError(f"the batch has no feature '{name}'. It has {', '.join(sorted(self.batch))}.")
        return self.batch[name]


def _as_read(ids: jax.Array, mask: jax.Array, tokens: TokenIds) -> tuple[jax.Array, jax.Array]:
    """Texts [B, L] `bos tokens eos`, as they are written -> as the text encoder reads them: [B, L], or [B, L - 1] where
    it reads no bos.
    """
    at = jnp.arange(ids.shape[1])
    if not tokens.read_eos:
        mask &= (ids != tokens.eos) | (at == 0)
    if tokens.read_bos == -1:
        return ids[:, 1:], mask[:, 1:]
    return (ids if tokens.read_bos is None else jnp.where(at == 0, tokens.read_bos, ids)), mask


def _packed_as_read(ids: jax.Array, segments: jax.Array, tokens: TokenIds) -> tuple[jax.Array, jax.Array]:
    """The same for packed texts; a token that is not read becomes padding in its place."""
    first = segments != jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
    if not tokens.read_eos:
        segments = jnp.where((ids == tokens.eos) & ~first, 0, segments)
    if tokens.read_bos == -1:
        return ids, jnp.where(first, 0, segments)
    return (ids if tokens.read_bos is None else jnp.where(first, tokens.read_bos, ids)), segments
