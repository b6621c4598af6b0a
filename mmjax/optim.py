"""The optimizer: an optax rule by name, a schedule, and freezing, learning rate and weight decay by pattern.

Parameters are a flat dict {"patch_encoder/block_00/attention/query/kernel": array}; a pattern is a regular expression
that must match a whole name. A pattern that matches nothing is an error, because it is a silent no-op otherwise.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from mmjax import config as config_lib
from mmjax import duration
from mmjax.errors import ConfigError, did_you_mean

Schedule = Callable[[Any], Any]
WHERE = "config.optimizer"
KERNELS = ((".*/(kernel|lora_a|lora_b)", 1.0),)

# Arguments of optax factories that this module sets itself, and the key of the config that does.
_OURS = {
    "learning_rate": "lr",
    "weight_decay": "weight_decay",
    "weight_decay_rate": "weight_decay",
    "mask": "decay",
    "weight_decay_mask": "decay",
}
# Rules whose decay is one subtraction of lr * decay * parameter at the end, so that it can as well be done after them,
# with a factor for each parameter. In others (lamb, lars, adadelta, prodigy, ...) it goes through the rule's own norms
# or moments. For muon it must be done after: its mask never reaches the parameters that it gives to Adam.
_DECAY_LAST = ("adamw", "adamaxw", "lion", "ademamix", "simplified_ademamix", "muon", "sophia")


# Rules that would run and yet be wrong in this loop.
_UNFIT = {
    "dpsgd": "it needs the gradient of each example",
    "schedule_free_adamw": "its parameters at evaluation are not those of training",
    "schedule_free_sgd": "its parameters at evaluation are not those of training",
}


class Patterns(tuple):
    """((pattern, factor), ...), the first match wins. In a config also a dict (ConfigDict keys can hold no dots)."""

    @classmethod
    def from_config(cls, value: Any, where: str) -> Patterns:
        value = config_lib.parsed(value)
        pairs = list(value.items()) if isinstance(value, Mapping) else value
        return cls(config_lib.build(tuple[tuple[str, float], ...], pairs, where))


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """`name`: any rule of optax or optax.contrib; `args`: its own arguments (b1, b2, momentum, ...).

    Attributes:
      lr: the peak of the schedule; end_lr: its last value as a share of lr (cosine and linear).
      warmup: duration of the linear rise; clip: global norm of the trainable gradients, 0 = off.
      weight_decay: decoupled, times the learning rate, times the factor of the first match in `decay` (no match: 0).
      l2: the loss has l2 / 2 * |parameter|^2 more, times the same factor: the gradient, before it is clipped, has l2 *
        parameter more.
      train: patterns of the only parameters that are trained (and LoRA's factors, where there are any); () is all.
      freeze: patterns of parameters that are not, though `train` names them. What is not trained has no gradient and no
        optimizer state.
      lr_scale: (pattern, factor) of the updates.
      layer_decay: (pattern, factor): each layer of a stack learns by that factor more slowly than the one above it (see
        `layer_factors`).
    """

    name: str = "adamw"
    lr: float = 1e-3
    schedule: str = config_lib.choice("cosine", "linear", "constant", "rsqrt")
    warmup: str = "5%"
    end_lr: float = 0.0
    clip: float = 1.0
    weight_decay: float = 0.0
    l2: float = 0.0
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    train: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    lr_scale: Patterns = Patterns()
    layer_decay: Patterns = Patterns()
    decay: Patterns = Patterns(KERNELS)

    def check(self, where: str) -> None:
        """Values that cannot be meant."""
        known = rules()
        if self.name not in known:
            hint = did_you_mean(self.name, known) or f" Known: {', '.join(sorted(known))}."
            raise ConfigError(f"{where}.name: optax has no optimizer '{self.name}'.{hint}")
        if self.name in _UNFIT:
            raise ConfigError(f"{where}.name: '{self.name}' does not fit this training loop: {_UNFIT[self.name]}.")
        for key in ("lr", "end_lr", "clip", "weight_decay", "l2"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{where}.{key}: found {getattr(self, key)}, expected 0 or more.")
        if self.end_lr and self.schedule in ("constant", "rsqrt"):
            raise ConfigError(
                f"{where}.end_lr: the schedule '{self.schedule}' has no end. Use cosine or linear, or leave it 0."
            )
        for pattern, factor in self.lr_scale:
            if factor <= 0:
                raise ConfigError(
                    f"{where}.lr_scale: '{pattern}' has factor {factor}. Use {where}.freeze for no updates."
                )
        for pattern, factor in self.layer_decay:
            if not 0 < factor <= 1:
                raise ConfigError(f"{where}.layer_decay: '{pattern}' has factor {factor}, expected one in (0, 1].")


def rules() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """Every optax factory that takes a learning rate, by name."""
    found = {}
    for module in (optax.contrib, optax):
        for name, factory in inspect.getmembers(module, inspect.isfunction):
            takes = inspect.signature(factory).parameters
            if "learning_rate" in takes and name != "schedule_free" and not name.startswith(("_", "scale_by_")):
                found[name] = factory
    return found


# ------------------------------------------------------------------------------------------------------------- patterns
def select(names: Collection[str], pattern: str, where: str, of: str = "parameter") -> set[str]:
    """The names that `pattern` matches in full. ConfigError when it is no regular expression or matches none."""
    try:
        matcher = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{where}: '{pattern}' is no regular expression ({error}).") from error
    chosen = {name for name in names if matcher.fullmatch(name)}
    if not chosen:
        raise ConfigError(f"{where}: the pattern '{pattern}' matches no {of}.{_near(names, pattern)}")
    return chosen


def _near(names: Collection[str], pattern: str) -> str:
    """Did you mean 'patch_encoder/.*' (152 parameters)?"""
    counts: dict[str, int] = {}
    for name in names:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            group = "/".join(parts[:depth]) + "/.*"
            counts[group] = counts.get(group, 0) + 1
        counts[f".*/{parts[-1]}"] = counts.get(f".*/{parts[-1]}", 0) + 1
    hint = did_you_mean(pattern, counts)
    if hint:
        count = counts[hint.split("'")[1]]
        return hint[:-1] + f" ({count} parameter{'s' if count > 1 else ''})?"
    return f" The first parts of the names are: {', '.join(sorted({name.split('/')[0] for name in names}))}."


def split(
    names: Sequence[str], config: OptimizerConfig, factors: Collection[str] = (), where: str = WHERE
) -> tuple[list[str], list[str]]:
    """Names -> (trainable, frozen), in the order given. factors: LoRA's, which are trained if not frozen by name."""
    named = set().union(*(select(names, pattern, f"{where}.train") for pattern in config.train))
    trained = named | set(factors) if named or factors else set(names)
    frozen = set().union(*(select(names, pattern, f"{where}.freeze") for pattern in config.freeze))
    if not trained - frozen:
        raise ConfigError(
            f"{where}.freeze: the patterns {', '.join(map(repr, config.freeze))} freeze every parameter that would be "
            "trained; nothing is left to train."
        )
    return [n for n in names if n in trained - frozen], [n for n in names if n not in trained - frozen]


def factors(
    names: Sequence[str], patterns: Sequence[tuple[str, float]], default: float, where: str
) -> dict[str, float]:
    """name -> factor of the first pattern that matches it. A pattern that earlier ones leave nothing is an error."""
    found: dict[str, float] = {}
    for pattern, factor in patterns:
        fresh = [n for n in select(names, pattern, where, "trainable parameter") if n not in found]
        if not fresh:
            raise ConfigError(f"{where}: all that '{pattern}' matches is taken by an earlier pattern. Put it first.")
        found.update(dict.fromkeys(fresh, float(factor)))
    return {name: found.get(name, default) for name in names}


_LAYER = re.compile(r"(.*/)block_(\d+)/")
_ABOVE = re.compile(r".*/(final_norm/.*|pool/.*|output)")  # what of a tower comes after its blocks


def layer_factors(names: Sequence[str], patterns: Sequence[tuple[str, float]], where: str) -> dict[str, float]:
    """name -> factor by depth (BEiT: Bao et al., 2022; ELECTRA: Clark et al., 2020).

    In a stack of n blocks with factor f, block i (from 0) learns at f^(n - 1 - i), what a tower has below its blocks
    (stem, embeddings, positions) at f^n, its final norm, pooling and output at 1. Other parameters, and those that no
    pattern matches, learn at 1. A pattern that matches no block is an error.
    """
    depth: dict[str, int] = {}
    for name in names:
        if found := _LAYER.match(name):
            depth[found[1]] = max(depth.get(found[1], 0), int(found[2]) + 1)
    towers = {stack.split("/")[0]: n for stack, n in depth.items()}
    made: dict[str, float] = {}
    for name, factor in factors(names, patterns, 1.0, where).items():
        found, tower = _LAYER.match(name), name.split("/")[0]
        if found:
            made[name] = factor ** (depth[found[1]] - 1 - int(found[2]))
        elif tower in towers and not _ABOVE.fullmatch(name):
            made[name] = factor ** towers[tower]
        else:
            made[name] = 1.0
    for pattern, _ in patterns:
        if not any(_LAYER.match(n) for n in select(names, pattern, where)):
            raise ConfigError(f"{where}: '{pattern}' matches no block of a stack, so there is no depth to go by.")
    return made


def _scales(config: OptimizerConfig, names: Sequence[str], where: str) -> dict[str, float]:
    """name -> what its updates are multiplied with."""
    scale = factors(names, config.lr_scale, 1.0, f"{where}.lr_scale")
    by_depth = layer_factors(names, config.layer_decay, f"{where}.layer_decay")
    return {n: scale[n] * by_depth[n] for n in names}


def _decay_factors(config: OptimizerConfig, names: Sequence[str], where: str) -> dict[str, float]:
    # Without weight decay the default pattern says nothing: a run that trains only biases must not fail for it.
    if not (config.weight_decay or config.l2) and tuple(config.decay) == KERNELS:
        return dict.fromkeys(names, 0.0)
    return factors(names, config.decay, 0.0, f"{where}.decay")


# ------------------------------------------------------------------------------------------------------------- schedule
def build_schedule(config: OptimizerConfig, total_steps: int, warmup_steps: int) -> Schedule:
    """step (from 0) -> learning rate, float32.

    The warm-up reaches lr in its last step: min(1, (step + 1) / warmup). Then cosine and linear go from lr to end_lr *
    lr with p = (step - warmup) / (total - warmup), and rsqrt is lr * sqrt(w / (w + step - warmup)), w = max(1, warmup).
    A warm-up longer than the run (a short trial of a long config) is no error: the rate is still rising at the end.
    """
    span = max(1, total_steps - warmup_steps)

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum(1.0, (step + 1) / max(1, warmup_steps))
        after = jnp.maximum(0.0, step - warmup_steps)
        p = jnp.minimum(1.0, after / span)
        if config.schedule == "cosine":
            shape = config.end_lr + (1 - config.end_lr) * 0.5 * (1 + jnp.cos(jnp.pi * p))
        elif config.schedule == "linear":
            shape = config.end_lr + (1 - config.end_lr) * (1 - p)
        elif config.schedule == "rsqrt":
            shape = jnp.sqrt(max(1, warmup_steps) / (max(1, warmup_steps) + after))
        else:
            shape = 1.0
        return config.lr * rise * shape

    return schedule


# ------------------------------------------------------------------------------------------------------------ optimizer
def build_optimizer(
    config: OptimizerConfig,
    params: Mapping[str, Any],
    total_steps: int,
    *,
    batch_size: int = 0,
    rows: int = 0,
    where: str = WHERE,
) -> tuple[optax.GradientTransformation, Schedule]:
    """The transformation of gradients into updates, and its schedule (for the log).

    Args:
      params: the *trainable* parameters, flat: name -> anything with a shape (see `split`).
      total_steps: optimizer steps of the run; batch_size, rows: for a warm-up in examples or epochs.

    Raises:
      ConfigError: an unknown rule or argument, a pattern without a match, or a rule that cannot do what is asked.
    """
    config.check(where)
    names = list(params)
    warmup = duration.steps(config.warmup, total=total_steps, batch_size=batch_size, rows=rows, where=f"{where}.warmup")
    schedule = build_schedule(config, total_steps, warmup)
    scale = _scales(config, names, where)
    factory = rules()[config.name]
    _check_arguments(config, factory, schedule, where)
    decay = _decay_factors(config, names, where)
    inside, after = _decay(config, decay, factory, schedule, where)
    parts = []
    if config.l2:
        parts.append(optax.stateless(lambda g, p: {n: x + config.l2 * decay[n] * p[n] for n, x in g.items()}))
    parts += [optax.clip_by_global_norm(config.clip)] if config.clip else []
    parts += [factory(learning_rate=schedule, **config.args, **inside), *after]
    if config.lr_scale or config.layer_decay:
        parts.append(optax.stateless(lambda updates, _: {n: u * scale[n] for n, u in updates.items()}))
    return optax.chain(*parts), schedule


def _check_arguments(config: OptimizerConfig, factory: Callable, schedule: Schedule, where: str) -> None:
    takes = inspect.signature(factory).parameters
    for key in config.args:
        if key in _OURS:
            raise ConfigError(f"{where}.args.{key}: set {where}.{_OURS[key]} instead.")
        if key not in takes:
            known = ", ".join(sorted(set(takes) - set(_OURS)))
            raise ConfigError(
                f"{where}.args.{key}: {config.name} has no such argument; it takes {known}.{did_you_mean(key, takes)}"
            )
    toy = {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32)}

    def one_step(params: Any) -> Any:
        rule = factory(learning_rate=schedule, **config.args)
        return rule.update(params, rule.init(params), params)

    try:  # Some rules want the loss or a Hessian in each update (lbfgs, momo, sophia); this loop gives gradients.
        jax.eval_shape(one_step, toy)
    except Exception as error:
        raise ConfigError(
            f"{where}: {config.name} with args {config.args} cannot take a step from gradients and a schedule alone "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Choose another rule or other args."
        ) from error


