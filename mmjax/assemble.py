"""What a command needs, built once from a Config: sources, processor, model, mesh, parameter layout, optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from mmjax import duration, initialisation, optim, sharding
from mmjax.data import layouts
from mmjax.data.mixture import Mixture
from mmjax.data.packed import make_pipeline, packed_processor
from mmjax.data.pipeline import Pipeline
from mmjax.data.processor import Processor
from mmjax.data.sources import Source
from mmjax.data.sources.opening import open_source
from mmjax.data.splits import holdout, overlap
from mmjax.errors import ConfigError
from mmjax.experiment import Config, StageConfig
from mmjax.models import lora
from mmjax.models.lora import AdaptConfig
from mmjax.models.multimodal import Multimodal, TokenIds, initialise, resolve_dtype
from mmjax.train_step import Flat, State, flat_names, new_state, next_state
from mmjax.workdir import source_of


@dataclass(frozen=True)
class Data:
    """Opened sources. `train` is {stream: source}, `validation` is {set name: (stream, source)}.

    Without validation sets of their own each training source holds some of its pictures out.
    """

    train: Mapping[str, Source]
    validation: Mapping[str, tuple[str, Source]]

    @property
    def fingerprint(self) -> dict[str, str]:
        return {name: source.fingerprint for name, source in self.train.items()}


def open_data(config: Config) -> Data:
    """Opens the training and validation sources; all their pictures are known to exist afterwards."""
    train, validation = {}, {}
    alone = len(config.data.train) == 1
    for stream, configs in config.data.streams.items():
        sources = {}
        for name, source in configs.items():
            where = "config.data.train" + ("" if alone else f".{name}")
            sources[name] = open_source(source, where, config.data.root)
            if not config.data.validation and config.data.holdout > 0:
                sources[name], kept = holdout(sources[name], config.data.holdout, config.train.seed)
                validation["validation" if alone else name] = (stream, kept)
        weights = {name: source.weight for name, source in configs.items()}
        mixed = len(sources) > 1
        train[stream] = Mixture(sources, weights, "config.data.train") if mixed else next(iter(sources.values()))
    validation.update(open_sets(config, "validation"))
    if config.data.validation and config.data.check_overlap:
        overlap(train, {name: source for name, (_, source) in validation.items()})
    return Data(train, validation)


def open_sets(config: Config, group: str) -> dict[str, tuple[str, Source]]:
    """{set name: (stream, source)} of `config.data.<group>`."""
    sets = {}
    for name, source in getattr(config.data, group).items():
        where = f"config.data.{group}" + (f".{name}" if len(getattr(config.data, group)) > 1 else "")
        sets[name] = (source.stream, open_source(source, where, config.data.root))
    return sets


def fit_processor(config: Config, data: Data) -> Processor:
    """Tokenizer, answer list and labels from the training annotations, on top of those of `init.path`; of packed sets
    the one that packed them.
    """
    sources = list(data.train.values())
    source = source_of(config.init, config.processor.tokenizer.path, config.data.root)
    processor = packed_processor(sources, config.processor, "config.processor")
    if processor is None:
        features = frozenset().union(*(config.features_of(s) for s in config.data.streams))
        start = initialisation.processor_start(config, source)
        processor = Processor.fit(config.processor, sources, features, base=config.data.root, start=start)
    if source is not None:
        initialisation.check_processor(config, source, processor)
    return processor


def prepared(config: Config, processor: Processor) -> Config:
    """The config with its tasks as training uses them."""
    return dataclasses.replace(config, tasks={n: task.prepared(processor) for n, task in config.tasks.items()})


def token_ids(processor: Processor) -> TokenIds:
    """What the model must know of the tokenizer."""
    t = processor.tokenizer
    first = (t.bos if t.start != t.bos else None) if t.reads_bos else -1
    return TokenIds(t.vocab_size, t.pad, t.start, t.eos, t.image, read_bos=first, read_eos=t.reads_eos)


def build_model(config: Config, processor: Processor) -> Multimodal:
    """The model with every part that the tasks want."""
    for name, task in config.tasks.items():
        has = {
            "patch_encoder": config.model.patch_encoder is not None,
            "text_encoder": config.model.text_encoder is not None,
            "fusion": config.model.fusion.name != "none",
            "decoder": config.model.decoder is not None,
            "contrastive": config.model.text_encoder is not None,
        }
        for part in sorted(task.needs):
            if not has[part]:
                raise ConfigError(f"config.model.{part}: none, but the task '{name}' needs one.")
    needs = frozenset().union(*(task.needs for task in config.tasks.values()))
    return Multimodal(
        config=config.model,
        image_size=processor.image.sides,
        mean=processor.image.mean,
        std=processor.image.std,
        tokens=token_ids(processor),
        heads=tuple(h for task in config.tasks.values() for h in task.heads(processor)),
        contrastive=_space(config, needs),
        dtype=resolve_dtype(config.model.dtype, jax.default_backend()),
    )


def _space(config: Config, needs: Collection[str]) -> str:
    """Whose space of pictures and texts the model has: that of the task's loss, or of a tower by itself that says how
    wide it is (CLIP's, with its projection).
    """
    if "contrastive" in needs:
        return next((t.loss_kind for t in config.tasks.values() if hasattr(t, "loss_kind")), "sigmoid")
    alone = (config.model.patch_encoder is None) != (config.model.text_encoder is None) and config.model.decoder is None
    return "softmax" if alone and config.model.embed_dim else ""


@dataclass(frozen=True)
class Layout:
    """Shapes and shardings of all parameters, none allocated yet; names are flat ("patch_encoder/block_00/...")."""

    mesh: Mesh
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    shardings: Mapping[str, NamedSharding]

    @property
    def merged(self) -> list[str]:
        """The names that a model is applied with: all but LoRA's factors."""
        return [n for n in self.shapes if not lora.is_factor(n)]

    def abstract(self, names: Iterable[str]) -> dict[str, jax.ShapeDtypeStruct]:
        """The named parameters as shapes with shardings."""
        return {
            n: jax.ShapeDtypeStruct(self.shapes[n].shape, self.shapes[n].dtype, sharding=self.shardings[n])
            for n in names
        }


def layout(model: Multimodal, mesh: Mesh, adapt: AdaptConfig | None = None) -> Layout:
    """Traces the initialisation without running it, and lays every parameter on the mesh; with the LoRA factors of
    `adapt`.
    """
    import flax.linen as nn

    with sharding.on_mesh(mesh):
        boxed = flat_names(jax.eval_shape(lambda key: initialise(model, key), jax.random.key(0)))
    if adapt and adapt.lora:
        dense = lora.dense_kernels({n: nn.meta.unbox(leaf) for n, leaf in boxed.items()})
        where = "config.adapt.lora"
        kernels = set().union(*(optim.select(dense, pattern, where, "dense kernel") for pattern in adapt.lora))
        boxed |= lora.boxed_factors(boxed, kernels, adapt.rank)
    shapes = {n: nn.meta.unbox(leaf) for n, leaf in boxed.items()}
    return Layout(mesh, shapes, sharding.parameter_shardings(boxed, mesh))


@dataclass(frozen=True)
class Plan:
    """How the state is trained in one stage of the run: which parameters, by which optimizer, laid out how.

    Attributes:
      total_steps: of the whole run. start, stop: the stage's part of them; name: its key in `config.stages`, or "".
      optimizer, tx, schedule: the schedule counts from the stage's start.
      abstract, shardings: the state as shapes with shardings.
      left_out: frozen parameters that a checkpoint leaves out: `init.path` gave them and no stage has trained them.
      match: which parameters `init.path` gave; None without.
      next: the stage after this one; None for the last.
    """

    layout: Layout
    trainable: tuple[str, ...]
    frozen: tuple[str, ...]
    tx: optax.GradientTransformation
    schedule: Any
    total_steps: int
    abstract: State
    shardings: State
    optimizer: optim.OptimizerConfig
    name: str = ""
    start: int = 0
    stop: int = 0
    left_out: tuple[str, ...] = ()
    match: initialisation.Match | None = None
    next: Plan | None = None

    def at(self, step: int) -> Plan:
        """The stage in which update `step` (from 1) was done; for 0 the first."""
        return self if step <= self.stop or self.next is None else self.next.at(step)

    def stored(self, state: State) -> State:
        """What of the state (or of `abstract`) a checkpoint holds."""
        return {**state, "frozen": {n: x for n, x in state["frozen"].items() if n not in self.left_out}}

    @property
    def stages(self) -> list[Plan]:
        return [self, *(self.next.stages if self.next else ())]


def make_plan(
    config: Config, model: Multimodal, data: Data, mesh: Mesh, pipelines: Mapping[str, Pipeline] | None = None
) -> Plan:
    """Splits the parameters by the patterns and builds the optimizer for the trainable ones, stage by stage.

    Returns the first stage's; the others follow as `next`. pipelines: say how many rows a step of packed ones takes;
    without them it is the batch size.
    """
    placed = layout(model, mesh, config.adapt)
    source = source_of(config.init)
    match = None if source is None else initialisation.match(config.init, source, placed.shapes)
    factors = [n for n in placed.shapes if lora.is_factor(n)]
    first = config.first_stream
    rows, batch = len(data.train[first]), pipelines[first].rows_a_step if pipelines else config.data.batch_size(first)
    total = config.train.total_steps(batch, rows)
    plans, start, touched = [], 0, set()
    for name, stage in (config.stages or {"": StageConfig(optimizer=config.optimizer)}).items():
        where = f"config.stages.{name}" if name else "config"
        sizes = {"batch_size": batch, "rows": rows}
        length = duration.steps(stage.length, total=total, **sizes, where=f"{where}.length") if stage.length else 0
        stop = start + length if length else total
        if not start < stop <= total:
            raise ConfigError(f"{where}: found steps {start} to {stop} of {total}, expected a part of the run.")
        trainable, frozen = optim.split(list(placed.shapes), stage.optimizer, factors, f"{where}.optimizer")
        if both := [n for n in trainable if lora.factors_of(n)[0] in placed.shapes and n.endswith("/kernel")]:
            raise ConfigError(f"{where}.optimizer.train: '{both[0]}' is trained, but config.adapt.lora adapts it.")
        tx, schedule = optim.build_optimizer(
            stage.optimizer,
            {n: placed.shapes[n] for n in trainable},
            total_steps=stop - start,
            **sizes,
            where=f"{where}.optimizer",
        )
        shapes = jax.eval_shape(
            lambda p, f, tx=tx: new_state(p, f, tx, config.train.ema > 0),
            {n: placed.shapes[n] for n in trainable},
            {n: placed.shapes[n] for n in frozen},
        )
        shardings = sharding.like_parameters(shapes, placed.shardings, placed.shapes, mesh)
        abstract = jax.tree.map(lambda s, h: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=h), shapes, shardings)
        touched |= set(trainable)
        left_out = tuple(n for n in match.taken if n not in touched) if match else ()
        parts = placed, tuple(trainable), tuple(frozen), tx, schedule, total, abstract, shardings
        plans.append(Plan(*parts, stage.optimizer, name, start, stop, left_out, match))
        start = stop
    if match and (idle := [n for n in match.new if n not in touched]):
        raise ConfigError(
            f"config.optimizer: {len(idle)} parameters begin at random and are never trained, for '{config.init}' "
            f"lacks them: {initialisation.listed(idle)}. Add them to optimizer.train, or leave out what needs them."
        )
    plan = plans[-1]
    for earlier in reversed(plans[:-1]):
        plan = dataclasses.replace(earlier, next=plan)
    return plan


