"""Several sources of parameters as one: a tower from here, a language model from there."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from mmjax.errors import ConfigError
from mmjax.init_config import WHERE

_PICTURES = "image"  # the key of the processor's settings that belongs to the patch encoder; the others are of texts


class Combined:
    """What `config.init` names, each part of the model from its own source, the rest from `path`.

    Args:
      opened: {"path" or a part: source}.
      checkpoint: of the workdirs among them, as it was asked for.

    Raises:
      ConfigError: a source without the part that it is named for; texts for two different vocabularies.
    """

    def __init__(self, opened: Mapping[str, Any], checkpoint: str = "best"):
        self.opened, self._checkpoint = opened, checkpoint
        self.path = ", ".join(f"{name}={source.path}" for name, source in opened.items())
        for part, source in opened.items():
            if part != "path" and not any(name.startswith(f"{part}/") for name in source.shapes):
                has = sorted({name.split("/")[0] for name in source.shapes})
                raise ConfigError(f"{WHERE}.{part}: '{source.path}' has no {part}. It has {', '.join(has)}.")
        self._pictures, self._texts = self._reader("patch_encoder"), self._reader("text_encoder", "decoder")

    def _reader(self, *parts: str) -> Any:
        """The source whose processor serves these parts."""
        found = {part: source for part in parts if (source := self.opened.get(part) or self.opened.get("path"))}
        if len({id(source) for source in found.values()}) < 2:
            return next(iter(found.values()), None)
        (part, first), *others = found.items()
        for other, source in others:
            if (
                first.processor
                and source.processor
                and not first.processor.tokenizer.extends(source.processor.tokenizer)
            ):
                raise ConfigError(
                    f"{WHERE}: the {part} of '{first.path}' and the {other} of '{source.path}' have different "
                    "vocabularies. Expected one for the whole model."
                )
        return first

    def _source(self, name: str) -> Any:
        """The source that gives a parameter, or None."""
        part = name.split("/")[0]
        return self.opened.get(part) or self.opened.get("path")

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            name: shape
            for source in self.opened.values()
            for name, shape in source.shapes.items()
            if self._source(name) is source
        }

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        given = {}
        for source in self.opened.values():
            own = {name: spec for name, spec in wanted.items() if self._source(name) is source}
            given |= source.read(own) if own else {}
        return given

    def adapts(self, name: str, shape: tuple[int, ...]) -> str:
        return self._source(name).adapts(name, shape)

    @property
    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for name, source in self.opened.items():
            digest.update(f"{name} {source.identity['sha256']}\n".encode())
        paths = {name: str(source.path.absolute()) for name, source in self.opened.items()}
        return {"path": self.path, "step": self._checkpoint, "sha256": digest.hexdigest(), "init": paths}

    @functools.cached_property
    def model(self) -> dict[str, Any]:
        """Settings of the whole of `path`, with the parts that come from elsewhere."""
        whole = dict(self.opened["path"].model or {}) if "path" in self.opened else {}
        for part, source in self.opened.items():
            if part != "path" and source.model:
                whole[part] = source.model[part]
        return whole

    def carry(self, workdir: Path) -> None:
        if "path" in self.opened:
            self.opened["path"].carry(workdir)

    @property
    def tasks(self) -> Mapping[str, Any]:
        return self.opened["path"].tasks if "path" in self.opened else {}

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        pictures, texts = ((source and source.settings) or {} for source in (self._pictures, self._texts))
        return {k: v for k, v in pictures.items() if k == _PICTURES} | {
            k: v for k, v in texts.items() if k != _PICTURES
        }

    @functools.cached_property
    def processor(self) -> Any:
        """That of the texts, with the pictures' settings; None where no source has a vocabulary."""
        if self._texts is None or self._texts.processor is None:
            return None
        pictures = self._pictures and self._pictures.processor
        return dataclasses.replace(self._texts.processor, **({"image": pictures.image} if pictures else {}))
