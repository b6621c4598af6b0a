"""The experiment as one frozen object: `Config`, its data sets, its length; and its shrinking for a smoke test."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmjax.checkpoint import CheckpointConfig
from mmjax.config import build_dataclass, merge, nest, plain, read_file
from mmjax.data.processor import ProcessorConfig
from mmjax.data.sources import SourceConfig
from mmjax.errors import ConfigError, did_you_mean
from mmjax.initialisation import InitConfig, inherit, run_sizes
from mmjax.models.lora import AdaptConfig
from mmjax.models.multimodal import ModelConfig
from mmjax.models.patch_encoder import check_stem
from mmjax.optim import OptimizerConfig
from mmjax.sharding import MeshConfig
from mmjax.tasks import Task

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
    holdout: float = 0.1
    max_bad_fraction: float = 0.0
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

    @classmethod
    def from_config(cls, value: Any, where: str) -> DataConfig:
        if isinstance(value, cls):
            return value
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
                stream = own.get("stream") or (train[name]["stream"] if name in train else first)
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


@dataclass(frozen=True)
class EarlyStop:
    """Ends a run whose figure `checkpoint.best` no longer gets better.

    Attributes:
      patience: evaluations in a row without a change for the better; 0 never stops early.
      min_change: what counts as one: more than this beyond the best so far.
    """

    patience: int = 0
    min_change: float = 0.0

    def check(self, where: str) -> None:
        for name in ("patience", "min_change"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{where}.{name}: found {getattr(self, name)}, expected 0 or more.")

    def asks(self, values: Sequence[float], mode: str) -> bool:
        """Whether the figures so far, one an evaluation, end with `patience` of no change. mode: max or min."""
        if not self.patience:
            return False
        sign = 1 if mode == "max" else -1
        best, waited = -math.inf, 0
        for value in values:
            better = sign * value > best + self.min_change
            best, waited = (sign * value, 0) if better else (best, waited + 1)
        return waited >= self.patience


@dataclass(frozen=True)
class StageConfig:
    """A part of the run with an optimizer of its own: `config.optimizer` with the keys that are given here.

    Attributes:
      length: a duration; the last stage has none and takes what is left. Schedule and warm-up are those of the stage.
    """

    length: str = ""
    optimizer: OptimizerConfig = OptimizerConfig()


@dataclass(frozen=True)
class TrainConfig:
    """Length and manner of the training; exactly one of steps, epochs, examples is set.

    Attributes:
      steps, epochs, examples: how long. Epochs and examples count rows (pictures) of the first stream.
      accumulate: microbatches a step; the loss is that of the whole batch.
      ema: decay of the moving average of the trained parameters, 0 for none. Evaluation then uses the average, and
        shows the weights as they are beside it.
      early_stop: whether the run may end sooner.
      seed: of everything random: initial parameters, row order, augmentation, dropout.
      log_every: steps between lines of metrics.jsonl.
      max_bad_steps: the run stops after so many steps in a row without a finite gradient; each is skipped.
    """

    steps: int = 0
    epochs: float = 0.0
    examples: int = 0
    accumulate: int = 1
    ema: float = 0.0
    early_stop: EarlyStop = EarlyStop()
    seed: int = 0
    log_every: int = 10
    max_bad_steps: int = 10

    def check(self, where: str) -> None:
        given = [n for n in ("steps", "epochs", "examples") if getattr(self, n) > 0]
        if len(given) != 1:
            raise ConfigError(
                f"{where}: found {given or 'none'} of steps, epochs, examples; expected exactly one above 0."
            )
        if self.accumulate < 1:
            raise ConfigError(f"{where}.accumulate: found {self.accumulate}, expected 1 or more.")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"{where}.ema: found {self.ema}, expected a decay in [0, 1).")

    def total_steps(self, batch_size: int, rows: int) -> int:
        """Number of updates for batches of `batch_size` rows out of `rows` an epoch."""
        if self.steps:
            return self.steps
        examples = self.examples or self.epochs * rows
        return max(1, round(examples / batch_size))


@dataclass(frozen=True)
class EvalConfig:
    """Attributes:
    every: between evaluations on the validation sets (a duration: "10%", "500 steps", "1 epoch");
      "" is only at the end.
    start: also before the first step, so that a fault in evaluation shows at once.
    batch_size: rows a batch; 0 takes the training batch size, of packed rows as many as its sequences have places.
    examples: pictures in the panel of predictions.
    interpolate: shares a in [0, 1] at which `mmjax eval` also judges (1 - a) * base + a * trained, the base being what
      init.path gave (WiSE-FT: Wortsman et al., 2022). What the base lacks (a new head) is as trained at every share.
    probe: also judge the pictures' features as they are, by a linear probe and the nearest neighbours, both fitted on
      the training set, which is encoded for each set that is judged; sets and training set need labels.
    """

    every: str = "20%"
    start: bool = True
    batch_size: int = 0
    examples: int = 12
    interpolate: tuple[float, ...] = ()
    probe: bool = False

    def check(self, where: str) -> None:
        for share in self.interpolate:
            if not 0 <= share <= 1:
                raise ConfigError(
                    f"{where}.interpolate: found {share}, expected shares between 0 (base) and 1 (trained)."
                )


@dataclass(frozen=True)
class Config:
    """One experiment."""

    data: DataConfig
    tasks: Mapping[str, Task]
    model: ModelConfig
    train: TrainConfig
    processor: ProcessorConfig = ProcessorConfig()
    init: InitConfig = InitConfig()
    adapt: AdaptConfig = AdaptConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    stages: Mapping[str, StageConfig] = field(default_factory=dict)
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()

    def check_trainable(self, where: str = "config") -> None:
        """What a run needs beyond what a model needs that was imported, and is only evaluated."""
        if not self.data.train:
            raise ConfigError(f"{where}.data.train.path: missing. It names the file or folder to train on.")
        if not self.tasks:
            raise ConfigError(f"{where}.tasks: empty. Expected at least one, as tasks.contrastive.weight=1.")

    def check(self, where: str) -> None:
        for name, sources in self.data.streams.items():
            for key in _OF_STREAM:
                values = sorted({getattr(source, key) for source in sources.values()})
                if len(values) > 1:
                    raise ConfigError(
                        f"{where}.data.train: found {key} {' and '.join(map(str, values))} in the stream '{name}', "
                        "whose sources are mixed into one batch. Expected one value."
                    )
            if self.data.batch_size(name) < 1:
                raise ConfigError(
                    f"{where}.data.train.batch_size: missing for the stream '{name}'. Expected 1 or more rows."
                )
            if self.data.of_stream(name).pack_rows:
                self._check_packing(name, where)
        for name, task in self.tasks.items():
            if task.stream and self.data.train and task.stream not in self.data.streams:
                near = did_you_mean(task.stream, self.data.streams)
                raise ConfigError(
                    f"{where}.tasks.{name}.stream: no stream '{task.stream}' in {where}.data.train.{near}"
                )
            if task.couples_rows and self.train.accumulate > 1 and not hasattr(task, "embed"):
                raise ConfigError(
                    f"{where}.train.accumulate: found {self.train.accumulate}, but the task '{name}' compares rows of "
                    f"the whole batch and cannot be accumulated. Set train.accumulate=1, or leave the task out."
                )
        for i, (name, stage) in enumerate(self.stages.items()):
            last = i == len(self.stages) - 1
            if bool(stage.length) == last:
                expected = "no length: the last stage takes what is left" if last else "a length, such as '20%'"
                raise ConfigError(f"{where}.stages.{name}.length: found '{stage.length}', expected {expected}.")
        if self.train.early_stop.patience and not (self.checkpoint.best and self.eval.every):
            raise ConfigError(
                f"{where}.train.early_stop: goes by the figure {where}.checkpoint.best at every {where}.eval.every; "
                f"found '{self.checkpoint.best}' and '{self.eval.every}'. Set both, as in "
                "checkpoint.best=validation/vqa/accuracy."
            )
        unread = [n for n in self.data.streams if not self.tasks_of(n)]
        if unread:
            raise ConfigError(
                f"{where}.data.train.{unread[0]}: no task reads this stream. Name it in tasks.NAME.stream."
            )

    def _check_packing(self, stream: str, where: str) -> None:
        """Whether the sources, the tasks and the model of a packed stream can be packed."""
        key = f"{where}.data.train.pack_rows"
        if len(self.data.streams[stream]) > 1:
            raise ConfigError(f"{key}: the stream '{stream}' mixes sources, which cannot be packed yet. Set it to 0.")
        for name, task in self.tasks_of(stream).items():
            if not task.packs:
                raise ConfigError(
                    f"{key}: the task '{name}' does not read packed rows. Set it to 0, or give the task a "
                    "stream of its own."
                )
            if "decoder" in task.needs and self.model.decoder and self.model.decoder.memory == "prefix":
                raise ConfigError(
                    f"{key}: a decoder with memory 'prefix' does not read packed rows, as the task '{name}' would. Set "
                    f"it to 0, or {where}.model.decoder.memory to 'cross_attention'."
                )

    @property
    def first_stream(self) -> str:
        return next(iter(self.data.streams), "main")

    def tasks_of(self, stream: str) -> dict[str, Task]:
        """The tasks that read a stream, by name."""
        return {n: t for n, t in self.tasks.items() if (t.stream or self.first_stream) == stream}

    def features_of(self, stream: str) -> frozenset[str]:
        """All features that the tasks of a stream read."""
        return frozenset().union(*(t.features for t in self.tasks_of(stream).values()))


def load(file: str, overrides: Mapping[str, str], *, smoke: bool = False) -> tuple[Config, dict[str, Any]]:
    """A config file and command line overrides -> (the checked Config, the merged plain mapping it was built from)."""
    mapping = merge(read_file(file), nest(overrides))
    if smoke:
        mapping = shrink(mapping)
    mapping = inherit(mapping)
    config = from_mapping(mapping)
    config.check_trainable()
    return config, mapping


def from_mapping(mapping: Mapping[str, Any]) -> Config:
    """The checked Config of a nested mapping; a stage's optimizer is the run's with its own keys laid over it."""
    stages, optimizer = mapping.get("stages"), mapping.get("optimizer") or {}
    if isinstance(stages, Mapping):
        laid = {}
        for name, stage in stages.items():
            own = stage.get("optimizer") or {} if isinstance(stage, Mapping) else None
            laid[name] = {**stage, "optimizer": {**optimizer, **own}} if isinstance(own, Mapping) else stage
        mapping = {**mapping, "stages": laid}
    return _with_patches(build_dataclass(Config, mapping, "config"))


def _with_patches(config: Config) -> Config:
    """With the patches of native pictures as the model reads them."""
    encoder, image = config.model.patch_encoder, config.processor.image
    if image.aspect == "square":
        return config
    if encoder is None:
        raise ConfigError("config.processor.image.aspect: 'native', but config.model.patch_encoder is none.")
    image = image.for_patches(encoder.patch, "config.processor.image")
    check_stem(encoder)
    return dataclasses.replace(config, processor=dataclasses.replace(config.processor, image=image))


def shrink(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The one smoke rule: small widths, depth 2, batches of 8, a step a stage; built-in sets in their smallest version.

    Retrieval searches the whole of such a set, for a gallery may be larger. What begins with weights keeps their sizes.
    Nothing else changes.
    """
    small = plain(mapping)
    given, model = small.get("init", {}), small.get("model", {})
    begun = run_sizes(given.get("path", ""))
    for tower in ("patch_encoder", "text_encoder", "fusion", "decoder"):
        part = model.get(tower)
        public = given.get(tower) or (given.get("path") and not begun and tower != "fusion")
        if public or not isinstance(part, dict) or part.get("name", "") == "none":
            continue  # public weights say their sizes themselves
        part.pop("size", None)
        part.update(begun.get(tower) or {"width": 32, "depth": 2, "heads": 2, "mlp_dim": 64})
    if model.get("embed_dim") and (begun or not given.get("path")):
        model["embed_dim"] = begun.get("embed_dim") or 32
    tokenizer = small.setdefault("processor", {}).setdefault("tokenizer", {})
    if not tokenizer.get("path"):
        tokenizer["vocab_size"] = 512
    _shrink_sources(small.get("data", {}))
    for task in small.get("tasks", {}).values():
        if "gallery" in task:
            task["gallery"] = 0
    train = small.setdefault("train", {})
    for key in ("epochs", "examples"):
        train.pop(key, None)
    stages = list(small.get("stages", {}).values())
    for stage in stages[:-1]:
        stage["length"] = "1 step"
    train.update({"steps": max(1, len(stages)), "log_every": 1})
    small.setdefault("optimizer", {})["warmup"] = "0 steps"
    return small


def _shrink_sources(node: Any) -> None:
    if not isinstance(node, dict):
        return
    if "batch_size" in node:
        node["batch_size"] = 8
    if isinstance(node.get("path"), str) and node["path"].startswith("tfds:scenes/"):
        node["path"] = re.sub(r"(_\d+train)?$", "_16train", node["path"], count=1)
    for value in node.values():
        _shrink_sources(value)
