"""Which parameters a run takes from where, and the processor that it begins with."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmjax.config import build
from mmjax.data.processor import AS_THEY_ARE, Processor
from mmjax.errors import ConfigError
from mmjax.experiment import Config
from mmjax.init_config import WHERE, InitConfig
from mmjax.optim import select

_EMBEDDINGS = ("embed/embedding", "decoder/output")  # their rows are the tokenizer's tokens
_HEAD = "head_"  # the columns of a head are the processor's answers or labels


@dataclasses.dataclass(frozen=True)
class Match:
    """Which parameters come from where, by flat name.

    Attributes:
      taken: from the source as they are.
      adapted: from the source in another shape, and how.
      grown: heads with more classes than the source's: its columns first, then new ones.
      new: begin at random. unused: only the source has them.
    """

    taken: tuple[str, ...] = ()
    adapted: Mapping[str, str] = dataclasses.field(default_factory=dict)
    grown: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def text(self, path: str, shapes: Mapping[str, Any]) -> str:
        """What was taken, grown, begun anew and left, counted and named."""
        size = lambda names: sum(_numbers(shapes[n].shape) for n in names)  # noqa: E731
        given = [*self.taken, *self.adapted]
        lines = [
            f"init: {len(given)} of {len(shapes)} parameters ({size(given):,} of {size(shapes):,} numbers) are those "
            f"of {path}"
        ]
        lines += [f"  {name}: {how}" for name, how in self.adapted.items()]
        for what, names in (("grown by classes", self.grown), ("begin anew", self.new)):
            if names:
                lines.append(f"  {what}: {len(names)} ({size(names):,} numbers): {listed(names)}")
        if self.unused:
            lines.append(f"  left in {path}: {len(self.unused)}: {listed(self.unused)}")
        return "\n".join(lines)


def match(init: InitConfig, source: Any, wanted: Mapping[str, Any]) -> Match:
    """Compares a source's parameters with the model's, {name: shape}.

    Raises ConfigError for a pattern in `fresh` that matches nothing, a parameter of another shape that `fresh` does not
    name, and a source that has nothing in common with the model.
    """
    fresh = set().union(*(select(list(wanted), pattern, f"{WHERE}.fresh") for pattern in init.fresh))
    given, adapted = source.shapes, {}
    taken, grown, new, wrong = [], [], [], []
    for name, leaf in wanted.items():
        shape = tuple(leaf.shape)
        if name in fresh or name not in given:
            new.append(name)
        elif given[name] == shape:
            taken.append(name)
        elif name.startswith(_HEAD) and given[name][:-1] == shape[:-1] and given[name][-1] < shape[-1]:
            grown.append(name)
        elif how := source.adapts(name, shape):
            adapted[name] = how
        else:
            wrong.append(f"'{name}' is {given[name]} there, {shape} here")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ConfigError(
            f"{WHERE}: '{init}' has other shapes: {'; '.join(wrong[:5])}{more}. Expected the model that it "
            f"was trained as; or name these in {WHERE}.fresh, and they begin at random."
        )
    if not (taken or grown or adapted):
        raise ConfigError(
            f"{WHERE}: '{init}' has no parameter of this model. There: {listed(list(given))}. Here: "
            f"{listed(list(wanted))}."
        )
    return Match(tuple(taken), adapted, tuple(grown), tuple(new), tuple(n for n in given if n not in wanted))


def listed(names: Collection[str], most: int = 12) -> str:
    """Names with the layers of a stack as one, at most so many."""
    short = list(dict.fromkeys(re.sub(r"block_\d+", "block_*", n) for n in names))
    return ", ".join(short[:most]) + (f" and {len(short) - most} more" if len(short) > most else "")


def _numbers(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def processor_start(config: Config, source: Any) -> Processor | None:
    """The source's processor as this run's is fitted on top of it; without its lists of answers or labels, or the scale
    of its numbers, where every head that speaks them begins anew.
    """
    if source is None or source.processor is None:
        return None
    start = source.processor
    spoken = (("answers", {"answer"}, ()), ("labels", {"label", "labels"}, ()), ("values", {"value"}, AS_THEY_ARE))
    for name, features, none in spoken:
        heads = [n for n, task in config.tasks.items() if task.features & features]
        if all(any(re.fullmatch(p, f"{_HEAD}{n}/logits/kernel") for p in config.init.fresh) for n in heads):
            start = dataclasses.replace(start, **{name: none})
    if config.processor.tokenizer != build(type(config.processor.tokenizer), source.settings.get("tokenizer", {}), ""):
        start = dataclasses.replace(start, tokenizer=None)
    return start


def check_processor(config: Config, source: Any, processor: Processor) -> None:
    """Raises ConfigError where parameters of the source would mean something else under this run's processor."""
    start = source.processor
    if start is None:
        return
    kept = lambda names: [n for n in names if not any(re.fullmatch(p, n) for p in config.init.fresh)]  # noqa: E731
    tables = kept(n for n in source.shapes if n.endswith(_EMBEDDINGS))
    if tables and not processor.tokenizer.extends(start.tokenizer):
        raise ConfigError(
            f"config.processor.tokenizer: another vocabulary than that of '{config.init}' "
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
                f"config.processor.{listing}: not those of '{config.init}', so that the classes of {heads[0]} "
                f"would mean others. Name it in {WHERE}.fresh to begin it anew."
            )
        if heads and new != old:
            print(f"config.processor.{listing}: {len(new) - len(old)} more than the source's {len(old)}")


def as_given(placed: Any, given: Mapping[str, tuple[int, ...]], names: Collection[str]) -> dict[str, Any]:
    """The named parameters as shapes with shardings, in the shapes that the source has. placed: a Layout."""
    import jax

    return {n: jax.ShapeDtypeStruct(given[n], placed.shapes[n].dtype, sharding=placed.shardings[n]) for n in names}
