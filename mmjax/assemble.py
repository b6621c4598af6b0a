"""What a command needs, built once from a Config: sources, processor, model, mesh, parameter layout, optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from mmjax import optim, sharding
from mmjax.data.mixture import Mixture
from mmjax.data.packed import make_pipeline, packed_processor
from mmjax.data.pipeline import Pipeline
from mmjax.data.processor import Processor
from mmjax.data.sources import Source, open_source
from mmjax.data.splits import holdout, overlap
from mmjax.errors import ConfigError
from mmjax.experiment import Config
from mmjax.models.multimodal import Multimodal, TokenIds, initialise, resolve_dtype
from mmjax.train_step import Flat, State, flat_names, new_state


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
    """Tokenizer, answer list and labels from the training annotations; of packed sets the one that packed them."""
    sources = list(data.train.values())
    if packed := packed_processor(sources, config.processor, "config.processor"):
        return packed
    features = frozenset().union(*(config.features_of(s) for s in config.data.streams))
    return Processor.fit(config.processor, sources, features, base=config.data.root)


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
        image_size=(processor.image.size, processor.image.size),
        mean=processor.image.mean,
        std=processor.image.std,
        tokens=token_ids(processor),
        heads=tuple(h for task in config.tasks.values() for h in task.heads(processor)),
        contrastive=next((t.loss_kind for t in config.tasks.values() if hasattr(t, "loss_kind")), "sigmoid")
        if "contrastive" in needs
        else "",
        dtype=resolve_dtype(config.model.dtype, jax.default_backend()),
    )


@dataclass(frozen=True)
class Layout:
    """Shapes and shardings of all parameters, none allocated yet; names are flat ("patch_encoder/block_00/...")."""

    mesh: Mesh
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    shardings: Mapping[str, NamedSharding]


def layout(model: Multimodal, mesh: Mesh) -> Layout:
    """Traces the initialisation without running it, and lays every parameter on the mesh."""
    import flax.linen as nn

    with sharding.on_mesh(mesh):
        boxed = flat_names(jax.eval_shape(lambda key: initialise(model, key), jax.random.key(0)))
    shapes = {n: nn.meta.unbox(leaf) for n, leaf in boxed.items()}
    return Layout(mesh, shapes, sharding.parameter_shardings(boxed, mesh))


@dataclass(frozen=True)
class Plan:
    """How the state is trained: which parameters, by which optimizer, laid out how.

    `abstract` is the state as shapes with shardings: what a checkpoint is restored into.
    """

    layout: Layout
    trainable: tuple[str, ...]
    frozen: tuple[str, ...]
    tx: optax.GradientTransformation
    schedule: Any
    total_steps: int
    abstract: State
    shardings: State


def make_plan(config: Config, model: Multimodal, data: Data, mesh: Mesh) -> Plan:
    """Splits the parameters by the freeze patterns and builds the optimizer for the trainable ones."""
    placed = layout(model, mesh)
    rows = len(data.train[config.first_stream])
    batch = config.data.batch_size(config.first_stream)
    total = config.train.total_steps(batch, rows)
    trainable, frozen = optim.split(list(placed.shapes), config.optimizer.freeze)
    tx, schedule = optim.build_optimizer(
        config.optimizer, {n: placed.shapes[n] for n in trainable}, total_steps=total, batch_size=batch, rows=rows
    )
    shapes = jax.eval_shape(
        lambda p, f: new_state(p, f, tx, config.train.ema > 0),
        {n: placed.shapes[n] for n in trainable},
        {n: placed.shapes[n] for n in frozen},
    )
    shardings = sharding.like_parameters(shapes, placed.shardings, placed.shapes, mesh)
    abstract = jax.tree.map(lambda s, h: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=h), shapes, shardings)
    return Plan(placed, tuple(trainable), tuple(frozen), tx, schedule, total, abstract, shardings)


def initial_params(config: Config, model: Multimodal, placed: Layout) -> Flat:
    """Every parameter as the run begins with it, {flat name: array}, each born in its sharding."""
    import flax.linen as nn

    make = lambda key: flat_names(nn.meta.unbox(initialise(model, key)))  # noqa: E731
    return sharding.jit(placed.mesh, make, out_shardings=dict(placed.shardings))(jax.random.key(config.train.seed))


def initial_state(config: Config, model: Multimodal, plan: Plan) -> State:
    """The state before the first update, in its shardings."""

    def make(params: Flat) -> State:
        trained, frozen = ({n: params[n] for n in names} for names in (plan.trainable, plan.frozen))
        return new_state(trained, frozen, plan.tx, config.train.ema > 0)

    build = sharding.jit(plan.layout.mesh, make, donate_argnums=0, out_shardings=plan.shardings)
    return build(initial_params(config, model, plan.layout))


def train_pipelines(
    config: Config, data: Data, processor: Processor, mesh: Mesh, bad_file: Path | None = None
) -> dict[str, Pipeline]:
    """One training pipeline a stream, giving the rows that this process's devices hold."""
    pipelines = {}
    for name in config.data.streams:
        size = config.data.batch_size(name)
        sharding.check_batch(size, config.train.accumulate, mesh, f"config.data.train ({name})")
        pipelines[name] = make_pipeline(
            data.train[name],
            processor,
            config.features_of(name),
            batch_size=size,
            seed=config.train.seed,
            train=True,
            rows=sharding.local_rows(mesh, size),
            threads=config.data.threads,
            max_bad_fraction=config.data.max_bad_fraction,
            bad_file=bad_file,
        )
    return pipelines