def initial_params(config: Config, model: Multimodal, placed: Layout) -> Flat:
    """Every parameter as the run begins with it, {flat name: array}, each born in its sharding: those that `init.path`
    has from there, the others drawn by the seed.
    """
    import flax.linen as nn

    source, given = source_of(config.init), {}
    drawn = list(placed.shapes)
    if source is not None:
        found = initialisation.match(config.init, source, placed.shapes)
        whole = {*found.taken, *found.adapted}
        given = source.read(placed.abstract(whole) | initialisation.as_given(placed, source.shapes, found.grown))
        drawn = [n for n in placed.shapes if n not in whole]

    def make(key: jax.Array, given: Flat) -> Flat:
        factors = {n: placed.shapes[n] for n in drawn if lora.is_factor(n)}
        params = {**flat_names(nn.meta.unbox(initialise(model, key))), **lora.initial_factors(key, factors)}
        # A head with more classes than the source's keeps the columns that it had.
        return {n: params[n].at[..., : given[n].shape[-1]].set(given[n]) if n in given else params[n] for n in drawn}

    born = sharding.jit(placed.mesh, make, out_shardings={n: placed.shardings[n] for n in drawn})
    new = born(jax.random.key(config.train.seed), {n: x for n, x in given.items() if n in drawn}) if drawn else {}
    return {n: new[n] if n in new else given[n] for n in placed.shapes}


