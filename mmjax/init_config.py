"""What a run begins with: `config.init`, and what it names.

A source is what `init.path` names. Whatever its kind it has

    shapes      {flat name: shape} of the parameters that it gives
    read(wanted)    {name: ShapeDtypeStruct with a sharding} -> {name: array}
    identity    {"path", "step", "sha256"}, kept in each checkpoint that leaves the source's parameters out
    adapts(name, shape)     how a parameter becomes one of another shape, in words; "" where it cannot
    model       the plain `config.model` that its weights are for, or None where the config has to say it
    tasks       keys of `config.tasks.NAME` by the task's kind that a run begins with
    settings    the plain `config.processor` that a run on top of it begins with (parts of it), or None
    processor   its fitted Processor, or None
    carry(workdir)      keeps in a new workdir what an export of it will need beside the parameters
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from mmjax.errors import ConfigError

WHERE = "config.init"
PARTS = ("patch_encoder", "text_encoder", "decoder")


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Attributes:
    path: the workdir of an earlier run, or a Hugging Face folder: every parameter that it has is taken, the others
      begin at random. "" begins all at random.
    patch_encoder, text_encoder, decoder: the same for one part of the model alone, each from a folder of its own.
    checkpoint: of an earlier run: "best", "latest" or a step.
    fresh: patterns of parameters that begin at random although the source has them.
    """

    path: str = ""
    patch_encoder: str = ""
    text_encoder: str = ""
    decoder: str = ""
    checkpoint: str = "best"
    fresh: tuple[str, ...] = ()

    @property
    def paths(self) -> dict[str, str]:
        """{key of this config: folder}, of those that are set."""
        return {name: path for name in ("path", *PARTS) if (path := getattr(self, name))}

    def __str__(self) -> str:
        return self.path if [*self.paths] == ["path"] else ", ".join(f"{n}={path}" for n, path in self.paths.items())

    def check(self, where: str) -> None:
        for pattern in self.fresh:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"{where}.fresh: '{pattern}' is no regular expression ({error}).") from error
        if self.fresh and not self.paths:
            raise ConfigError(f"{where}.fresh: says what is not taken, but {where}.path is empty.")


def pinned(init: InitConfig, base: Mapping[str, Any] | None) -> InitConfig:
    """`init` at the checkpoint that `base`, an identity, names: a run that is read may have a better one by now."""
    return dataclasses.replace(init, checkpoint=str(base["step"])) if base else init