def _decay(
    config: OptimizerConfig, factor: dict[str, float], factory: Callable, schedule: Schedule, where: str
) -> tuple[dict[str, Any], list[optax.GradientTransformation]]:
    """Where weight decay goes: (arguments of the factory, transformations after it)."""
    takes = inspect.signature(factory).parameters
    has_own = "weight_decay" in takes
    kinds = sorted({f for f in factor.values() if f})
    if not config.weight_decay or not kinds:
        return ({"weight_decay": 0.0} if has_own else {}), []  # the defaults of adamw and lion are not zero
    mask = next((a for a in ("mask", "weight_decay_mask") if a in takes), None)
    if has_own and config.name != "muon" and len(kinds) == 1:
        decay = {"weight_decay": config.weight_decay * kinds[0]}
        if mask:
            return decay | {mask: {n: bool(f) for n, f in factor.items()}}, []
        if all(factor.values()):
            return decay, []
    if has_own and config.name not in _DECAY_LAST:
        can = "one factor beside 0" if mask else "one factor for all parameters, (('.*', 1.0),)"
        raise ConfigError(f"{where}.decay: {config.name} decays inside its own rule, which takes only {can}.")
    own = {"weight_decay": 0.0} if has_own else {}
    return own, [
        optax.add_decayed_weights(
            lambda count, f=f: -schedule(count) * config.weight_decay * f, mask={n: g == f for n, g in factor.items()}
        )
        for f in kinds
    ]


