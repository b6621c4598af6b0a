"""Our model -> the config.json of a family, and the proof that nothing of the model is lost in it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from mmjax.config import build
from mmjax.errors import ConfigError
from mmjax.models.multimodal import ModelConfig, Multimodal
from mmjax.pretrained.family import Described
from mmjax.pretrained.settings import ACTIVATIONS

PARTS = ("patch_encoder", "text_encoder", "sound_encoder", "fusion", "decoder")
# How a run computes or regularises, not what the weights mean; sizes are compared, not the name of a size, and whether
# there is a rim to be cut follows from them.
OF_THE_RUN = {"size", "dtype", "dropout", "drop_path", "patch_dropout", "remat", "scan", "cut_rim"}


def parts(model: Multimodal, *names: str) -> tuple[Any, ...]:
    """The configs of these parts, with sizes filled in. ConfigError where the model has others, more or fewer."""
    has = sized_parts(model.config)
    if sorted(has) != sorted(names):
        raise ConfigError(f"export: the model has {', '.join(has)}; expected {', '.join(names)} and nothing else.")
    return tuple(has[name] for name in names)


def sized_parts(config: ModelConfig) -> dict[str, Any]:
    """The configs of the parts that a model has, with sizes filled in."""
    towers = {n: getattr(config, n) for n in PARTS if n != "fusion" and getattr(config, n) is not None}
    sized = {name: part.sized(f"config.model.{name}") for name, part in towers.items()}
    if config.fusion.name != "none":
        like = next(iter([sized[n] for n in ("text_encoder", "patch_encoder") if n in sized]), None)
        sized["fusion"] = config.fusion.sized("config.model.fusion", like)
    return sized


def classes(model: Multimodal, source: str) -> int:
    """Outputs of the one classifier that Hugging Face models have, 0 without. ConfigError for other heads."""
    for name, _, reads in model.heads:
        if (name, reads) != ("classification", source) or len(model.heads) > 1:
            raise ConfigError(
                f"export: no place for the head '{name}'. Expected one 'classification' of {source} at most."
            )
    return model.heads[0].outputs if model.heads else 0


def label_names(labels: Sequence[str], count: int) -> dict[str, Any]:
    """`id2label` and `label2id` of `count` classes, called LABEL_0, ... where they have no names."""
    names = list(labels) or [f"LABEL_{i}" for i in range(count)]
    if not count:
        return {}
    if len(names) != count or len(set(names)) != count:
        raise ConfigError(f"export: {len(set(names))} different label names for {count} classes.")
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names of a config.json, in order."""
    named = {int(i): name for i, name in (config.get("id2label") or {}).items()}
    if sorted(named) != list(range(len(named))):
        raise ConfigError(f"config.json: id2label: found the classes {sorted(named)[:8]}, expected 0, 1, 2, ...")
    return tuple(named[i] for i in range(len(named)))


def describe_export(
    family: ModuleType, model: Multimodal, labels: Sequence[str] = (), aside: Collection[str] = ()
) -> tuple[dict[str, Any], Described]:
    """config.json of a model of ours, and what the family reads from it. No number is looked at.

    aside: keys of tensors that no part of ours uses, and that are written along.

    Raises:
      ConfigError: the family cannot say what the model is; names the settings that would be lost.
    """
    config = family.write(model, labels, aside)
    described = family.read(completed(config))
    lost = list(_differences(described, model))
    if lost:
        raise ConfigError(f"export: {family.NAME} cannot say all that the model is: {'; '.join(lost[:6])}.")
    return config, described


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the defaults of its family filled in, as transformers does."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would say that torch is not there
    from transformers import AutoConfig

    return AutoConfig.for_model(**config).to_dict()


def _differences(described: Described, model: Multimodal) -> Iterator[str]:
    read = build(ModelConfig, {"patch_encoder": None, **described.model}, "export")
    has, gets = sized_parts(model.config), sized_parts(read)
    for name in PARTS:
        if (name in has) != (name in gets):
            yield f"{name} would {'be lost' if name in has else 'appear'}"
        elif name in has:
            yield from _fields(name, _plainly(has[name]), _plainly(gets[name]))
    space = () if model.contrastive else ("embed_dim", "projection", "projection_bias")
    yield from _fields("model", model.config, read, skip={*PARTS, *space})
    reads = model.config.text_encoder or model.config.decoder
    checked = {
        "image_size": model.config.patch_encoder and model.image_size,
        "vocab_size": model.tokens.vocab_size if reads else 0,
        # Of one tower alone only the projection is there, whatever the loss.
        "contrastive": model.contrastive if {"patch_encoder", "text_encoder"} <= has.keys() else "",
    }
    if bool(model.contrastive) != bool(described.contrastive):
        yield f"the projection would {'be lost' if model.contrastive else 'appear'}"
    for name, ours in checked.items():
        if ours and ours != getattr(described, name):
            yield f"{name} is {ours!r}, and would be {getattr(described, name)!r}"
    heads = {h.name: (h.outputs, h.source) for h in model.heads}
    if heads != dict(described.heads):
        yield f"the heads are {heads}, and would be {dict(described.heads)}"


def _plainly(part: Any) -> Any:
    """The same with one spelling of what can be said in two ways."""
    return dataclasses.replace(
        part,
        activation=ACTIVATIONS.get(part.activation, part.activation),
        attention_bias=part.attention_bias or ("all" if part.bias else "none"),
    )


def _fields(where: str, ours: Any, theirs: Any, skip: Collection[str] = ()) -> Iterator[str]:
    for field in dataclasses.fields(ours):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name not in {*OF_THE_RUN, *skip} and a != b:
            yield f"{where}.{field.name} is {a!r}, and would be {b!r}"
