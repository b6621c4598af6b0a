"""Configs: load a file, override on the command line, validate into frozen dataclasses.

A config file defines `get_config()`, which returns an `ml_collections.ConfigDict` (or a dict) holding only what differs
from the defaults. `load` merges the command line over it and builds the frozen `Config` of `mmjax/experiment.py`; each
part of it lives beside the code that reads it. An unknown key, a wrong type or an impossible value is a `ConfigError`
that names the key.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.errors import ConfigError, did_you_mean


def choice(*options: str, default: str | None = None) -> Any:
    """A string field that takes only `options`; the first is the default unless said otherwise."""
    return dataclasses.field(default=options[0] if default is None else default, metadata={"options": options})


def share(default: float = 0.0) -> Any:
    """A number field that takes what is at least 0 and below 1."""
    return dataclasses.field(default=default, metadata={"share": True})


def read_file(path: str) -> dict[str, Any]:
    """Runs `get_config()` of a config file and returns it as a plain nested dict."""
    file = Path(path)
    if not file.is_file():
        near = did_you_mean(str(file), map(str, file.parent.glob("*.py"))) if file.parent.is_dir() else ""
        raise ConfigError(f"--config: no file '{path}'.{near}")
    spec = importlib.util.spec_from_file_location(f"mmjax_config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path}: defines no get_config(). Expected a function that returns a ConfigDict.")
    return plain(module.get_config())


def plain(value: Any) -> Any:
    """ConfigDicts, dataclasses, tuples -> dicts and lists, as JSON would hold them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "items"):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`--config.a.b=v` or `--config.a.b v` -> {"a.b": "v"}. Anything else is an error."""
    overrides, rest = {}, list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--config."):
            raise ConfigError(f"unknown argument '{argument}'. Config values are given as --config.KEY=VALUE.")
        key, equals, value = argument[len("--config.") :].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--config.{key}: no value. Expected --config.{key}=VALUE.")
            value = rest.pop(0)
        overrides[key] = value
    return overrides


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, key by key; both nested dicts."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        node = tree
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"config.{key}: '{parent}' already has a value.")
        node[last] = value
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; empty dicts stay as values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, name + "."))
        else:
            flat[name] = value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ between two nested dicts -> (old, new); an absent side is None."""
    a, b = flatten(plain(old)), flatten(plain(new))
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}


def build(kind: type, value: Any, where: str) -> Any:
    """Builds `kind` (a dataclass, a container or a scalar type) from plain data, checking every key and type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        options = [a for a in arguments if a is not type(None)]
        if value is None or (value in ("none", "None") and type(None) in arguments and str not in options):
            return None
        return build(options[0], value, where)
    builder = getattr(kind, "from_config", None)
    if builder is not None:
        return builder(value, where)
    if dataclasses.is_dataclass(kind):
        return build_dataclass(kind, value, where)
    if kind is not str:
        value = parsed(value)
    if origin in (dict, Mapping):
        _expect(isinstance(value, Mapping), where, value, "a mapping")
        return {str(k): build(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin is tuple:
        value = [value] if isinstance(value, str) and arguments == (str, Ellipsis) else value  # one of a list
        _expect(isinstance(value, (list, tuple)), where, value, "a list")
        each = [arguments[0]] * len(value) if len(arguments) == 2 and arguments[1] is Ellipsis else list(arguments)
        _expect(len(each) == len(value), where, value, f"{len(each)} values")
        return tuple(build(t, v, f"{where}[{i}]") for i, (t, v) in enumerate(zip(each, value, strict=True)))
    if kind is float:
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), where, value, "a number")
        return float(value)
    if kind is int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        _expect(whole and not isinstance(value, bool), where, value, "a whole number")
        return int(value)
    if kind is bool:
        _expect(isinstance(value, bool), where, value, "true or false")
        return value
    if kind is str:
        _expect(isinstance(value, str), where, value, "text")
        return value
    return value


def parsed(value: Any) -> Any:
    """A command line text as the value that it stands for; anything else as it is."""
    return _parse(value) if isinstance(value, str) else value


def _parse(text: str) -> Any:
    """The value that a command line text stands for."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return [_parse(t.strip()) for t in text.split(",")] if "," in text else text


def _expect(holds: bool, where: str, found: Any, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{where}: found {found!r} ({type(found).__name__}), expected {expected}.")


def build_dataclass(kind: type, value: Any, where: str) -> Any:
    """`build` for a dataclass, passing by its own `from_config`; a method `check(where)` sees the finished object."""
    if isinstance(value, kind):
        return value
    _expect(isinstance(value, Mapping), where, value, "a group of keys")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    for key in value:
        if key not in fields:
            near = did_you_mean(key, fields)
            known = "" if near else f" Known keys: {', '.join(sorted(fields))}."
            raise ConfigError(f"{where}.{key}: no such key.{near}{known}")
    built = {}
    for name, field in fields.items():
        if name not in value:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise ConfigError(f"{where}.{name}: missing. It has no default.")
            continue
        built[name] = build(hints[name], value[name], f"{where}.{name}")
        options = field.metadata.get("options")
        if options and built[name] not in options:
            near = did_you_mean(str(built[name]), options)
            raise ConfigError(f"{where}.{name}: found '{built[name]}', expected one of {', '.join(options)}.{near}")
        if field.metadata.get("share") and not 0 <= built[name] < 1:
            raise ConfigError(f"{where}.{name}: found {built[name]}, expected a share in [0, 1).")
    made = kind(**built)
    check = getattr(made, "check", None)
    if check is not None:
        check(where)
    return made
