"""What a workdir holds, read without its model: one checkpoint's parameters by name, its config and its processor.

Whatever was trained, `read` gives the weights that a model is applied to: the moving average where there is one, LoRA
factors merged into their kernels, and what the checkpoint leaves out read from the base that it names: which may be a
workdir again, so what opens a base, and whatever else `config.init` names, stands here too.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from mmjax.checkpoint import CheckpointConfig, Checkpointer
from mmjax.data.processor import Processor
from mmjax.errors import ConfigError
from mmjax.init_config import WHERE, InitConfig
from mmjax.models import lora
from mmjax.pretrained.origin import ORIGIN

Shapes = Mapping[str, jax.ShapeDtypeStruct]


class Workdir:
    """One checkpoint of a workdir.

    Attributes:
      path, step: where, and which.
      meta: the checkpoint's own: config, mapping, base, versions.
    """

    def __init__(self, path: str | Path, checkpoint: str = "best", *, where: str = "--workdir", base_path: str = ""):
        """checkpoint: "best", "latest" or a step. base_path: where the base lies now, if not where it lay."""
        self.path, self._where = Path(path), where
        folder = self.path / "checkpoints"
        if not folder.is_dir():
            raise ConfigError(f"{where}: no checkpoints below '{path}'. Expected the workdir of an 'mmjax train' run.")
        self._checkpoints = Checkpointer(folder, CheckpointConfig(), read_only=True)
        self.step = self._choose(checkpoint)
        self.meta = self._checkpoints.read_json(self.step, "meta")
        self._base_path = base_path

    def _choose(self, wanted: str) -> int:
        steps = self._checkpoints.steps()
        if not steps:
            raise ConfigError(f"{self._where}: '{self.path}/checkpoints' holds no complete checkpoint yet.")
        if wanted == "best":
            kept = self._checkpoints.read_json(steps[-1], "meta")["config"]["checkpoint"]
            return self._checkpoints.best_step(kept["best"], kept["best_mode"]) or steps[-1]
        if wanted == "latest":
            return steps[-1]
        if not wanted.isdigit() or int(wanted) not in steps:
            raise ConfigError(
                f"{self._where}: no checkpoint '{wanted}' in '{self.path}'. Expected 'best', 'latest' or of {steps}."
            )
        return int(wanted)

    model, tasks = None, {}  # a config on top of a run says both itself

    @staticmethod
    def adapts(name: str, shape: tuple[int, ...]) -> str:
        """See `mmjax/init_config.py`."""
        return ""

    def carry(self, workdir: Path) -> None:
        """See `mmjax/init_config.py`."""
        if (self.path / ORIGIN).is_dir():
            shutil.copytree(self.path / ORIGIN, workdir / ORIGIN, dirs_exist_ok=True)

    @property
    def settings(self) -> dict[str, Any]:
        """The plain `config.processor` that the run was made with."""
        return self.meta["config"]["processor"]

    @functools.cached_property
    def processor(self) -> Processor:
        return Processor.from_json(self._checkpoints.read_json(self.step, "processor"))

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """{"path", "step", "sha256"}: which weights these are. The sum is over the files of the state."""
        folder, total = self.path / "checkpoints" / str(self.step) / "state", hashlib.sha256()
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            with file.open("rb") as stream:
                total.update(file.relative_to(folder).as_posix().encode())
                total.update(hashlib.file_digest(stream, "sha256").digest())
        return {"path": str(self.path.absolute()), "step": self.step, "sha256": total.hexdigest()}

    @functools.cached_property
    def _stored(self) -> dict[str, dict[str, Any]]:
        """{"params": {name: leaf with a shape}, "frozen": ..., "ema": ...}."""
        there = self._checkpoints.leaves(self.step)
        return {part: there.get(part) or {} for part in ("params", "frozen", "ema")}

    @functools.cached_property
    def base(self) -> Any:
        """The source of what this checkpoint leaves out; None where it is whole.

        Raises ConfigError where what lies there is not what the run was trained from.
        """
        kept = self.meta.get("base")
        if not kept:
            return None
        path = self._base_path or kept["path"]
        if "init" in kept:
            found = source_of(InitConfig(**kept["init"]))
        else:
            found = open_source(path, str(kept["step"]), f"the base of '{self.path}'")
        if found.identity["sha256"] != kept["sha256"]:
            raise ConfigError(
                f"'{self.path}' holds what was trained on top of the base '{kept['path']}' (sha256 "
                f"{kept['sha256'][:12]}), but '{path}' has {found.identity['sha256'][:12]}. Expected the same weights: "
                "put them back, or name where they are with --config.init.path=PATH."
            )
        return found

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{name: shape} of all parameters, factors merged."""
        own = {n: tuple(x.shape) for part in ("params", "frozen") for n, x in self._stored[part].items()}
        own = {n: shape for n, shape in own.items() if not lora.is_factor(n)}
        return {**(self.base.shapes if self.base else {}), **own}

    def read(self, wanted: Shapes, *, average: bool = True) -> dict[str, jax.Array]:
        """The named parameters, in the shardings of `wanted`; with average=False as trained, not averaged."""
        trained = "ema" if average and self._stored["ema"] else "params"
        part_of = {n: part for part in (trained, "frozen") for n in self._stored[part]}
        mesh = next(iter(wanted.values())).sharding.mesh
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        factors = {
            n: jax.ShapeDtypeStruct(self._stored[part][n].shape, jax.numpy.float32, sharding=whole)
            for n, part in part_of.items()
            if lora.is_factor(n) and lora.kernel_of(n) in wanted
        }
        asked: dict[str, dict[str, Any]] = {}
        for n, shape in {**wanted, **factors}.items():
            if n in part_of:
                asked.setdefault(part_of[n], {})[n] = shape
        found = self._checkpoints.restore_partial(self.step, asked) if asked else {}
        params = {n: x for part in found.values() for n, x in part.items()}
        if absent := {n: s for n, s in wanted.items() if n not in params}:
            if self.base is None:
                raise ConfigError(f"'{self.path}', step {self.step}: no parameter '{next(iter(absent))}'.")
            params.update(self.base.read(absent))
        if not factors:
            return params
        scale = self.meta["config"]["adapt"]["alpha"] / self.meta["config"]["adapt"]["rank"]
        laid = {n: wanted[n].sharding for n in wanted}
        return jax.jit(lambda p: lora.merge(p, scale), out_shardings=laid)(params)

    def item(self, name: str) -> dict[str, Any]:
        """One of the JSON items data, meta, processor, as it lies there."""
        return self._checkpoints.read_json(self.step, name)

    def close(self) -> None:
        self._checkpoints.close()


def source_of(init: InitConfig, vocabulary: str = "", base: str = "") -> Any:
    """What `init` names, as a source; None where a run begins at random. vocabulary: `config.processor.tokenizer.path`,
    from `base`, which stands in where a Hugging Face folder has none.
    """
    told = vocabulary, base
    opened = {n: open_source(path, init.checkpoint, f"{WHERE}.{n}", *told) for n, path in init.paths.items()}
    if [*opened] in ([], ["path"]):
        return opened.get("path")
    from mmjax.combined import Combined

    return Combined(opened, init.checkpoint)


def open_source(
    path: str | Path, checkpoint: str = "best", where: str = f"{WHERE}.path", vocabulary: str = "", base: str = ""
) -> Any:
    """What `path` holds, as a source. Arguments as of `source_of`."""
    folder = Path(path)
    if (folder / "checkpoints").is_dir():
        return Workdir(folder, checkpoint, where=where)
    if (folder / "config.json").is_file():
        from mmjax.pretrained.source import Published

        return Published(folder, where, vocabulary, base)
    raise ConfigError(
        f"{where}: '{path}' is no workdir of an 'mmjax train' run (no checkpoints in it), and no Hugging Face folder "
        "(no config.json)."
    )
