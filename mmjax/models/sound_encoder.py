"""Sound -> tokens: two convolutions over a log-mel spectrogram, a transformer (Whisper: Radford et al., 2022, 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import ConfigError
from mmjax.models.activations import ACTIVATIONS
from mmjax.models.dense import Dense
from mmjax.models.tokens import Tokens
from mmjax.models.transformer import Transformer
from mmjax.models.transformer_config import TransformerConfig


@dataclass(frozen=True)
class SoundEncoderConfig(TransformerConfig):
    """The sound tower.

    Attributes:
      mel: bands of the spectrogram.
      length: most tokens, the size of the table of learned positions. A token stands for two frames (20 ms in Whisper).
    """

    mel: int = 80
    length: int = 1500

    def check(self, where: str) -> None:
        super().check(where)
        for name in ("mel", "length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{where}.{name}: found {getattr(self, name)}, expected 1 or more.")


class SoundEncoder(nn.Module):
    """Log-mel frames -> a hidden vector for every second one."""

    config: SoundEncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array, mask: jax.Array | None = None, *, train: bool = False) -> Tokens:
        """frames: [B, T, mel] float; mask: [B, T] bool, real frames (None: all are) -> tokens [B, ceil(T / 2), D].

        Whisper's own weights read silence in place of padding, and no mask.
        """
        c = self.config.sized("config.model.sound_encoder")
        if frames.shape[-1] != c.mel:
            raise ConfigError(f"config.model.sound_encoder.mel: found {c.mel}, but the batch has {frames.shape[-1]}.")
        x = frames if mask is None else jnp.where(mask[..., None], frames, 0)
        activation = ACTIVATIONS[c.activation]
        for name, stride in (("conv_0", 1), ("conv_1", 2)):
            # As three shifted copies and one product: what every device multiplies well.
            x = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
            steps = (x.shape[1] - 3) // stride + 1
            taps = [x[:, i : i + stride * (steps - 1) + 1 : stride] for i in range(3)]
            dense = Dense(c.width, dtype=self.dtype, kernel_axes=("patch", "embed"), bias_axes=("embed",), name=name)
            x = activation(dense(jnp.concatenate(taps, -1)))
            mask = None if mask is None else mask[:, ::stride]
            x = x if mask is None else jnp.where(mask[..., None], x, 0)
        if x.shape[1] > c.length:
            raise ConfigError(
                f"config.model.sound_encoder.length: found {c.length} positions for {x.shape[1]} tokens "
                f"({frames.shape[1]} frames). Set it to {x.shape[1]} or more, or give fewer frames."
            )
        boxed = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        x = x + self.param("position", boxed, (c.length, c.width))[: x.shape[1]].astype(self.dtype)
        return Tokens(Transformer(c, self.dtype, name="transformer")(x, mask=mask, train=train).x, mask)
