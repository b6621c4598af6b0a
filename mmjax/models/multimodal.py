"""The whole model: patch encoder, text encoder, fusion, decoder and heads, each only where it is asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import choice
from mmjax.errors import ConfigError
from mmjax.models.decoder import Decoded, Decoder, DecoderConfig
from mmjax.models.dense import Dense
from mmjax.models.fusion import Fused, Fusion, FusionConfig
from mmjax.models.heads import Head
from mmjax.models.patch_encoder import PatchEncoder, PatchEncoderConfig, Patches
from mmjax.models.text_encoder import TextEncoder, TextEncoderConfig
from mmjax.models.transformer import Cache, Tokens

__all__ = [
    "HeadSpec",
    "ImageOutput",
    "ModelConfig",
    "Multimodal",
    "TextOutput",
    "TokenIds",
    "Tokens",
    "initialise",
    "resolve_dtype",
]


@dataclass(frozen=True)
class ModelConfig:
    """The parts of the model; None leaves a part out.

    Attributes:
      dtype: of the computation; parameters are float32. "auto" is resolved once, by `resolve_dtype`.
      embed_dim: of the space where pictures and texts meet; 0 is the patch encoder's width.
      projection: which towers are mapped into that space: "both" (CLIP), or "text" (LiT, SigLIP: embed_dim is then the
        picture's width).
      projection_bias: those maps have a bias (SigLIP).
    """

    dtype: str = choice("auto", "float32", "bfloat16")
    embed_dim: int = 0
    projection: str = choice("both", "text")
    projection_bias: bool = False
    patch_encoder: PatchEncoderConfig | None = dataclasses.field(default_factory=PatchEncoderConfig)
    text_encoder: TextEncoderConfig | None = None
    fusion: FusionConfig = dataclasses.field(default_factory=FusionConfig)
    decoder: DecoderConfig | None = None

    def check(self, where: str) -> None:
        """Called by `config.build`, after the parts were checked."""
        if self.patch_encoder is None and self.text_encoder is None:
            raise ConfigError(f"{where}: neither patch_encoder nor text_encoder. Expected at least one of them.")
        if self.projection == "text" and self.patch_encoder is not None:
            width = self.patch_encoder.sized(f"{where}.patch_encoder").width
            if self.embed_dim not in (0, width):
                raise ConfigError(
                    f"{where}.embed_dim: found {self.embed_dim}; with projection 'text' expected 0 or {width}."
                )
        like = self.text_encoder or self.patch_encoder
        self.fusion.sized(f"{where}.fusion", like.sized(where))


def resolve_dtype(name: str, platform: str) -> str:
    """ "auto" -> bfloat16 on accelerators, float32 on "cpu" (whose bfloat16 is emulated); other names stay."""
    return name if name != "auto" else "float32" if platform == "cpu" else "bfloat16"


# (log scale, bias) at the start: SigLIP (Zhai et al., 2023, section 3.2) and CLIP (Radford et al., 2021, section 2.5).
CONTRASTIVE_START = {"sigmoid": (math.log(10), -10.0), "softmax": (math.log(1 / 0.07), 0.0)}


class TokenIds(NamedTuple):
    """Of the tokenizer; image is the `<image>` placeholder, -1 where there is none."""

    vocab_size: int = 0
    pad: int = 0
    bos: int = 1
    eos: int = 2
    image: int = -1


class HeadSpec(NamedTuple):
    """A linear head over a pooled vector. source: "image", "text" or "fused", what it is to be applied to."""

    name: str
    outputs: int
    source: str


class ImageOutput(NamedTuple):
    """tokens: [B, N, D]; pooled: [B, D]; embedding: [B, E] float32 of unit length, None where the model is built
    without `contrastive`.
    """

    tokens: Tokens
    pooled: jax.Array
    embedding: jax.Array | None


class TextOutput(NamedTuple):
    """As `ImageOutput`, for texts."""

    tokens: Tokens
    pooled: jax.Array
    embedding: jax.Array | None


class Multimodal(nn.Module):
    """Composes the parts. Every method is pure, and runs its part once.

    Attributes:
      image_size: (height, width) in pixels, of the processor. mean, std: of pixels in [0, 1].
      tokens: the tokenizer's vocabulary size and special tokens.
      heads: the heads that the tasks ask for.
      contrastive: "sigmoid" or "softmax" builds the projections into one space, and scale and bias as that loss starts;
        "" does not.
      dtype: of the computation: `config.dtype`, resolved. Parameters are float32.
    """

    config: ModelConfig
    image_size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    tokens: TokenIds = TokenIds()
    heads: tuple[HeadSpec, ...] = ()
    contrastive: str = ""
    dtype: str = "float32"

    def setup(self) -> None:
        c, dtype = self.config, jnp.dtype(self.dtype)
        patch = c.patch_encoder and c.patch_encoder.sized("config.model.patch_encoder")
        text = c.text_encoder and c.text_encoder.sized("config.model.text_encoder")
        fusion = c.fusion.sized("config.model.fusion", text or patch)
        if patch:
            self.patch_encoder = PatchEncoder(patch, self.image_size, self.mean, self.std, dtype)
        if text:
            self.text_encoder = TextEncoder(text, self.tokens.vocab_size, self.tokens.eos, dtype)
        self.fusion = Fusion(fusion, dtype)
        if c.decoder:
            decoder = c.decoder.sized("config.model.decoder")
            memory_width = (patch or text).width if c.fusion.name == "none" else fusion.width
            self.decoder = Decoder(decoder, self.tokens.vocab_size, memory_width, self.tokens.image, dtype)
        self.head_of = {spec.name: Head(spec.outputs, dtype, name=f"head_{spec.name}") for spec in self.heads}
        if self.contrastive:
            if not (patch and text):
                raise ConfigError("config.model: a contrastive task needs both patch_encoder and text_encoder.")
            width = c.embed_dim or patch.width
            project = {"use_bias": c.projection_bias, "dtype": dtype, "kernel_axes": ("embed", None)}
            if c.projection == "both":
                self.image_projection = Dense(width, **project)
            self.text_projection = Dense(width, **project)
            boxed = lambda value: nn.with_logical_partitioning(nn.initializers.constant(value), ())  # noqa: E731
            scale, bias = CONTRASTIVE_START[self.contrastive]
            self.log_scale = self.param("contrastive_log_scale", boxed(scale), ())
            self.bias = self.param("contrastive_bias", boxed(bias), ())

    def encode_image(
        self, image: jax.Array | Patches, mask: jax.Array | None = None, *, train: bool = False
    ) -> ImageOutput:
        """image: [B, H, W, 3] uint8, or float that is normalised already, with mask [B, N] bool, real patches; or
        `Patches`.
        """
        self._need("patch_encoder")
        tokens, pooled = self.patch_encoder(image, mask, train=train)
        if not self.contrastive:
            return ImageOutput(tokens, pooled, None)
        projected = self.image_projection(pooled) if self.config.projection == "both" else pooled
        return ImageOutput(tokens, pooled, _unit(projected))

    def encode_text(
        self,
        ids: jax.Array,
        mask: jax.Array | None = None,
        segments: jax.Array | None = None,
        *,
        packed: int = 0,
        train: bool = False,
    ) -> TextOutput:
        """ids: [B, L] int32; mask: [B, L] bool. Of `packed` texts a row at most: segments [B, L] int32 in place of the
        mask; pooled and embedding are then [B, packed, D].
        """
        self._need("text_encoder")
        tokens, pooled = self.text_encoder(ids, mask, segments, packed=packed, train=train)
        embedding = _unit(self.text_projection(pooled)) if self.contrastive else None
        return TextOutput(tokens, pooled, embedding)

    def fuse(self, text: Tokens | None, image: Tokens | None, *, train: bool = False) -> Fused:
        """text: [B * K, L, D] or None; image: [B, N, D] or None."""
        return self.fusion(text, image, train=train)

    def decode(
        self,
        ids: jax.Array,
        mask: jax.Array | None = None,
        memory: Tokens | None = None,
        *,
        segments: jax.Array | None = None,
        cache: Cache | None = None,
        position: jax.Array | None = None,
        placed: bool = False,
        train: bool = False,
    ) -> Decoded:
        """See `Decoder`. ids: [B * K, L] int32; memory: [B, N, D]."""
        self._need("decoder")
        return self.decoder(
            ids, mask, memory, segments=segments, cache=cache, positions=position, placed=placed, train=train
        )

    def decoder_logits(self, hidden: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, V] float32: the last step of `decode`, for losses that go through the vocabulary in
        pieces.
        """
        return self.decoder.logits(hidden)

    def start_cache(self, batch: int, length: int, memory: Tokens | None = None) -> Cache:
        """An empty cache for `decode`: `batch` rows of `length` tokens, plus the memory's where it is a prefix."""
        self._need("decoder")
        return self.decoder.start_cache(batch, length, memory)

    def head(self, name: str, pooled: jax.Array) -> jax.Array:
        """[B, D] -> [B, outputs] float32."""
        return self.head_of[name](pooled)

    def contrastive_scale(self) -> tuple[jax.Array, jax.Array]:
        """(log scale, bias), float32 scalars."""
        return self.log_scale, self.bias

    def touch(self) -> None:
        """Runs every part once on the smallest input, so that `init` makes all parameters, whatever the tasks call
        first.
        """
        c, ids = self.config, jnp.zeros((1, 2), jnp.int32)
        image = self.encode_image(jnp.zeros((1, *self.image_size, 3), jnp.uint8)) if c.patch_encoder else None
        text = self.encode_text(ids) if c.text_encoder else None
        sources = {"image": image, "text": text}
        memories = [] if image is None else [image.tokens]
        if c.fusion.name != "none" or any(spec.source == "fused" for spec in self.heads):
            sources["fused"] = self.fuse(text and text.tokens, image and image.tokens)
            memories.append(sources["fused"].tokens)
        for memory in memories if c.decoder else ():
            self.decode(ids, None, memory)
        for spec in self.heads:
            if sources.get(spec.source) is None:
                has = ", ".join(name for name, output in sources.items() if output is not None)
                raise ConfigError(f"head '{spec.name}' reads '{spec.source}', but the model has only {has}.")
            self.head(spec.name, sources[spec.source].pooled)

    def _need(self, part: str) -> None:
        if getattr(self.config, part) is None:
            raise ConfigError(
                f"config.model.{part}: none, but a task needs it. Give it a size, such as config.model.{part}.size=S."
            )


def initialise(model: Multimodal, rng: jax.Array) -> Mapping[str, Any]:
    """All parameters of the model, boxed with the logical names of their axes. Works under `jax.eval_shape` and
    `jax.jit`.
    """
    return model.init(rng, method="touch")["params"]


def _unit(x: jax.Array) -> jax.Array:
    """[B, E] -> float32 of unit length."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-12))
