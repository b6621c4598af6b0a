"""Checkpoints: a thin class over Orbax's `CheckpointManager`, with four items a step.

    FOLDER/STEP/state       the training state, any tree of arrays
    FOLDER/STEP/data        JSON: where the input stands (seed, step, manifest)
    FOLDER/STEP/meta        JSON: config, versions, mesh
    FOLDER/STEP/processor   JSON: the processor, tokenizer included

A step is written into a temporary folder and renamed when complete, so a killed process leaves no half checkpoint under
a step's name; what it leaves is removed when the folder is next opened for writing. Old steps go after the new one is
whole. Missing and shortened files are noticed on restore; a flipped bit inside array data is not: Orbax keeps no sums.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from mmjax.config import choice
from mmjax.errors import ConfigError, did_you_mean

JSON_ITEMS = ("data", "meta", "processor")
_LESS_IS_BETTER = ("loss", "perplexity", "rmse", "mae")
_log = logging.getLogger(__name__)


def _is_news(record: logging.LogRecord) -> bool:
    """Not Orbax's warnings of what is meant: saves between evaluations carry no metrics, and readers write nothing."""
    return not any(said in record.getMessage() for said in ("tracked_metric", "read_only=True", "is read only="))


class SaveFailed(RuntimeError):
    """A checkpoint could not be written; raised at the next call after an asynchronous save."""


class NoSuchFigure(ConfigError):
    """`checkpoint.best` names a figure that no evaluation gives."""


