"""A Hugging Face folder: config.json, the tensors' places, and what its family says of them. Strict both ways."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mmjax.errors import ConfigError, did_you_mean
from mmjax.pretrained.families import family_of
from mmjax.pretrained.family import Described, Tensor
from mmjax.pretrained.sentences import pooling_of
from mmjax.pretrained.settings import check_spellings, read_json
from mmjax.pretrained.tensor_files import Stored, open_tensors

_SHOWN = 4  # tensors that a message names


@dataclass(frozen=True)
class Folder:
    """Attributes:
    config: config.json as transformers completes it. raw: as it lies there.
    tensors: {key: where its numbers are}.
    keys: {key that an export writes: the keys of the files that hold the tensor, the first of which is read}.
    """

    path: Path
    where: str
    raw: Mapping[str, Any]
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    family: ModuleType
    described: Described
    keys: Mapping[str, tuple[str, ...]]

    def json(self, *names: str) -> dict[str, Any]:
        """What the first of these files says; {} where there is none."""
        return next((read_json(self.path / n, self.where) for n in names if (self.path / n).is_file()), {})

    @property
    def aside(self) -> list[str]:
        """Keys that no part of ours uses."""
        used = {key for keys in self.keys.values() for key in keys}
        return [key for key in self.tensors if key not in used]


def open_folder(path: str | Path, where: str) -> Folder:
    """Reads the config and the headers of a folder, and accounts for every key. No number is read.

    Raises:
      ConfigError: no such folder; a family that is not known; tensors that are missing, or that nothing uses.
    """
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{where}: no file '{folder / 'config.json'}'. Expected a Hugging Face folder.")
    raw = read_json(folder / "config.json", where)
    family = family_of(str(raw.get("model_type")), f"{where}: '{folder / 'config.json'}'")
    check_spellings(raw, f"{where}: '{folder / 'config.json'}'")
    config = complete_config(folder, where) | pooling_of(folder, where)
    tensors = open_tensors(folder, where)
    try:
        described = family.read(config, frozenset(tensors))
    except ConfigError as error:
        raise ConfigError(f"{where}: '{folder}': {error}") from error
    return Folder(
        folder, where, raw, config, tensors, family, described, account(described, tensors, f"{where}: '{folder}'")
    )


def complete_config(folder: Path, where: str) -> dict[str, Any]:
    """config.json with the defaults of its family filled in, as transformers does."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would say that torch is not there
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    except Exception as error:  # whatever its validation raises
        raise ConfigError(f"{where}: transformers cannot read '{folder / 'config.json'}': {error}") from error


def account(described: Described, keys: Iterable[str], where: str) -> dict[str, tuple[str, ...]]:
    """{tensor.theirs: its keys in the files}. ConfigError where one is missing, or a key is neither used nor aside."""
    there = list(keys)
    known = set(there)
    placed = {t.theirs: tuple(k for k in (t.theirs, *t.also) if k in known) for t in described.tensors}
    missing = [t for t in described.tensors if not placed[t.theirs]]
    used = {key for found in placed.values() for key in found}
    unused = [k for k in there if k not in used and not any(matches(k, pattern) for pattern in described.aside)]
    if missing or unused:
        raise ConfigError(f"{where}: " + " ".join(_faults(missing, unused)))
    return placed


def matches(key: str, pattern: str) -> bool:
    """Whether a key is one that `Described.aside` names: a regular expression that fits the whole of it."""
    return re.fullmatch(pattern, key) is not None


def _faults(missing: list[Tensor], unused: list[str]) -> Iterable[str]:
    for tensor in missing[:_SHOWN]:
        yield f"no tensor '{tensor.theirs}' (for {', '.join(tensor.ours)}).{did_you_mean(tensor.theirs, unused)}"
    if len(missing) > _SHOWN:
        yield f"And {len(missing) - _SHOWN} more are missing."
    if unused:
        more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
        yield f"Nothing uses {', '.join(map(repr, unused[:_SHOWN]))}{more}."
