"""Where a run begins: at random, or from weights that were trained before, with the processor that they know.

A source is what `init.path` names. Whatever its kind it has

    shapes      {flat name: shape} of the parameters that it gives
    read(wanted)    {name: ShapeDtypeStruct with a sharding} -> {name: array}
    identity    {"path", "step", "sha256"}, kept in each checkpoint that leaves the source's parameters out
    adapts(name, shape)     how a parameter becomes one of another shape, in words; "" where it cannot
    model       the plain `config.model` that its weights are for, or None where the config has to say it
    tasks       keys of `config.tasks.NAME` by the task's kind that a run begins with
    settings    the plain `config.processor` that a run on top of it begins with (parts of it), or None
    processor   its fitted Processor, or None
    carry(workdir)      keeps in a new workdir what an export of it will need beside the parameters
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmjax.config import build, differences, flatten, merge, plain
from mmjax.errors import ConfigError
from mmjax.optim import select

if TYPE_CHECKING:
    from mmjax.data.processor import Processor
    from mmjax.experiment import Config

WHERE = "config.init"
_EMBEDDINGS = ("embed/embedding", "decoder/output")  # their rows are the tokenizer's tokens
PARTS = ("patch_encoder", "text_encoder", "decoder")
_HEAD = "head_"  # the columns of a head are the processor's answers or labels


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Attributes:
    path: the workdir of an earlier run, or a Hugging Face folder: every parameter that it has is taken, the others
      begin at random. "" begins all at random.
    patch_encoder, text_encoder, decoder: the same for one part of the model alone, each from a folder of its own.
    checkpoint: of an earlier run: "best", "latest" or a step.
    fresh: patterns of parameters that begin at random although the source has them.
    """

    path: str = ""
    patch_encoder: str = ""
    text_encoder: str = ""
    decoder: str = ""
    checkpoint: str = "best"
    fresh: tuple[str, ...] = ()

    @property
    def paths(self) -> dict[str, str]:
        """{key of this config: folder}, of those that are set."""
        return {name: path for name in ("path", *PARTS) if (path := getattr(self, name))}

    def __str__(self) -> str:
        return self.path if [*self.paths] == ["path"] else ", ".join(f"{n}={path}" for n, path in self.paths.items())

    def check(self, where: str) -> None:
        if self.fresh and not self.paths:
            raise ConfigError(f"{where}.fresh: says what is not taken, but {where}.path is empty.")


def source_of(init: InitConfig, vocabulary: str = "", base: str = "") -> Any:
    """What `init` names, as a source; None where a run begins at random. vocabulary: `config.processor.tokenizer.path`,
    from `base`, which stands in where a Hugging Face folder has none.
    """
    told = vocabulary, base
    opened = {n: open_source(path, init.checkpoint, f"{WHERE}.{n}", *told) for n, path in init.paths.items()}
    if [*opened] in ([], ["path"]):
        return opened.get("path")
    from mmjax.combined import Combined

    return Combined(opened)


def pinned(init: InitConfig, base: Mapping[str, Any] | None) -> InitConfig:
    """`init` at the checkpoint that `base`, an identity, names: a run that is read may have a better one by now."""
    return dataclasses.replace(init, checkpoint=str(base["step"])) if base else init


def open_source(
    path: str | Path, checkpoint: str = "best", where: str = f"{WHERE}.path", vocabulary: str = "", base: str = ""
) -> Any:
    """What `path` holds, as a source. Arguments as of `source_of`."""
    folder = Path(path)
    if (folder / "checkpoints").is_dir():
        from mmjax.workdir import Workdir

        return Workdir(folder, checkpoint, where=where)
    if (folder / "config.json").is_file():
        from mmjax.pretrained.source import Published

        return Published(folder, where, vocabulary, base)
    raise ConfigError(
        f"{where}: '{path}' is no workdir of an 'mmjax train' run (no checkpoints in it), and no Hugging Face folder "
        "(no config.json)."
    )


# ----------------------------------------------------------------------------------------------------------- parameters
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


