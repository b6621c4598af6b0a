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
from mmjax.models.sound_encoder import SoundEncoder, SoundEncoderConfig
from mmjax.models.text_encoder import TextEncoder, TextEncoderConfig
from mmjax.models.tokens import Tokens
from mmjax.models.transformer import Cache

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
      text_vector: what gives the vector of a text alone: the "text_encoder", or the "fusion" run without a picture
        (BLIP, whose one text stack does both).
      share_embedding: the decoder reads the text encoder's table of embeddings (T5).
    """

    dtype: str = choice("auto", "float32", "bfloat16")
    embed_dim: int = 0
    projection: str = choice("both", "text")
    projection_bias: bool = False
    text_vector: str = choice("text_encoder", "fusion")
    share_embedding: bool = False
    patch_encoder: PatchEncoderConfig | None = dataclasses.field(default_factory=PatchEncoderConfig)
    text_encoder: TextEncoderConfig | None = None
    sound_encoder: SoundEncoderConfig | None = None
    fusion: FusionConfig = dataclasses.field(default_factory=FusionConfig)
    decoder: DecoderConfig | None = None

    def check(self, where: str) -> None:
        """Called by `config.build`, after the parts were checked."""
        like = self.text_encoder or self.patch_encoder or self.sound_encoder or self.decoder
        if like is None:
            raise ConfigError(
                f"{where}: no patch_encoder, text_encoder, sound_encoder or decoder. Expected at least one of them."
            )
        if self.projection == "text" and self.patch_encoder is not None:
            width = self.patch_encoder.sized(f"{where}.patch_encoder").width
            if self.embed_dim not in (0, width):
                raise ConfigError(
                    f"{where}.embed_dim: found {self.embed_dim}; with projection 'text' expected 0 or {width}."
                )
        fusion = self.fusion.sized(f"{where}.fusion", like.sized(where))
        if self.text_vector == "fusion" and (self.text_encoder is None or fusion.name == "none"):
            raise ConfigError(f"{where}.text_vector: 'fusion' needs text_encoder and a fusion.name other than 'none'.")
        if self.share_embedding:
            widths = [part and part.sized(where).width for part in (self.text_encoder, self.decoder)]
            if None in widths or len(set(widths)) > 1:
                raise ConfigError(
                    f"{where}.share_embedding: found widths {widths} of text_encoder and decoder; expected both, equal."
                )


def resolve_dtype(name: str, platform: str) -> str:
    """ "auto" -> bfloat16 on accelerators, float32 on "cpu" (whose bfloat16 is emulated); other names stay."""
    return name if name != "auto" else "float32" if platform == "cpu" else "bfloat16"


# (log scale, bias) at the start: SigLIP (Zhai et al., 2023, section 3.2) and CLIP (Radford et al., 2021, section 2.5).
CONTRASTIVE_START = {"sigmoid": (math.log(10), -10.0), "softmax": (math.log(1 / 0.07), 0.0)}


class TokenIds(NamedTuple):
    """Of the tokenizer.

    Attributes:
      bos: what a written text starts with.
      image: the `<image>` placeholder, -1 where there is none.
      read_bos: what stands in its place where the text encoder reads; -1: nothing; None: the same.
      read_eos: whether the text encoder reads eos.
    """

    vocab_size: int = 0
    pad: int = 0
    bos: int = 1
    eos: int = 2
    image: int = -1
    read_bos: int | None = None
    read_eos: bool = True


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
      contrastive: "sigmoid" or "softmax" builds the projections of the towers that are there into one space, and with
        both scale and bias ("sigmoid") as that loss starts; "" does not.
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
        decoder = c.decoder and c.decoder.sized("config.model.decoder")
        sound = c.sound_encoder and c.sound_encoder.sized("config.model.sound_encoder")
        fusion = c.fusion.sized("config.model.fusion", text or patch or sound or decoder)
        if patch:
            self.patch_encoder = PatchEncoder(patch, self.image_size, self.mean, self.std, dtype)
        if text:
            self.text_encoder = TextEncoder(text, self.tokens.vocab_size, self.tokens.eos, dtype)
        if sound:
            self.sound_encoder = SoundEncoder(sound, dtype)
        self.fusion = Fusion(fusion, dtype, 0 if fusion.project_image or not patch else patch.width)
        if decoder:
            memory_width = (patch or text or sound or decoder).width if c.fusion.name == "none" else fusion.width
            shared = self.text_encoder.embed if c.share_embedding else None
            self.decoder = Decoder(decoder, self.tokens.vocab_size, memory_width, self.tokens.image, dtype, shared)
        self.head_of = {spec.name: Head(spec.outputs, dtype, name=f"head_{spec.name}") for spec in self.heads}
        if self.contrastive:
            if patch and patch.pool == "none":
                raise ConfigError("config.model.patch_encoder.pool: 'none', but a contrastive task needs a vector.")
            width = c.embed_dim or (patch or text).width
            project = {"use_bias": c.projection_bias, "dtype": dtype, "kernel_axes": ("embed", None)}
            if patch and c.projection == "both":
                self.image_projection = Dense(width, **project)
            if text:
                self.text_projection = Dense(width, **project)
            if patch and text:
                boxed = lambda value: nn.with_logical_partitioning(nn.initializers.constant(value), ())  # noqa: E731
                scale, bias = CONTRASTIVE_START[self.contrastive]
                self.log_scale = self.param("contrastive_log_scale", boxed(scale), ())
                # A softmax over logits is the same whatever is added to all of them.
                self.bias = self.param("contrastive_bias", boxed(bias), ()) if bias else jnp.zeros(())

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
        types: jax.Array | None = None,
        packed: int = 0,
        train: bool = False,
    ) -> TextOutput:
        """ids: [B, L] int32; mask: [B, L] bool; types: see `TextEncoder`. Of `packed` texts a row at most: segments
        [B, L] int32 in place of the mask; pooled and embedding are then [B, packed, D].
        """
        self._need("text_encoder")
        tokens, pooled = self.text_encoder(ids, mask, segments, types=types, packed=packed, train=train)
        if self.config.text_vector == "fusion":
            if segments is not None:
                raise ConfigError("config.model.text_vector: 'fusion' does not read packed texts. Do not pack them.")
            pooled = self.fusion(tokens, None, train=train).pooled
        embedding = _unit(self.text_projection(pooled)) if self.contrastive else None
        return TextOutput(tokens, pooled, embedding)

    def encode_sound(self, frames: jax.Array, mask: jax.Array | None = None, *, train: bool = False) -> Tokens:
        """frames: [B, T, mel] log-mel; mask: [B, T] bool -> tokens [B, ceil(T / 2), D], a memory for the decoder."""
        self._need("sound_encoder")
        return self.sound_encoder(frames, mask, train=train)

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
        prefix: jax.Array | None = None,
        placed: bool = False,
        train: bool = False,
    ) -> Decoded:
        """See `Decoder`. ids: [B * K, L] int32; memory: [B, N, D]."""
        self._need("decoder")
        return self.decoder(
            ids,
            mask,
            memory,
            segments=segments,
            cache=cache,
            positions=position,
            prefix=prefix,
            placed=placed,
            train=train,
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
        sound = self.encode_sound(jnp.zeros((1, 2, c.sound_encoder.mel))) if c.sound_encoder else None
        memories = [next((output.tokens for output in sources.values() if output), sound)]
        if c.fusion.name != "none" or any(spec.source == "fused" for spec in self.heads):
            sources["fused"] = self.fuse(text and text.tokens, image and image.tokens)
            memories.append(sources["fused"].tokens)
        for memory in memories if c.decoder else ():
            self.decode(ids, None, memory)
        for spec in self.heads:
            if getattr(sources.get(spec.source), "pooled", None) is None:
                has = ", ".join(name for name, out in sources.items() if getattr(out, "pooled", None) is not None)
                raise ConfigError(f"head '{spec.name}' reads '{spec.source}', but only {has} is pooled.")
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
