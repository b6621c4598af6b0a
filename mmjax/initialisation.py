"""Where a run begins: at random, or from weights that were trained before, with the processor that they know.

A source is what `init.path` names. Whatever its kind it has

    shapes      {flat name: shape} of the parameters that it gives
    read(wanted)    {name: ShapeDtypeStruct with a sharding} -> {name: array}
    identity    {"path", "step", "sha256"}, kept in each checkpoint that leaves the source's parameters out
    settings    the plain `config.processor` that a run on top of it begins with, or None
    processor   its fitted Processor, or None
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmjax.config import build, differences, merge, plain
from mmjax.errors import ConfigError
from mmjax.optim import select

if TYPE_CHECKING:
    from mmjax.data.processor import Processor
    from mmjax.experiment import Config

WHERE = "config.init"
_EMBEDDINGS = ("embed/embedding", "decoder/output")  # their rows are the tokenizer's tokens
_HEAD = "head_"  # the columns of a head are the processor's answers or labels


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Attributes:
    path: the workdir of an earlier run: every parameter that it has is taken, the others begin at random. "" begins all
      at random.
    checkpoint: of that run: "best", "latest" or a step.
    fresh: patterns of parameters that begin at random although the source has them.
    """

    path: str = ""
    checkpoint: str = "best"
    fresh: tuple[str, ...] = ()

    def check(self, where: str) -> None:
        if self.fresh and not self.path:
            raise ConfigError(f"{where}.fresh: says what is not taken, but {where}.path is empty.")


def source_of(init: InitConfig) -> Any:
    """What `init` names, as a source; None where a run begins at random."""
    return open_source(init.path, init.checkpoint) if init.path else None


def pinned(init: InitConfig, base: Mapping[str, Any] | None) -> InitConfig:
    """`init` at the checkpoint that `base`, an identity, names: a run that is read may have a better one by now."""
    return dataclasses.replace(init, checkpoint=str(base["step"])) if base else init


def open_source(path: str | Path, checkpoint: str = "best", where: str = f"{WHERE}.path") -> Any:
    """What `path` holds, as a source."""
    folder = Path(path)
    if (folder / "checkpoints").is_dir():
        from mmjax.workdir import Workdir

        return Workdir(folder, checkpoint, where=where)
    if _is_published(folder):
        raise ConfigError(f"{where}: '{path}' is a Hugging Face folder. Expected an mmjax workdir.")
    raise ConfigError(f"{where}: '{path}' is no workdir of an 'mmjax train' run (no checkpoints in it).")


def _is_published(folder: Path) -> bool:
    """Whether a folder is a Hugging Face model."""
    file = folder / "config.json"
    return file.is_file() and "model_type" in json.loads(file.read_text()) and any(folder.glob("*.safetensors"))


# ----------------------------------------------------------------------------------------------------------- parameters
@dataclasses.dataclass(frozen=True)
class Match:
    """Which parameters come from where, by flat name.

    Attributes:
      taken: from the source as they are.
      grown: heads with more classes than the source's: its columns first, then new ones.
      new: begin at random. unused: only the source has them.
    """

    taken: tuple[str, ...] = ()
    grown: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def text(self, path: str, shapes: Mapping[str, Any]) -> str:
        """What was taken, grown, begun anew and left, counted and named."""
        size = lambda names: sum(_numbers(shapes[n].shape) for n in names)  # noqa: E731
        lines = [
            f"init: {len(self.taken)} of {len(shapes)} parameters ({size(self.taken):,} of {size(shapes):,} numbers) "
            f"are those of {path}"
        ]
        for what, names in (("grown by classes", self.grown), ("begin anew", self.new)):
            if names:
                lines.append(f"  {what}: {len(names)} ({size(names):,} numbers): {listed(names)}")
        if self.unused:
            lines.append(f"  left in {path}: {len(self.unused)}: {listed(self.unused)}")
        return "\n".join(lines)


