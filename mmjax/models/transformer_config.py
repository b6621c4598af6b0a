"""Sizes and kind of a stack of blocks: what a tower, or a family of public weights, says of the one block."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax

from mmjax.config import choice, share
from mmjax.errors import ConfigError
from mmjax.models.activations import ACTIVATIONS
from mmjax.models.sizes import size_of

NORMS = ("layernorm", "rmsnorm", "rmsnorm_offset")
# What `jax.checkpoint` may keep for the backward pass, by the name in `remat`.
POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
# The projections of attention that have a bias, by the name in `attention_bias`.
BIASED = {
    "all": ("query", "key", "value", "out"),
    "none": (),
    "qkv": ("query", "key", "value"),
    "no_key": ("query", "value", "out"),
    "out": ("out",),
}


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and kind of a stack of blocks. The defaults are a pre-norm ViT.

    Attributes:
      size: a name of `sizes.py`; width, depth, heads and mlp_dim override it when they are not 0. With a width of its
        own and no heads or mlp_dim, heads are width // 64 and mlp_dim is 4 * width.
      head_dim: 0 is width // heads. kv_heads: 0 is heads; fewer share keys and values (GQA: Ainslie et al., 2023).
      gated: the MLP is down(activation(gate(x)) * up(x)) (Shazeer, 2020).
      norm: "layernorm", "rmsnorm", or "rmsnorm_offset" (multiplies by 1 + scale: Gemma).
      norm_first: pre-norm with a final norm (ViT, GPT-2, Llama); False is post-norm without (BERT).
      norm_after: one more norm of what each branch adds (Gemma 2).
      norm_input: a norm before the first block (CLIP's picture tower, BERT's embeddings).
      final_norm: the final norm of a pre-norm stack; False leaves it out.
      layer_scale: what each branch adds is multiplied by a learned vector (Touvron et al., 2021; DINOv2).
      bias: dense layers and layernorms have biases.
      attention_bias: which projections of attention have one: as `bias` says (""), "all", "none", "qkv" (Qwen 2),
        "no_key" (Whisper), or "out" (a ViT with qkv_bias off).
      attention_scale: of the attention logits; 0 is head_dim ** -0.5 (T5 has 1).
      attention_softcap: attention logits become cap * tanh(logits / cap) (Gemma 2); 0 leaves them.
      window: every second layer, from the first, reads only keys less than `window` tokens away (Gemma 2); 0: all do.
      position: what the stack itself does with positions: nothing, "rope" (turns queries and keys), or "relative" (adds
        a learned bias a head to the attention logits, by distance; all layers share its table: T5). Towers add theirs.
      rope_theta: base of the rotary positions. rope_scaling: "none", "linear", or "llama3", see `rope_frequencies`,
        with rope_factor and, for "llama3", rope_low_factor, rope_high_factor, and rope_length (tokens).
      relative_buckets, relative_distance: rows of the table of relative positions, and where the last one begins.
      drop_path: share of rows that skip a residual branch in the last block; it grows linearly from 0 in the first
        (Huang et al., 2016).
      adapter: width of a bottleneck after each sub-layer (Houlsby et al., 2019), 0 for none. It is the identity at the
        start, so that it can be put into a trained stack.
      remat: what the backward pass keeps: all ("none"), only each block's input ("full"), matmul outputs ("dots"), or
        those without batch dimensions ("dots_no_batch").
      scan: run the blocks as one `lax.scan`: compiles once for all, at the price of stacking the parameters in the
        step.
    """

    size: str = "S"
    width: int = 0
    depth: int = 0
    heads: int = 0
    head_dim: int = 0
    kv_heads: int = 0
    mlp_dim: int = 0
    activation: str = choice(*ACTIVATIONS, default="gelu_tanh")
    gated: bool = False
    norm: str = choice(*NORMS)
    norm_first: bool = True
    norm_after: bool = False
    norm_input: bool = False
    final_norm: bool = True
    layer_scale: bool = False
    eps: float = 1e-6
    bias: bool = True
    attention_bias: str = choice("", *BIASED)
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    window: int = 0
    position: str = choice("none", "rope", "relative")
    rope_theta: float = 10000.0
    rope_scaling: str = choice("none", "linear", "llama3")
    rope_factor: float = 1.0
    rope_low_factor: float = 1.0
    rope_high_factor: float = 4.0
    rope_length: int = 8192
    relative_buckets: int = 32
    relative_distance: int = 128
    dropout: float = share()
    drop_path: float = share()
    adapter: int = 0
    remat: str = choice("none", *POLICIES)
    scan: bool = False

    def sized(self, where: str = "config", like: TransformerConfig | None = None) -> TransformerConfig:
        """The same with every derived size filled in; `like` stands in for `size` where that is "".

        Raises ConfigError where the sizes do not fit together.
        """
        base = size_of(self.size, f"{where}.size") if self.size or like is None else like
        own = self.width not in (0, base.width)
        width = self.width or base.width
        heads = self.heads or (max(1, width // 64) if own else base.heads)
        # A `like` has a head_dim of its own, which goes with its heads.
        head_dim = self.head_dim or (0 if own or self.heads else getattr(base, "head_dim", 0))
        if not head_dim and width % heads:
            raise ConfigError(f"{where}.heads: {heads} heads do not divide width {width}. Set heads or head_dim.")
        kv_heads = self.kv_heads or heads
        if heads % kv_heads:
            raise ConfigError(f"{where}.kv_heads: found {kv_heads}, expected a divisor of heads ({heads}).")
        return dataclasses.replace(
            self,
            width=width,
            depth=self.depth or base.depth,
            heads=heads,
            head_dim=head_dim or width // heads,
            kv_heads=kv_heads,
            mlp_dim=self.mlp_dim or (4 * width if own else base.mlp_dim),
        )

    def check(self, where: str) -> None:
        """Called by `config.build`."""
        if self.size:
            self.sized(where)
        for name in ("width", "depth", "heads", "head_dim", "kv_heads", "mlp_dim", "adapter"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"{where}.{name}: found {getattr(self, name)}, expected 1 or more, or 0 to derive it."
                )
        for name in ("attention_scale", "attention_softcap", "window"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{where}.{name}: found {getattr(self, name)}, expected 0 (off) or more.")
        if not self.rope_low_factor < self.rope_high_factor or self.rope_factor <= 0:
            raise ConfigError(
                f"{where}: found rope_factor {self.rope_factor}, rope_low_factor {self.rope_low_factor} and "
                f"rope_high_factor {self.rope_high_factor}; expected the first above 0 and the second below the third."
            )
        if self.relative_buckets < 4 or self.relative_distance <= self.relative_buckets // 2:
            raise ConfigError(
                f"{where}.relative_buckets: found {self.relative_buckets} for a relative_distance of "
                f"{self.relative_distance}; expected 4 or more, and half of them below that distance."
            )
