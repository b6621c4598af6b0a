"""A Hugging Face folder as a source of parameters, model settings and processor (see `mmjax/init_config.py`)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from mmjax.config import build, merge, plain
from mmjax.data.index import content_hash
from mmjax.data.processor import Processor, ProcessorConfig
from mmjax.data.tokenizer import TokenizerConfig, train_bpe
from mmjax.pretrained.folder import open_folder
from mmjax.pretrained.origin import keep_origin
from mmjax.pretrained.processing import ids_alone, open_vocabulary, picture_settings, text_settings
from mmjax.pretrained.weights import Weights


class Published:
    """A folder, opened; numbers are read by `read` alone.

    Attributes:
      folder: what it holds.
      model: the plain `config.model` of it; parts that it does not have are None.

    Args:
      vocabulary: the tokenizer's file or folder, from `base`, where the folder itself has none.
    """

    def __init__(self, path: str | Path, where: str, vocabulary: str = "", base: str = ""):
        self.path, self.folder = Path(path), open_folder(path, where)
        self._vocabulary, self._base = vocabulary, base
        self.model: Mapping[str, Any] = {"patch_encoder": None, **self.folder.described.model}
        space = self.folder.described.contrastive
        self.tasks = {"contrastive": {"loss_kind": space}} if space else {}

    @functools.cached_property
    def _weights(self) -> Weights:
        return Weights(self.folder)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._weights.shapes

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        return self._weights.read(wanted)

    def adapts(self, name: str, shape: tuple[int, ...]) -> str:
        """How a parameter of the folder becomes one of another shape, in words; "" where it cannot."""
        return self._weights.adapts(name, shape)

    def carry(self, workdir: Path) -> None:
        keep_origin(self.folder, workdir)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        files = sorted({tensor.file for tensor in self.folder.tensors.values()})
        return {
            "path": str(self.path.absolute()),
            "step": 0,
            "sha256": content_hash([*files, self.path / "config.json"]),
        }

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Of the plain `config.processor` what the folder says."""
        own: dict[str, Any] = {}
        if self.model["patch_encoder"] is not None:
            own["image"] = picture_settings(self.folder)
        if self.folder.described.vocab_size:
            own = merge(own, text_settings(self.folder, self._vocabulary, self._base))
        return own

    @functools.cached_property
    def processor(self) -> Processor:
        """Its labels are those of the folder's classifier. A model without texts has a tokenizer for those alone."""
        config = build(ProcessorConfig, self.settings, self.folder.where)
        labels = self.folder.described.labels
        if config.tokenizer.path:
            tokenizer = open_vocabulary(self.folder, plain(config.tokenizer), self._base)
        elif self.folder.described.vocab_size:
            tokenizer = ids_alone(self.folder)
        else:
            tokenizer = train_bpe(labels, TokenizerConfig.vocab_size, lower=True)
        copied = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        return Processor(
            **{**copied, "tokenizer": tokenizer, "answers": (), "labels": labels, "captions": config.captions or 1}
        )
