"""What a config takes over from what it begins with: the settings of the model, the tasks and the processor."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.config import build, differences, flatten, merge, plain
from mmjax.errors import ConfigError
from mmjax.init_config import WHERE, InitConfig
from mmjax.workdir import source_of


def inherit(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A plain config laid on what `init` says of the model, the tasks and the processor. Each key of the processor that
    it sets otherwise is printed; a setting of the model that contradicts the weights is an error.
    """
    tokenizer = (mapping.get("processor") or {}).get("tokenizer") or {}
    root = (mapping.get("data") or {}).get("root", "")
    source = source_of(build(InitConfig, mapping.get("init") or {}, WHERE), str(tokenizer.get("path", "")), str(root))
    if source is None:
        return dict(mapping)
    laid = dict(mapping)
    if source.model:
        laid["model"] = lay_model(source, mapping.get("model") or {})
    if source.tasks:
        kinds = {name: (own or {}).get("kind", name) for name, own in (mapping.get("tasks") or {}).items()}
        laid["tasks"] = {n: {**source.tasks.get(kind, {}), **(mapping["tasks"][n] or {})} for n, kind in kinds.items()}
    if source.settings:
        laid["processor"] = _lay_processor(source, mapping.get("processor") or {})
    return laid


def _lay_processor(source: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    from mmjax.data.processor import ProcessorConfig

    laid = plain(build(ProcessorConfig, merge(source.settings, own), "config.processor"))
    theirs = plain(build(ProcessorConfig, source.settings, str(source.path)))
    for key, (old, new) in differences(theirs, laid).items():
        if key in flatten(source.settings):
            print(f"config.processor.{key}: {old!r} -> {new!r} overrides the source's")
    return laid


def run_sizes(path: str) -> dict[str, Any]:
    """{part of the model: its sizes}, and embed_dim, of the run in a workdir; {} where `path` is none."""
    file = Path(path, "config.json")
    if not path or not (file.parent / "checkpoints").is_dir() or not file.is_file():
        return {}
    model = json.loads(file.read_text())["model"]
    parts = {n: {k: part[k] for k in ("size", *_SIZES)} for n, part in model.items() if isinstance(part, dict)}
    return parts | {"embed_dim": model["embed_dim"]}


# What a config may say of a part although its weights come from elsewhere: no parameter that they hold depends on it.
_FREE = {
    "size",
    "adapter",
    "dropout",
    "drop_path",
    "patch_dropout",
    "remat",
    "scan",
    "pool",
    "tokens_layer",
    "tokens_cls",
}
# How a language model reads pictures, where its weights have nothing for that.
_FREE_ALONE = {"memory", "connector", "prefix_attention"}
_READS = re.compile(r"decoder/(memory_projection.*|.*/cross_.*)").fullmatch
_SIZES = ("width", "depth", "heads", "head_dim", "kv_heads", "mlp_dim")


def lay_model(source: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """The plain `config.model` of the source's weights with what a config adds; a part that it calls none is left.

    Raises ConfigError where the config says otherwise than the weights.
    """
    from mmjax.models.multimodal import ModelConfig

    hints, laid = typing.get_type_hints(ModelConfig), {**source.model, **own}
    for name, given in source.model.items():
        where = f"config.model.{name}"
        said = own.get(name)
        if isinstance(given, Mapping) and (name not in own or isinstance(said, Mapping)):
            kind = next(k for k in (*typing.get_args(hints[name]), hints[name]) if dataclasses.is_dataclass(k))
            free = _FREE | (_FREE_ALONE if name == "decoder" and not any(map(_READS, source.shapes)) else set())
            like = hints["text_encoder"] if name == "fusion" else None  # whose sizes a fusion has where it says none
            like = like and build(like, source.model["text_encoder"], where).sized(where)
            laid[name] = _lay_part(kind, given, said or {}, where, source.path, free, like)
        elif given is not None and name in own and build(hints[name], said, where) != given:
            raise _contradiction(where, build(hints[name], said, where), source.path, given)
    return laid


def _lay_part(
    kind: type, given: Mapping[str, Any], own: Mapping[str, Any], where: str, path: Any, free: set[str], like: Any
) -> dict[str, Any]:
    theirs = build(kind, given, str(path)).sized(str(path), like)
    said = {**given, **(dict.fromkeys(_SIZES, 0) if own.get("size") else {}), **own}
    ours = build(kind, said, where).sized(where, like)
    free = free | {"length"} if getattr(theirs, "position", "learned") != "learned" else free
    for field in dataclasses.fields(kind):
        old, new = getattr(theirs, field.name), getattr(ours, field.name)
        if old != new and field.name not in free:
            raise _contradiction(f"{where}.{field.name}", new, path, old)
    return {k: v for k, v in {**given, **own}.items() if k != "size"}


def _contradiction(where: str, found: Any, path: Any, given: Any) -> ConfigError:
    return ConfigError(
        f"{where}: found {found!r}, but the weights of '{path}' are for {given!r}. Leave it out to take theirs."
    )