# ----------------------------------------------------------------------------------------------------------- the config
def inherit(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A plain config laid on what `init` says of the model, the tasks and the processor. Each key of the processor that
    it sets otherwise is printed; a setting of the model that contradicts the weights is an error.
    """
    tokenizer = (mapping.get("processor") or {}).get("tokenizer") or {}
    root = (mapping.get("data") or {}).get("root", "")
    source = source_of(build(InitConfig, mapping.get("init") or {}, WHERE), str(tokenizer.get("path", "")), str(root))
    if source is None:
        return dict(mapping)
    laid = dict(mapping)
    if source.model:
        laid["model"] = lay_model(source, mapping.get("model") or {})
    if source.tasks:
        kinds = {name: (own or {}).get("kind", name) for name, own in (mapping.get("tasks") or {}).items()}
        laid["tasks"] = {n: {**source.tasks.get(kind, {}), **(mapping["tasks"][n] or {})} for n, kind in kinds.items()}
    if source.settings:
        laid["processor"] = _lay_processor(source, mapping.get("processor") or {})
    return laid


def _lay_processor(source: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    from mmjax.data.processor import ProcessorConfig

    laid = plain(build(ProcessorConfig, merge(source.settings, own), "config.processor"))
    theirs = plain(build(ProcessorConfig, source.settings, str(source.path)))
    for key, (old, new) in differences(theirs, laid).items():
        if key in flatten(source.settings):
            print(f"config.processor.{key}: {old!r} -> {new!r} overrides the source's")
    return laid


def run_sizes(path: str) -> dict[str, Any]:
    """{part of the model: its sizes}, and embed_dim, of the run in a workdir; {} where `path` is none."""
    file = Path(path, "config.json")
    if not path or not (file.parent / "checkpoints").is_dir() or not file.is_file():
        return {}
    model = json.loads(file.read_text())["model"]
    parts = {n: {k: part[k] for k in ("size", *_SIZES)} for n, part in model.items() if isinstance(part, dict)}
    return parts | {"embed_dim": model["embed_dim"]}


# What a config may say of a part although its weights come from elsewhere: no parameter that they hold depends on it.
_FREE = {
    "size",
    "adapter",
    "dropout",
    "drop_path",
    "patch_dropout",
    "remat",
    "scan",
    "pool",
    "tokens_layer",
    "tokens_cls",
}
# How a language model reads pictures, where its weights have nothing for that.
_FREE_ALONE = {"memory", "connector", "prefix_attention"}
_READS = re.compile(r"decoder/(memory_projection.*|.*/cross_.*)").fullmatch
_SIZES = ("width", "depth", "heads", "head_dim", "kv_heads", "mlp_dim")


def lay_model(source: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """The plain `config.model` of the source's weights with what a config adds; a part that it calls none is left.

    Raises ConfigError where the config says otherwise than the weights.
    """
    from mmjax.models.multimodal import ModelConfig

    hints, laid = typing.get_type_hints(ModelConfig), {**source.model, **own}
    for name, given in source.model.items():
        where = f"config.model.{name}"
        said = own.get(name)
        if isinstance(given, Mapping) and (name not in own or isinstance(said, Mapping)):
            kind = next(k for k in (*typing.get_args(hints[name]), hints[name]) if dataclasses.is_dataclass(k))
            free = _FREE | (_FREE_ALONE if name == "decoder" and not any(map(_READS, source.shapes)) else set())
            like = hints["text_encoder"] if name == "fusion" else None  # whose sizes a fusion has where it says none
            like = like and build(like, source.model["text_encoder"], where).sized(where)
            laid[name] = _lay_part(kind, given, said or {}, where, source.path, free, like)
        elif given is not None and name in own and build(hints[name], said, where) != given:
            raise _contradiction(where, build(hints[name], said, where), source.path, given)
    return laid


def _lay_part(
    kind: type, given: Mapping[str, Any], own: Mapping[str, Any], where: str, path: Any, free: set[str], like: Any
) -> dict[str, Any]:
    theirs = build(kind, given, str(path)).sized(str(path), like)
    said = {**given, **(dict.fromkeys(_SIZES, 0) if own.get("size") else {}), **own}
    ours = build(kind, said, where).sized(where, like)
    free = free | {"length"} if getattr(theirs, "position", "learned") != "learned" else free
    for field in dataclasses.fields(kind):
        old, new = getattr(theirs, field.name), getattr(ours, field.name)
        if old != new and field.name not in free:
            raise _contradiction(f"{where}.{field.name}", new, path, old)
    return {k: v for k, v in {**given, **own}.items() if k != "size"}


def _contradiction(where: str, found: Any, path: Any, given: Any) -> ConfigError:
    return ConfigError(
        f"{where}: found {found!r}, but the weights of '{path}' are for {given!r}. Leave it out to take theirs."
    )


# ------------------------------------------------------------------------------------------------------------ processor


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
