"""What a family file says: the settings of the model in our terms, and where each of its tensors lies. Both ways.

A family is a module of this package with

    NAME = "clip"                                    how messages call it
    MODEL_TYPES = ("clip", "clip_vision_model")      `model_type` of the config.json files that it reads
    read(config, keys=None) -> Described             config: with all defaults; keys: of the files, which tell older
                                                     names and optional parts; None: what an export writes
    write(model, labels, aside) -> dict              config.json of a model of ours; ConfigError where it cannot say it.
                                                     labels: class names; aside: keys that are written along

`read(write(model))` gives the same model settings again, which is how an export proves that it lost nothing
(`config_json.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

Shape = tuple[int, ...]


class Layout(Protocol):
    """How the numbers of one tensor of theirs are arranged in one or more arrays of ours."""

    def their_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Shape of the tensor in the file, from the shapes of our arrays."""

    def to_ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """The tensor of the file -> our arrays, of these shapes; views where possible, the dtype stays."""

    def to_theirs(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The inverse, exactly."""


class Tensor(NamedTuple):
    """One tensor of a file and the parameters that it holds.

    Attributes:
      theirs: its key; what an export writes.
      ours: flat names of our parameters, in the order of the layout; several where theirs is fused.
      layout: how the numbers are arranged.
      also: other keys: older names of the same tensor, and tied copies. Where a file has several, they must be equal.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: Layout
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Described:
    """A folder's model in our terms.

    Attributes:
      model: settings of `ModelConfig` as a plain mapping ({"patch_encoder": {...}, ...}); parts that the folder does
        not have are left out.
      tensors: every parameter of those parts, once.
      aside: pattern of keys that no part of ours uses -> why. They are read, carried along and written back.
      image_size: (height, width) of the learned positions, None without a picture tower.
      vocab_size: rows of the embedding table, 0 without text.
      token_ids: what config.json calls bos, eos, pad, image, start (of the decoder); absent ones are left out.
      contrastive: "softmax" (CLIP) or "sigmoid" (SigLIP) where there is one space for pictures and texts.
      dropped: scalars of the model that the files have no place for; they begin anew, and an export leaves them out.
      heads: {name: (outputs, source)} as of `HeadSpec`.
      labels: class names of a classifier head, in order.
    """

    model: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    aside: Mapping[str, str] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    vocab_size: int = 0
    token_ids: Mapping[str, int] = field(default_factory=dict)
    contrastive: str = ""
    dropped: tuple[str, ...] = ()
    heads: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
