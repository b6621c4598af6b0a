"""The families, in the order in which an export tries them."""

from __future__ import annotations

import importlib
from types import ModuleType

from mmjax.errors import ConfigError, did_you_mean

MODULES: tuple[str, ...] = (
    "vit",
    "dinov2",
    "clip",
    "siglip",
    "bert",
    "gpt2",
    "llama",
    "gemma",
    "t5",
    "blip",
    "paligemma",
    "llava",
    "whisper",
)


def families() -> list[ModuleType]:
    """The modules of this package that read and write a family (see `family.py`)."""
    return [importlib.import_module(f"mmjax.pretrained.{name}") for name in MODULES]


def family_of(model_type: str, where: str) -> ModuleType:
    """The family that reads a `model_type`; ConfigError where there is none."""
    known = {kind: family for family in families() for kind in family.MODEL_TYPES}
    if model_type not in known:
        raise ConfigError(
            f"{where}: model_type '{model_type}' is of no family that can be read."
            f"{did_you_mean(model_type, known)} Expected one of {', '.join(known)}."
        )
    return known[model_type]