class Restored(NamedTuple):
    """What one step holds."""

    state: Any
    data: dict[str, Any]
    meta: dict[str, Any]
    processor: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Attributes:
    every: between saves (a duration: "10%", "500 steps", "1 epoch").
    keep_latest: newest checkpoints kept; keep_best: also the best ones by the figure `best` ("" = none).
    best_mode: whether more ("max") or less ("min") of it is better; "" knows by its name: less loss, perplexity, rmse
      and mae, more of all else.
    asynchronous: write in the background while training goes on.
    """

    every: str = "10%"
    keep_latest: int = 2
    keep_best: int = 1
    best: str = ""
    best_mode: str = choice("", "max", "min")
    asynchronous: bool = True

    def check(self, where: str) -> None:
        if self.keep_latest < 1:
            raise ConfigError(f"{where}.keep_latest: found {self.keep_latest}, expected 1 or more.")
        if self.keep_best < (1 if self.best else 0):
            raise ConfigError(f"{where}.keep_best: found {self.keep_best}, expected 1 or more with best='{self.best}'.")


def direction(best: str, mode: str = "") -> str:
    """ "max" or "min": what is better of the figure `best`, by its name where `mode` does not say."""
    return mode or ("min" if best.rsplit("/")[-1] in _LESS_IS_BETTER else "max")


class Checkpointer:
    """Saves and restores the checkpoints of one folder. All processes call every method alike.

    Attributes:
      every: steps between saves that are not forced.
      read_only: never write or clean up, as evaluation beside a running training must.
      at_once: bytes of a state that are on their way to disk at a time; more than any device has of an array.
    """

    def __init__(
        self,
        folder: str | Path,
        config: CheckpointConfig,
        *,
        every: int = 1,
        read_only: bool = False,
        at_once: int | None = None,
    ):
        self.folder, self.config, self.read_only = Path(folder).absolute(), config, read_only
        self._unreadable: set[int] = set()
        logging.getLogger("absl").addFilter(_is_news)
        keep = [checkpoint_managers.LatestN(config.keep_latest)]
        if config.best:
            keep.append(
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics[config.best],
                    reverse=direction(config.best, config.best_mode) == "min",
                    n=config.keep_best,
                    keep_checkpoints_without_metrics=False,  # the default keeps every one of them forever
                )
            )
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=checkpoint_managers.FixedIntervalPolicy(every),
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
            # Without best_fn Orbax neither stores metrics nor knows a best step.
            best_fn=(lambda metrics: metrics[config.best]) if config.best else None,
            best_mode=direction(config.best, config.best_mode),
            enable_async_checkpointing=config.asynchronous,
            # Made in the background, a folder that cannot be made is noticed only by a timeout of five minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        # PyTree and not Standard: only this handler can restore a part of a state.
        bounded = ocp.PyTreeCheckpointHandler(save_concurrent_gb=at_once and at_once / 1e9)
        handlers = {"state": bounded, **{n: ocp.JsonCheckpointHandler() for n in JSON_ITEMS}}
        self._manager = ocp.CheckpointManager(
            self.folder, item_names=tuple(handlers), item_handlers=handlers, options=options
        )

    def save(
        self,
        step: int,
        state: Any,
        data: Mapping[str, Any],
        meta: Mapping[str, Any],
        processor: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        force: bool = False,
    ) -> bool:
        """Saves when `step` is due, or always with `force`; False where it is not due or already there.

        Returns when the arrays are copied to the host (they may then be donated); the rest goes on in the background.

        Args:
          metrics: figures of this very step, when known; `config.best` must be among them.

        Raises:
          SaveFailed: this save, or the one before it, failed.
          ConfigError: `config.best` is not among the metrics.
        """
        steps = self._manager.all_steps()
        if step in steps:
            return False
        if not force and steps and step < steps[-1]:
            raise SaveFailed(
                f"{self.folder}: step {steps[-1]} lies ahead of step {step}. Remove it, or train in another folder."
            )
        if not force and not self._manager.should_save(step):
            return False
        best = self._best_metric(metrics)
        items = {"data": data, "meta": meta, "processor": processor}
        arguments = {n: ocp.args.JsonSave(dict(item)) for n, item in items.items()}
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), **arguments),
                metrics=best,
                force=True,
            )
            self._manager.check_for_errors()
        except Exception as error:
            raise SaveFailed(f"{self.folder}: saving step {step}, or the save before it, failed: {error}") from error
        return True

    def _best_metric(self, metrics: Mapping[str, float] | None) -> dict[str, float] | None:
        best = self.config.best
        if not best or metrics is None:
            return None
        self.check_best(metrics)
        value = float(metrics[best])
        return {best: value} if math.isfinite(value) else None  # a NaN would sort anywhere

    def check_best(self, metrics: Mapping[str, float]) -> None:
        """Raises NoSuchFigure where `config.best` is set, and is none of these figures."""
        best = self.config.best
        if best and best not in metrics:
            near = did_you_mean(best, metrics)
            raise NoSuchFigure(
                f"config.checkpoint.best: no figure '{best}'; there are {', '.join(sorted(metrics))}.{near}"
            )

    def steps(self) -> list[int]:
        """Complete steps, oldest first; a save that is still under way is not among them."""
        there = set(self._manager.all_steps()) - self._unreadable
        return sorted(s for s in there if (self.folder / str(s)).is_dir())

    def latest_step(self) -> int | None:
        """The newest complete step whose JSON items can be read (others are set aside); None when there is none."""
        for step in reversed(self.steps()):
            try:
                for item in JSON_ITEMS:
                    json.loads((self.folder / str(step) / item / "metadata").read_text())
                return step
            except (OSError, ValueError) as error:
                self._set_aside(step, error)
        return None

    def best_step(self, best: str = "", mode: str = "") -> int | None:
        """The complete step with the best figure `best` (default: the config's); None when no checkpoint carries it."""
        best, mode = best or self.config.best, mode or self.config.best_mode
        if not best:
            return None
        mode = direction(best, mode)
        found = {s: self._figures(s).get(best) for s in self.steps()}
        sign = 1 if mode == "max" else -1
        return max((s for s, v in found.items() if v is not None), key=lambda s: (sign * found[s], s), default=None)

    def _figures(self, step: int) -> dict[str, float]:
        """The figures that a step was saved with. Orbax' own reader gives none where it was opened without a metric."""
        file = self.folder / str(step) / "metrics" / "metrics"
        return json.loads(file.read_text()) if file.is_file() else {}

    def restore(self, step: int, abstract: Any) -> Restored:
        """The whole of one step, straight onto the devices.

        Args:
          abstract: the state as `jax.ShapeDtypeStruct`s, with shardings of any mesh (without: the first local device).

        Raises:
          ConfigError: no such step, or its arrays are not those of `abstract` (names, shapes, dtypes).
        """
        self._expect(step)
        self._compare(step, abstract, whole=True)
        arguments = {n: ocp.args.JsonRestore() for n in JSON_ITEMS}
        found = self._manager.restore(step, args=ocp.args.Composite(state=_restore_args(abstract), **arguments))
        return Restored(found["state"], *(found[n] for n in JSON_ITEMS))

    def restore_latest(self, abstract: Any) -> tuple[int, Any]:
        """(step, state) of the newest step that can be read; others are renamed to STEP.corrupt and said aloud.

        Args:
          abstract: as of `restore`, or a function of the step.

        Raises:
          ConfigError: no step can be read, or the newest that can be is of another model (see `restore`).
        """
        steps = self.steps()
        if not steps:
            raise ConfigError(f"{self.folder}: found no checkpoint.")
        reasons = []
        for step in reversed(steps):
            try:
                return step, self.restore(step, abstract(step) if callable(abstract) else abstract).state
            except ConfigError:
                raise  # readable, but of another model: an older one would be so too
            except Exception as error:
                reasons.append(self._set_aside(step, error))
        raise ConfigError(f"{self.folder}: no checkpoint can be read. " + "; ".join(reasons))

    def restore_partial(self, step: int, abstract: Any) -> Any:
        """The part of a step's state that `abstract` names, as {"params": {...}}; nothing else is read."""
        self._expect(step)
        self._compare(step, abstract, whole=False)
        return self._manager.restore(step, args=ocp.args.Composite(state=_restore_args(abstract, partial=True)))[
            "state"
        ]

    def leaves(self, step: int) -> dict[str, Any]:
        """The state of a step as it lies there: arrays without their values, with `shape` and `dtype`."""
        self._expect(step)
        return self._manager.item_metadata(step)["state"].tree

    def read_json(self, step: int, item: str) -> dict[str, Any]:
        """One of the items data, meta, processor."""
        self._expect(step)
        return self._manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.JsonRestore()}))[item]

    def wait(self) -> None:
        """Returns when all saves are complete; SaveFailed when one is not."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise SaveFailed(f"{self.folder}: an asynchronous save failed: {error}") from error

    def close(self) -> None:
        """Waits, then ends the background threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _expect(self, step: int) -> None:
        if step not in self.steps():
            raise ConfigError(f"{self.folder}: no checkpoint of step {step}. There are {self.steps() or 'none'}.")

    def _compare(self, step: int, abstract: Any, *, whole: bool) -> None:
        """Orbax casts dtypes and drops what is not asked for without a word; here both are errors."""
        metadata = self._manager.item_metadata(step)["state"]
        if metadata is None:
            raise ValueError("the state has no metadata")
        there, here = _leaves(metadata.tree), _leaves(abstract)
        wrong = [f"'{n}' is not in the checkpoint" for n in here if n not in there]
        wrong += [f"'{n}' is only in the checkpoint" for n in there if whole and n not in here]
        wrong += [
            f"'{n}' is {there[n]} in the checkpoint, {here[n]} here" for n in here if n in there and here[n] != there[n]
        ]
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise ConfigError(f"{self.folder}, step {step}: {'; '.join(wrong[:5])}{more}.")

    def _set_aside(self, step: int, error: Exception) -> str:
        """Takes an unreadable step out of the list; the reason is logged and returned."""
        reason = f"step {step}: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        _log.error("CHECKPOINT UNREADABLE, taking the one before it: %s, %s", self.folder, reason)
        self._unreadable.add(step)
        if not self.read_only:
            names = (f"{step}.corrupt{n or ''}" for n in itertools.count())
            target = next(t for t in (self.folder / n for n in names) if not t.exists())
            if jax.process_index() == 0:
                (self.folder / str(step)).rename(target)
            ocp.multihost.sync_global_processes(f"mmjax:set_aside:{step}")
            self._manager.reload()
            self._unreadable.discard(step)
        return reason