def match(init: InitConfig, given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Any]) -> Match:
    """Compares a source's shapes with the model's.

    Raises ConfigError for a pattern in `fresh` that matches nothing, a parameter of another shape that `fresh` does not
    name, and a source that has nothing in common with the model.
    """
    fresh = set().union(*(select(list(wanted), pattern, f"{WHERE}.fresh") for pattern in init.fresh))
    taken, grown, new, wrong = [], [], [], []
    for name, leaf in wanted.items():
        shape = tuple(leaf.shape)
        if name in fresh or name not in given:
            new.append(name)
        elif given[name] == shape:
            taken.append(name)
        elif name.startswith(_HEAD) and given[name][:-1] == shape[:-1] and given[name][-1] < shape[-1]:
            grown.append(name)
        else:
            wrong.append(f"'{name}' is {given[name]} there, {shape} here")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ConfigError(
            f"{WHERE}.path: '{init.path}' has other shapes: {'; '.join(wrong[:5])}{more}. Expected the model that it "
            f"was trained as; or name these in {WHERE}.fresh, and they begin at random."
        )
    if not taken and not grown:
        raise ConfigError(
            f"{WHERE}.path: '{init.path}' has no parameter of this model. There: {listed(list(given))}. Here: "
            f"{listed(list(wanted))}."
        )
    return Match(tuple(taken), tuple(grown), tuple(new), tuple(n for n in given if n not in wanted))


def listed(names: Collection[str], most: int = 12) -> str:
    """Names with the layers of a stack as one, at most so many."""
    short = list(dict.fromkeys(re.sub(r"block_\d+", "block_*", n) for n in names))
    return ", ".join(short[:most]) + (f" and {len(short) - most} more" if len(short) > most else "")


def _numbers(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


# ------------------------------------------------------------------------------------------------------------ processor
def inherit_processor(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A plain config whose processor begins with that of `init.path`; each key that it sets otherwise is printed."""
    source = source_of(build(InitConfig, mapping.get("init") or {}, WHERE))
    settings = source.settings if source else None
    if not settings:
        return dict(mapping)
    from mmjax.data.processor import ProcessorConfig

    laid = build(ProcessorConfig, merge(settings, mapping.get("processor") or {}), "config.processor")
    for key, (old, new) in differences(settings, plain(laid)).items():
        print(f"config.processor.{key}: {old!r} -> {new!r} overrides the source's")
    return {**mapping, "processor": plain(laid)}


def processor_start(config: Config, source: Any) -> Processor | None:
    """The source's processor as this run's is fitted on top of it; without its lists of answers or labels where every
    head that speaks them begins anew.
    """
    if source is None or source.processor is None:
        return None
    start = source.processor
    for listing, features in (("answers", {"answer"}), ("labels", {"label", "labels"})):
        heads = [n for n, task in config.tasks.items() if task.features & features]
        if all(any(re.fullmatch(p, f"{_HEAD}{n}/logits/kernel") for p in config.init.fresh) for n in heads):
            start = dataclasses.replace(start, **{listing: ()})
    if config.processor.tokenizer != build(type(config.processor.tokenizer), source.settings["tokenizer"], ""):
        start = dataclasses.replace(start, tokenizer=None)
    return start


def check_processor(config: Config, source: Any, processor: Processor) -> None:
    """Raises ConfigError where parameters of the source would mean something else under this run's processor."""
    start = source.processor
    if start is None:
        return
    kept = lambda names: [n for n in names if not any(re.fullmatch(p, n) for p in config.init.fresh)]  # noqa: E731
    tables = kept(n for n in source.shapes if n.endswith(_EMBEDDINGS))
    if tables and start.tokenizer.to_json() != processor.tokenizer.to_json():
        raise ConfigError(
            f"config.processor.tokenizer: another vocabulary than that of '{config.init.path}' "
            f"({processor.tokenizer.vocab_size} tokens here, {start.tokenizer.vocab_size} there), so that "
            f"{', '.join(tables)} would mean other tokens. Leave config.processor.tokenizer out to take the source's, "
            f"or name them in {WHERE}.fresh."
        )
    for listing, features in (("answers", {"answer"}), ("labels", {"label", "labels"})):
        old, new = getattr(start, listing), getattr(processor, listing)
        heads = [f"{_HEAD}{n}/logits/kernel" for n, task in config.tasks.items() if task.features & features]
        heads = kept(n for n in heads if n in source.shapes)
        if heads and new[: len(old)] != old:
            raise ConfigError(
                f"config.processor.{listing}: not those of '{config.init.path}', so that the classes of {heads[0]} "
                f"would mean others. Name it in {WHERE}.fresh to begin it anew."
            )
        if heads and new != old:
            print(f"config.processor.{listing}: {len(new) - len(old)} more than the source's {len(old)}")


def as_given(placed: Any, given: Mapping[str, tuple[int, ...]], names: Collection[str]) -> dict[str, Any]:
    """The named parameters as shapes with shardings, in the shapes that the source has. placed: a Layout."""
    import jax

    return {n: jax.ShapeDtypeStruct(given[n], placed.shapes[n].dtype, sharding=placed.shardings[n]) for n in names}