def initial_state(config: Config, model: Multimodal, plan: Plan) -> State:
    """The state before the first update, in its shardings."""

    def make(params: Flat) -> State:
        trained, frozen = ({n: params[n] for n in names} for names in (plan.trainable, plan.frozen))
        return new_state(trained, frozen, plan.tx, config.train.ema > 0)

    build = sharding.jit(plan.layout.mesh, make, donate_argnums=0, out_shardings=plan.shardings)
    return build(initial_params(config, model, plan.layout))


def enter(plan: Plan, state: State) -> State:
    """The state with which the stage of `plan` begins, of that with which the one before ended (it is used up)."""

    def make(state: State) -> State:
        params = {**state["params"], **state["frozen"]}
        trained, frozen = ({n: params[n] for n in names} for names in (plan.trainable, plan.frozen))
        return next_state(state, trained, frozen, plan.tx)

    kept = {k: v for k, v in state.items() if k != "opt"}
    return sharding.jit(plan.layout.mesh, make, donate_argnums=0, out_shardings=plan.shardings)(kept)


def complete(config: Config, plan: Plan, state: State) -> State:
    """A state as a checkpoint holds it, with what was left out read from `init.path`."""
    if not plan.left_out:
        return state
    base = source_of(config.init).read(plan.layout.abstract(plan.left_out))
    frozen = {**state["frozen"], **base}
    return {**state, "frozen": {n: frozen[n] for n in plan.frozen}}


