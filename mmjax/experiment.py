"""The experiment as one frozen object: `Config`, its length, its evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmjax.checkpoint import CheckpointConfig
from mmjax.config import build_dataclass, merge, nest, parsed, read_file, share
from mmjax.data.processor import ProcessorConfig
from mmjax.data.sets import DataConfig
from mmjax.errors import ConfigError, did_you_mean
from mmjax.inheritance import inherit
from mmjax.init_config import InitConfig
from mmjax.models.lora import AdaptConfig
from mmjax.models.multimodal import ModelConfig
from mmjax.models.patch_encoder import check_stem
from mmjax.optim import OptimizerConfig
from mmjax.sharding import MeshConfig
from mmjax.smoke import shrink
from mmjax.tasks import Task


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
    ema: float = share()
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
        for name, least in (("accumulate", 1), ("log_every", 1), ("max_bad_steps", 1), ("steps", 0), ("epochs", 0),
                            ("examples", 0)):  # fmt: skip
            if getattr(self, name) < least:
                raise ConfigError(f"{where}.{name}: found {getattr(self, name)}, expected {least} or more.")

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
        for part in self.interpolate:
            if not 0 <= part <= 1:
                raise ConfigError(
                    f"{where}.interpolate: found {part}, expected shares between 0 (base) and 1 (trained)."
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
        for name in self.data.streams:
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
        if unread and not self.tasks and not self.eval.probe:
            raise ConfigError(
                f"{where}.tasks: empty, so that nothing is said of {where}.data.train. Name a task; or judge the "
                f"pictures' features as they are, by eval.probe=true."
            )
        if unread and self.tasks:
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
        """All features that the tasks of a stream, and the probe, read."""
        probed = {"image"} if self.eval.probe else set()
        return frozenset(probed).union(*(t.features for t in self.tasks_of(stream).values()))


def load(file: str, overrides: Mapping[str, str], *, smoke: bool = False) -> tuple[Config, dict[str, Any]]:
    """A config file and command line overrides -> (the checked Config, the merged plain mapping it was built from)."""
    mapping = merge(read_file(file), nest(overrides))
    mapping |= {"stages": parsed(mapping["stages"])} if "stages" in mapping else {}
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
