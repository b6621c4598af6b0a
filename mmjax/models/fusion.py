"""Fusion: wires one stream's tokens into another's. H_F = F(H_I, H_X)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import choice
from mmjax.errors import ConfigError
from mmjax.models.dense import Dense
from mmjax.models.heads import Pool
from mmjax.models.tokens import Tokens
from mmjax.models.transformer import Transformer
from mmjax.models.transformer_config import TransformerConfig


class Fused(NamedTuple):
    """tokens: [B, N_F, D] with their mask; pooled: [B, D]."""

    tokens: Tokens
    pooled: jax.Array


@dataclass(frozen=True)
class FusionConfig(TransformerConfig):
    """How text reads pictures. Sizes that are not given are the text encoder's (the patch encoder's where there is
    none).

    Attributes:
      name: "none" (two towers); "concat" (one stack over text and patch tokens, N_F = N_X + N_I; ViLT: Kim et al.,
        2021); "cross_attention" (self-attention over text, cross-attention to patches, MLP; ALBEF: Li et al., 2021);
        "gated_cross_attention" (gated readings only, the identity at the start: a trained text encoder is unchanged;
        Flamingo: Alayrac et al., 2022).
      depth: number of blocks.
      project_image: pictures of another width are mapped to the fusion's; False: cross-attention reads them as they are
        (BLIP).
      pool: "first" token (text comes first), "mean" over real tokens, or "attention".
    """

    name: str = choice("none", "concat", "cross_attention", "gated_cross_attention")
    size: str = ""
    depth: int = 2
    project_image: bool = True
    pool: str = choice("first", "mean", "attention")

    def check(self, where: str) -> None:
        super().check(where)
        if not self.project_image and self.name in ("none", "concat"):
            raise ConfigError(f"{where}.project_image: false, but '{self.name}' has no cross-attention. Leave it out.")


class Fusion(nn.Module):
    """Text tokens and patch tokens -> fused tokens. Either may be absent: the other then passes through the same blocks
    alone.

    Attributes:
      image_width: of pictures that cross-attention reads as they are; 0: of the fusion's width.
    """

    config: FusionConfig
    dtype: Any = jnp.float32
    image_width: int = 0

    @nn.compact
    def __call__(self, text: Tokens | None, image: Tokens | None, *, train: bool = False) -> Fused:
        """text: [B * K, L, E]; image: [B, N, F], read by K texts each. Returns tokens of text's length (concat: L + N).

        Without text, the tokens are the picture's, in the fusion's width. Neither is packed.
        """
        c = self.config
        if text is None and image is None:
            raise ConfigError("fuse: neither text nor a picture. Expected at least one of them in the batch.")
        text = self._project(text, "text_projection")
        if c.project_image:
            image = self._project(image, "image_projection")
        if c.name == "concat":
            tokens = self._concat(text, image)
            stack = Transformer(c, self.dtype, name="transformer")
            x = stack(tokens.x, mask=tokens.mask, train=train).x
            tokens = tokens._replace(x=x)
        elif c.name == "none" or text is None:
            tokens = image if text is None else text
        else:
            gated = c.name == "gated_cross_attention"
            stack = Transformer(
                c,
                self.dtype,
                "gated" if gated else "plain",
                cross_only=gated,
                memory_width=self.image_width,
                name="transformer",
            )
            x = stack(text.x, mask=text.mask, memory=image, train=train).x
            tokens = text._replace(x=x)
        return Fused(tokens, Pool(c.pool, c, self.dtype, name="pool")(tokens))

    def _project(self, tokens: Tokens | None, name: str) -> Tokens | None:
        """Into the fusion's width, by a linear map where the widths differ."""
        if tokens is None or tokens.x.shape[-1] == self.config.width:
            return tokens
        dense = Dense(self.config.width, dtype=self.dtype, kernel_axes=(None, "embed"), bias_axes=("embed",), name=name)
        return tokens._replace(x=dense(tokens.x))

    def _concat(self, text: Tokens | None, image: Tokens | None) -> Tokens:
        """Text, then patches, each marked by a learned vector of its modality."""
        boxed = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        kind = self.param("modality", boxed, (2, self.config.width)).astype(self.dtype)
        parts = [t._replace(x=t.x + kind[i]) for i, t in enumerate((text, image)) if t is not None]
        rows = parts[0].x.shape[0]
        parts = [jax.tree.map(lambda v: jnp.repeat(v, rows // v.shape[0], axis=0), part) for part in parts]
        x = jnp.concatenate([part.x for part in parts], 1)
        if all(part.mask is None for part in parts):
            return Tokens(x)
        masks = [jnp.ones(part.x.shape[:2], bool) if part.mask is None else part.mask for part in parts]
        return Tokens(x, jnp.concatenate(masks, 1))
