"""What config.json says <-> our settings: a row a key, read and written by the same table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmjax.errors import ConfigError, did_you_mean

# Several names of transformers mean one function; the first is written.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
WHERE = "config.json"
_HISTORY = {"transformers_version", "torch_dtype", "dtype", "_name_or_path"}  # how a file came to be


class Setting(NamedTuple):
    """One key of config.json and one field of our config.

    values: {theirs: ours} where they are spelled differently; any other value is an error, both ways. None: the same.
    """

    theirs: str
    ours: str
    values: Mapping[Any, Any] | None = None


# What the encoders of pictures and texts, and the Llamas, call alike.
SIZES = (
    Setting("hidden_size", "width"),
    Setting("num_hidden_layers", "depth"),
    Setting("num_attention_heads", "heads"),
)
ENCODER = (
    *SIZES,
    Setting("intermediate_size", "mlp_dim"),
    Setting("hidden_act", "activation", ACTIVATIONS),
    Setting("layer_norm_eps", "eps"),
)


def read_settings(table: Sequence[Setting], config: Mapping[str, Any], where: str = WHERE) -> dict[str, Any]:
    """{our field: value}. ConfigError for a key that is not there, or a value that is not known."""
    return {row.ours: _translated(row, config, where) for row in table}


def _translated(row: Setting, config: Mapping[str, Any], where: str) -> Any:
    value = required(config, row.theirs, where)
    if row.values is None:
        return value
    if value not in row.values:
        near = did_you_mean(str(value), [str(v) for v in row.values])
        raise ConfigError(f"{where}: {row.theirs}: found {value!r}, can be read: {_listed(row.values)}.{near}")
    return row.values[value]


def write_settings(table: Sequence[Setting], part: Any) -> dict[str, Any]:
    """{their key: value} of a config of ours with its sizes filled in; the inverse of `read_settings`."""
    written = {}
    for row in table:
        value = getattr(part, row.ours)
        if row.values is not None:
            spelled = [theirs for theirs, ours in row.values.items() if value in (ours, theirs)]
            if not spelled:
                known = _listed(dict.fromkeys(row.values.values()))
                raise ConfigError(f"export: {row.ours}: found {value!r}; {row.theirs} can say {known}.")
            value = spelled[0]
        written[row.theirs] = value
    return written


def required(config: Mapping[str, Any], key: str, where: str = WHERE) -> Any:
    """config[key]; ConfigError where it is absent or null."""
    if config.get(key) is None:
        raise ConfigError(f"{where}: {key}: missing.")
    return config[key]


def demand(config: Mapping[str, Any], expected: Mapping[str, Any], where: str = WHERE) -> None:
    """ConfigError where a key has another value than the only one that our model knows; it may be absent."""
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ConfigError(f"{where}: {key}: found {config[key]!r}, only {value!r} can be read.")


def pair(config: Mapping[str, Any], key: str, where: str = WHERE) -> tuple[int, int]:
    """(height, width) of a side or of two."""
    value = required(config, key, where)
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


def side(config: Mapping[str, Any], key: str, where: str = WHERE) -> int:
    """The one side of a square."""
    height, width = pair(config, key, where)
    if height != width:
        raise ConfigError(f"{where}: {key}: found {height} x {width}, only squares can be read.")
    return height


def patches(config: Mapping[str, Any], where: str = WHERE) -> dict[str, Any]:
    """Side of a patch, and whether pictures have a rim that fills none: torch's convolution leaves it out."""
    patch = side(config, "patch_size", where)
    return {"patch": patch, "cut_rim": any(s % patch for s in pair(config, "image_size", where))}


def as_size(size: tuple[int, int]) -> int | list[int]:
    """(height, width) as config.json says it: a square by its side."""
    return size[0] if size[0] == size[1] else list(size)


def ids(config: Mapping[str, Any], **named: str) -> dict[str, int]:
    """{our name: id} of the token ids that config.json knows. One that is a list (Llama 3's eos) is left out: which of
    them ends a text is said by the tokenizer.
    """
    return {ours: config[theirs] for ours, theirs in named.items() if isinstance(config.get(theirs), int)}


def check_spellings(raw: Mapping[str, Any], where: str = WHERE) -> None:
    """ConfigError where a config.json says the same thing in two ways that differ: transformers would quietly take one
    of them. raw: as it lies in the folder.
    """
    rope = raw.get("rope_parameters") or {}
    if "rope_theta" in raw and raw["rope_theta"] != rope.get("rope_theta", raw["rope_theta"]):
        raise ConfigError(
            f"{where}: rope_theta: found {raw['rope_theta']} there, and {rope['rope_theta']} in rope_parameters. "
            "Expected one of them, or the same."
        )
    scaling = raw.get("rope_scaling") or {}
    for key in sorted(scaling.keys() & rope.keys()):
        if scaling[key] != rope[key]:
            raise ConfigError(
                f"{where}: rope_scaling.{key}: found {scaling[key]!r} there, and {rope[key]!r} in rope_parameters. "
                "Expected one of them, or the same."
            )
    for name, block in (("rope_scaling", scaling), ("rope_parameters", rope)):
        if block.get("type", block.get("rope_type")) != block.get("rope_type", block.get("type")):
            raise ConfigError(
                f"{where}: {name}: found type {block['type']!r} and rope_type {block['rope_type']!r}. "
                "Expected one of them, or the same."
            )
    for part in ("text_config", "vision_config"):
        old, new = raw.get(f"{part}_dict") or {}, raw.get(part) or {}
        for key in sorted((old.keys() & new.keys()) - _HISTORY):
            if old[key] != new[key]:
                raise ConfigError(
                    f"{where}: {part}.{key}: found {new[key]!r} there, and {old[key]!r} in {part}_dict. Expected the "
                    "same; remove the one that is wrong."
                )
        check_spellings(new, f"{where}: {part}") if new else None


def _listed(values: Any) -> str:
    return ", ".join(repr(v) for v in values)


def read_json(file: Path, where: str) -> dict[str, Any]:
    """A JSON file that holds a mapping."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{where}: '{file}' is no JSON ({error}).") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: '{file}' holds {type(found).__name__}, expected a mapping.")
    return found
