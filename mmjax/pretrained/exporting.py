"""`mmjax export`: a workdir -> a Hugging Face folder that transformers loads, and `mmjax import` reads to the bit."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from mmjax.config import merge
from mmjax.errors import ConfigError
from mmjax.pretrained.config_json import completed, describe_export
from mmjax.pretrained.families import families, family_of
from mmjax.pretrained.family import Described
from mmjax.pretrained.origin import ORIGIN
from mmjax.pretrained.processor_files import write_processor
from mmjax.pretrained.sentences import FILES as SENTENCES
from mmjax.pretrained.settings import read_json
from mmjax.pretrained.tensor_files import DTYPES, SHARD_BYTES, Stored, ToWrite, open_tensors, write_tensors

_DTYPES = {"float32": DTYPES["F32"], "float16": DTYPES["F16"], "bfloat16": DTYPES["BF16"]}


def export_workdir(workdir: Path, checkpoint: str, overrides: Mapping[str, str], out: Path, dtype: str) -> int:
    """Writes config.json, safetensors, the tokenizer and the picture settings of a run's checkpoint.

    A run that began with a Hugging Face folder keeps what of its config has not changed; any other is written as the
    first family that can say all that the model is.

    Raises:
      ConfigError: no family can; the message names the settings. A parameter that has no place in the family.
    """
    from mmjax.trained import open_trained

    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"OUT: '{out}' is not empty. Expected a new folder.")
    trained = open_trained(workdir, checkpoint, overrides)
    origin = workdir / ORIGIN
    came = (origin / "config.json").is_file()
    raw = read_json(origin / "config.json", "export") if came else {}
    aside = open_tensors(origin, "export") if any(origin.glob("*.safetensors")) else {}
    labels = trained.processor.labels if trained.model.heads else ()
    config, described = _said(raw, trained.model, labels, aside)
    tensors = [*_tensors(described, trained.params, _DTYPES[dtype]), *_carried(aside, described)]
    out.mkdir(parents=True, exist_ok=True)
    files = write_tensors(out, tensors, SHARD_BYTES)
    (out / "config.json").write_text(json.dumps({**config, "dtype": dtype}, indent=2) + "\n")
    for name in ("generation_config.json", *SENTENCES):
        if (origin / name).is_file():
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(origin / name, out / name)
    write_processor(trained.processor, trained.model, out, origin if came else None)
    size = sum(t.nbytes for t in tensors)
    print(f"written: {out}: {config['model_type']}, {len(tensors)} tensors, {size / 1e6:,.1f} MB in {len(files)} files")
    return 0


def _said(
    raw: Mapping[str, Any], model: Any, labels: Collection[str], aside: Collection[str]
) -> tuple[dict[str, Any], Described]:
    """config.json of the model, and what its family reads from it; `raw`: that which the run began with, or {}."""
    refused = []
    for family in _in_order(raw):
        try:
            config, described = describe_export(family, model, labels, aside if _same(family, raw) else ())
        except ConfigError as error:
            refused.append(f"  {family.NAME}: {error}")
            continue
        return (_laid(raw, config, described, family), described) if _same(family, raw) else (config, described)
    raise ConfigError("no family can say what this model is:\n" + "\n".join(refused))


def _same(family: ModuleType, raw: Mapping[str, Any]) -> bool:
    return raw.get("model_type") in family.MODEL_TYPES


def _in_order(raw: Mapping[str, Any]) -> list[ModuleType]:
    """All families, that of the run's beginning first."""
    first = [family_of(raw["model_type"], "export")] if raw else []
    return first + [family for family in families() if family not in first]


def _laid(
    raw: Mapping[str, Any], config: Mapping[str, Any], described: Described, family: ModuleType
) -> dict[str, Any]:
    """The config that the run began with, and what has changed since; it says the same to the family."""
    replaced = {"id2label", "label2id"} if "id2label" in config else set()
    kept = {k: v for k, v in raw.items() if k not in replaced and not k.endswith("_config_dict")}
    laid = merge(kept, config)
    again = family.read(completed(laid))
    if (again.model, again.image_size, again.vocab_size, again.tensors) != (
        described.model, described.image_size, described.vocab_size, described.tensors,
    ):  # fmt: skip
        raise ConfigError(f"export: {family.NAME}: the config that the run began with contradicts the model: {laid}")
    return laid


def _tensors(described: Described, params: Mapping[str, jax.Array], dtype: np.dtype) -> Iterator[ToWrite]:
    """Every parameter in the family's layout. ConfigError for one that has no place."""
    held = {name for tensor in described.tensors for name in tensor.ours}
    homeless = [n for n in params if n not in held and n not in described.dropped]
    if homeless:
        more = f" and {len(homeless) - 1} more" if len(homeless) > 1 else ""
        raise ConfigError(
            f"export: '{homeless[0]}'{more} has no place in the family that can say the model's settings."
        )
    for tensor in described.tensors:
        arrays = [params[name] for name in tensor.ours]
        shape = tuple(tensor.layout.their_shape([a.shape for a in arrays]))

        def make(tensor: Any = tensor, arrays: Any = tuple(arrays), shape: Any = shape) -> np.ndarray:
            whole = tensor.layout.to_theirs([np.asarray(a) for a in arrays]).reshape(shape)
            cast = whole.astype(dtype)
            if not np.isfinite(cast).all() and np.isfinite(whole).all():
                raise ConfigError(f"--dtype {dtype}: {tensor.theirs} has numbers above its range. Use bfloat16.")
            return cast

        yield ToWrite(tensor.theirs, dtype, shape, make)


def _carried(aside: Mapping[str, Stored], described: Described) -> Iterator[ToWrite]:
    written = {tensor.theirs for tensor in described.tensors}
    for key, stored in aside.items():
        if key not in written and math.prod(stored.shape):
            yield ToWrite(key, stored.dtype, stored.shape, stored.map)
