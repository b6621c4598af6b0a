"""The data sets of an experiment by their purpose: `DataConfig`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmjax.config import build_dataclass, share
from mmjax.data.sources import SourceConfig
from mmjax.errors import ConfigError, did_you_mean

SETS = ("train", "validation", "test", "eval")
_OF_TRAINING = ("pack_tokens", "pack_rows", "buckets")
_OF_STREAM = ("batch_size", *_OF_TRAINING)  # equal in all sources of a stream
_SOURCE_KEYS = {f.name for f in dataclasses.fields(SourceConfig)}


@dataclass(frozen=True)
class DataConfig:
    """Where rows come from. Each of the four is {name: source}; a single source may be written without its name.

    Attributes:
      root: the folder that relative paths start from.
      train: {name: source}: what tasks read in training. A source feeds the stream of its own name, or the one that its
        `stream` names; sources of one stream are mixed by their `weight`. The first stream is every task's default.
      validation, test, eval: {name: source}; each feeds the stream of its own name, else its `stream`, else the first.
        Fields left out are inherited from the training source of its name, else from the first of that stream; a
        `path` of its own drops the inherited root, split, format, fields and prompt.
      holdout: share of the training pictures that become the validation set where none is named; 0 trains on all.
      max_bad_fraction: share of a source's rows that may be unreadable; they are counted in bad_records.jsonl and
        others stand in. 0 ends the run at the first.
      check_overlap: whether to look for validation pictures in the training sets at the start (reads each once).
      threads: reader threads.
    """

    root: str = ""
    train: Mapping[str, SourceConfig] = field(default_factory=dict)
    validation: Mapping[str, SourceConfig] = field(default_factory=dict)
    test: Mapping[str, SourceConfig] = field(default_factory=dict)
    eval: Mapping[str, SourceConfig] = field(default_factory=dict)
    holdout: float = share(0.1)
    max_bad_fraction: float = share()
    check_overlap: bool = True
    threads: int = 2

    @property
    def streams(self) -> dict[str, dict[str, SourceConfig]]:
        """{stream: {name: training source}}."""
        streams: dict[str, dict[str, SourceConfig]] = {}
        for name, source in self.train.items():
            streams.setdefault(source.stream, {})[name] = source
        return streams

    def of_stream(self, stream: str) -> SourceConfig:
        """The first source of a stream, whose keys of `_OF_STREAM` are those of all. Without a training set, as of an
        imported model, the defaults.
        """
        found = (source for source in self.train.values() if source.stream == stream)
        return next(found) if self.train else SourceConfig()

    def batch_size(self, stream: str) -> int:
        """Rows of a stream in a step, or packed sequences."""
        return self.of_stream(stream).batch_size

    def check(self, where: str) -> None:
        for name, sources in self.streams.items():
            for key in _OF_STREAM:
                values = sorted({getattr(source, key) for source in sources.values()})
                if len(values) > 1:
                    raise ConfigError(
                        f"{where}.train: found {key} {' and '.join(map(str, values))} in the stream '{name}', "
                        "whose sources are mixed into one batch. Expected one value."
                    )
            if self.batch_size(name) < 1:
                raise ConfigError(
                    f"{where}.train.batch_size: missing for the stream '{name}'. Expected 1 or more rows."
                )

    @classmethod
    def from_config(cls, value: Any, where: str) -> DataConfig:
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: found {value!r}, expected a group of keys (train, validation, root, ...).")
        value = dict(value)
        train = _named(value.get("train", {}), "main", f"{where}.train")
        train = {name: {**own, "stream": own.get("stream") or name} for name, own in train.items()}
        streams = {own["stream"]: own for own in reversed(train.values())} or {"main": {}}
        first = next(iter(train.values()), {"stream": "main"})["stream"]
        tolerated = {"max_bad_fraction": value.get("max_bad_fraction", 0.0)}
        for group in SETS:
            sources = _named(value.get(group, {}), "main" if group == "train" else group, f"{where}.{group}")
            for name, own in sources.items():
                if group == "train":
                    sources[name] = {**tolerated, **train[name]}
                    continue
                default = train[name]["stream"] if name in train else name if name in streams else first
                stream = own.get("stream") or default
                if stream not in streams:
                    raise ConfigError(
                        f"{where}.{group}.stream: no stream '{stream}' in {where}.train.{did_you_mean(stream, streams)}"
                    )
                for key in _OF_TRAINING:
                    if key in own:
                        raise ConfigError(f"{where}.{group}.{key}: given, but only training does this. Leave it out.")
                dropped = ("root", "split", "format", "fields", "prompt") if own.get("path") else ()
                dropped = (*dropped, *_OF_TRAINING)
                inherited = {k: v for k, v in train.get(name, streams[stream]).items() if k not in dropped}
                sources[name] = {**tolerated, **inherited, **own, "stream": stream}
            value[group] = sources
        return build_dataclass(cls, value, where)


def _named(value: Any, default: str, where: str) -> dict[str, dict[str, Any]]:
    """A single source -> {default: source}; a mapping of sources stays. A stray key beside named sources fails."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: found {value!r}, expected a group of keys (path, root, batch_size, ...).")
    nested = {k: v for k, v in value.items() if isinstance(v, Mapping) and k not in _SOURCE_KEYS}
    flat = {k: v for k, v in value.items() if k not in nested}
    for key in flat:
        if key not in _SOURCE_KEYS:
            raise ConfigError(f"{where}.{key}: no such key.{did_you_mean(key, _SOURCE_KEYS)}")
    if not nested:
        return {default: flat} if flat else {}
    return {name: {**flat, **own} for name, own in nested.items()}