def weights(config: Config, plan: Plan, state: State, *, average: bool = True) -> Flat:
    """The parameters that the model is applied to: averaged where there is an average, LoRA merged."""
    trained = state["ema"] if average and state["ema"] else state["params"]
    params = {**trained, **state["frozen"]}
    names = plan.layout.merged
    if len(names) == len(params):
        return params
    laid = {n: plan.layout.shardings[n] for n in names}
    return sharding.jit(plan.layout.mesh, lambda p: lora.merge(p, config.adapt.scale), out_shardings=laid)(params)


def train_pipelines(
    config: Config, data: Data, processor: Processor, mesh: Mesh, bad_file: Path | None = None
) -> dict[str, Pipeline]:
    """One training pipeline a stream, giving the rows that this process's devices hold."""
    pipelines = {}
    for name in config.data.streams:
        size = config.data.batch_size(name)
        sharding.check_batch(size, config.train.accumulate, mesh, f"config.data.train ({name})")
        features, seed = config.features_of(name), config.train.seed
        own = config.data.of_stream(name)
        where = "config.data.train" + (f".{name}" if len(config.data.streams) > 1 else "")
        layout = layouts.layout_of(own, where, data.train[name], processor, features, seed)
        if own.pack_rows:
            _check_positions(config, name, layout)
        pipelines[name] = make_pipeline(
            data.train[name],
            processor,
            features,
            batch_size=size,
            seed=seed,
            train=True,
            rows=sharding.local_rows(mesh, size),
            threads=config.data.threads,
            max_bad_fraction=config.data.max_bad_fraction,
            bad_file=bad_file,
            layout=layout,
        )
    return pipelines


def _check_positions(config: Config, stream: str, layout: layouts.Layout) -> None:
    """Packed rows count their positions each for itself, which a step cannot check: a longer one would be NaN."""
    needs = frozenset().union(*(task.needs for task in config.tasks_of(stream).values()))
    longest = int(layout.lengths.longest.max())
    for part, wanted in (("text_encoder", {"text_encoder", "contrastive"}), ("decoder", {"decoder"})):
        tower = getattr(config.model, part)
        if tower and needs & wanted and tower.position in ("learned", "sincos") and tower.length < longest:
            raise ConfigError(
                f"config.model.{part}.length: found {tower.length} positions, but a row has {longest} tokens. Set it "
                f"to {longest} or more."
            )