def write_once(
    folder: str | Path,
    step: int,
    state: Any,
    data: Mapping[str, Any],
    meta: Mapping[str, Any],
    processor: Mapping[str, Any],
) -> None:
    """The only checkpoint of a folder, of a state that just fits in memory: a twentieth of it is encoded at a time, or
    the largest part that a device has of an array. Arguments as of `Checkpointer.save`.
    """
    parts = [shard.data.nbytes for array in jax.tree.leaves(state) for shard in array.addressable_shards]
    at_once = max(sum(parts) // 20, max(parts) + 1)
    checkpoints = Checkpointer(folder, CheckpointConfig(asynchronous=False), at_once=at_once)
    checkpoints.save(step, state, data, meta, processor, force=True)
    checkpoints.close()


def _restore_args(abstract: Any, *, partial: bool = False) -> ocp.args.PyTreeRestore:
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or first), abstract)
    arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
    return ocp.args.PyTreeRestore(item=abstract, restore_args=arguments, partial_restore=partial)


def _leaves(tree: Any) -> dict[str, str]:
    """Path of each array -> "[2, 3] float32". A path is of names and places: the kind of container is not stored."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)

    def part(key: Any) -> str:
        return str(next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a)))

    return {
        " > ".join(map(part, path)): f"{list(leaf.shape)} {jax.numpy.dtype(leaf.dtype).name}" for path, leaf in flat
    }
