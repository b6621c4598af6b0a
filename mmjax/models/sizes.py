"""Named sizes of transformers: (width, depth, heads, mlp_dim).

From Dosovitskiy et al., 2021 (B, L, H), Touvron et al., 2021 (Ti, S), Zhai et al., 2022 (g, G), Alabdulmohsin et al.,
2023 (So400m); M and mu are big_vision's (`models/vit.py`, `decode_variant`).
"""

from __future__ import annotations

from typing import NamedTuple

from mmjax.errors import ConfigError, did_you_mean


class Size(NamedTuple):
    width: int
    depth: int
    heads: int
    mlp_dim: int


SIZES = {
    "mu": Size(32, 1, 2, 128),
    "Ti": Size(192, 12, 3, 768),
    "S": Size(384, 12, 6, 1536),
    "M": Size(512, 12, 8, 2048),
    "B": Size(768, 12, 12, 3072),
    "L": Size(1024, 24, 16, 4096),
    "So400m": Size(1152, 27, 16, 4304),
    "H": Size(1280, 32, 16, 5120),
    "g": Size(1408, 40, 16, 6144),
    "G": Size(1664, 48, 16, 8192),
}


def size_of(name: str, where: str = "size") -> Size:
    """The size called `name`; an unknown name is a ConfigError that says which are known."""
    if name not in SIZES:
        near = did_you_mean(name, SIZES)
        raise ConfigError(f"{where}: no size '{name}'.{near} Expected one of {', '.join(SIZES)}.")
    return SIZES[name]