# ------------------------------------------------------------------------------------------------------------- coverage
def coverage_table(
    config: OptimizerConfig, params: Mapping[str, Any], factors: Collection[str] = (), where: str = WHERE
) -> str:
    """What the patterns did to `params` (all of them, flat): a row a group of the first two parts of the names."""
    trainable, _ = split(list(params), config, factors, where)
    scale = _scales(config, trainable, where)
    decay = _decay_factors(config, trainable, where)
    groups: dict[str, list[str]] = {}
    for name in params:
        groups.setdefault("/".join(name.split("/")[:2]), []).append(name)
    rows = [("parameters of", "number", "trained", "lr x", "decay", *["L2"] * (config.l2 > 0))]
    for group, names in groups.items():
        live = [n for n in names if n in scale]
        size, share = _size(params, names), _size(params, live)
        trained = "no" if not live else "yes" if len(live) == len(names) else f"{100 * share / size:.1f} %"
        wide = _span({scale[n] for n in live})
        strengths = [config.weight_decay, *[config.l2] * (config.l2 > 0)]
        cells = [_span({strength * decay[n] for n in live}) for strength in strengths]
        rows.append((group, f"{size:,}", trained, wide, *cells))
    total, live = _size(params, params), _size(params, trainable)
    rows.append(
        ("all", f"{total:,}", f"{100 * live / total:.1f} %", _span(set(scale.values())), *[""] * (len(rows[0]) - 4))
    )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (f"{row[0]:<{widths[0]}}  " + "  ".join(map(str.rjust, row[1:], widths[1:])) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _size(params: Mapping[str, Any], names: Collection[str]) -> int:
    return sum(int(np.prod(params[n].shape)) for n in names)


def _span(values: set[float]) -> str:
    """ "0.1", or "0..0.1" where a group holds several values."""
    return "-" if not values else f"{min(values):g}" if len(values) == 1 else f"{min(values):g}..{max(values):g}"
