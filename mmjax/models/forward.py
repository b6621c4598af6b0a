"""The model applied to one batch, each part once however many tasks ask for it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax

from mmjax.errors import ConfigError

if TYPE_CHECKING:
    from mmjax.models.decoder import Decoded
    from mmjax.models.fusion import Fused
    from mmjax.models.multimodal import ImageOutput, Multimodal, TextOutput
    from mmjax.models.transformer import Tokens


class Forward:
    """What the tasks of one stream see. Made anew inside each traced step; its results are kept for the length of the
    step.

    Attributes:
      batch: arrays of the batch, as in the table of mmjax/README.md.
      train: dropout, drop-path and patch dropout are on; needs `rng`.
    """

    def __init__(
        self,
        model: Multimodal,
        params: Mapping[str, Any],
        batch: Mapping[str, jax.Array],
        rng: jax.Array | None = None,
        train: bool = False,
    ):
        self.model, self.params, self.batch, self.train = model, params, batch, train
        self._key = rng
        self._kept: dict[str, Any] = {}

    def image(self) -> ImageOutput:
        """The batch's pictures [B, H, W, 3], encoded."""
        return self._once("image", lambda: self._apply("encode_image", self._feature("image")))

    def text(self, feature: str = "text") -> TextOutput:
        """The texts [B, K, L] of a feature, encoded as [B * K, L]."""

        def make() -> TextOutput:
            ids, mask = self._feature(feature), self._feature(f"{feature}_mask")
            return self._apply(
                "encode_text", ids.reshape(-1, ids.shape[-1]), mask.reshape(-1, mask.shape[-1]), stage=feature
            )

        return self._once(f"text/{feature}", make)

    def fuse(self, feature: str = "text") -> Fused:
        """The texts of a feature with the pictures; either may be absent from the batch."""

        def make() -> Fused:
            text = self.text(feature).tokens if feature in self.batch else None
            image = self.image().tokens if "image" in self.batch else None
            return self.fuse_tokens(text, image)

        return self._once(f"fuse/{feature}", make)

    def fuse_tokens(self, text: Tokens | None, image: Tokens | None) -> Fused:
        """Fuses tokens that the task chose. text: [B * K, L, D]; image: [B, N, D]."""
        return self._apply("fuse", text, image)

    def memory(self) -> Tokens:
        """What a decoder without a text to fuse reads: the patch tokens [B, N, D]."""
        return self.image().tokens

    def decode(self, ids: jax.Array, mask: jax.Array | None, memory: Tokens | None, *, placed: bool = False) -> Decoded:
        """ids: [B * K, L] int32, mask: [B * K, L] bool; memory: [B, N, D] or [B * K, N, D]."""
        return self._apply("decode", ids, mask, memory, placed=placed)

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
