"""One update: state, loss over all streams and tasks, gradients, accumulation, non-finite guard.

The state is a dict of flat {name: array} trees, so that patterns, checkpoints and exports speak of the same names:

    params   trainable float32 parameters          frozen   the others: no gradient, no optimizer state
    opt      optimizer state                       ema      moving average of params ({} when off)
    step     updates done                          skipped, bad_in_a_row   steps without a finite gradient
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from mmjax.models import lora
from mmjax.models.forward import Forward
from mmjax.models.multimodal import Multimodal
from mmjax.tasks import SumWeight, Task

State = dict[str, Any]
Flat = dict[str, jax.Array]
Batch = Mapping[str, Mapping[str, jax.Array]]
Losses = dict[str, SumWeight]


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}, as linen wants parameters."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def flat_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}."""
    return traverse_util.flatten_dict(dict(tree), sep="/")


def new_state(params: Flat, frozen: Flat, tx: optax.GradientTransformation, ema: bool) -> State:
    """The state before the first update."""
    return {
        "params": params,
        "frozen": frozen,
        "opt": tx.init(params),
        "ema": jax.tree.map(jnp.copy, params) if ema else {},
        "step": jnp.zeros((), jnp.int32),
        "skipped": jnp.zeros((), jnp.int32),
        "bad_in_a_row": jnp.zeros((), jnp.int32),
    }


def next_state(state: State, params: Flat, frozen: Flat, tx: optax.GradientTransformation) -> State:
    """The state as another stage begins: other parameters trained, the optimizer's memory empty, all counts kept.

    The average of what was trained before goes on; that of what is newly trained begins at its value.
    """
    average = {n: state["ema"].get(n, x) for n, x in params.items()} if state["ema"] else {}
    return {**state, "params": params, "frozen": frozen, "opt": tx.init(params), "ema": average}


class Objective:
    """The sum over streams and tasks of task.weight * loss sum / loss weight, exact under microbatches.

    Attributes:
      tasks: {stream: {name: task}}.
      accumulate: microbatches A. Each stream's rows are dealt out in turn (row r goes to microbatch r % A), which keeps
        them where they lie on the mesh. The weights of the whole batch are summed first; then each microbatch
        contributes weight * sum / total, so the gradient is that of the whole batch and not a mean of means. Tasks
        that couple rows embed all microbatches first and push the gradient of their loss back through a second pass
        (GradCache: Gao et al., 2021).
      lora_scale: alpha / rank, where there are LoRA factors among the parameters.
    """

    def __init__(
        self,
        model: Multimodal,
        tasks: Mapping[str, Mapping[str, Task]],
        accumulate: int = 1,
        lora_scale: float | None = None,
    ):
        self.model, self.tasks, self.accumulate, self.lora_scale = model, tasks, accumulate, lora_scale

    def gradient(self, params: Flat, frozen: Flat, batch: Batch, rng: jax.Array) -> tuple[jax.Array, Losses, Flat]:
        """(loss, {task/name: (sum, weight)}, gradient by params)."""
        if self.accumulate == 1:

            def whole(p: Flat) -> tuple[jax.Array, Losses]:
                losses = {}
                for stream, forward in self._forwards(p, frozen, batch, jax.random.fold_in(rng, 0)).items():
                    for name, task in self.tasks[stream].items():
                        losses.update({f"{name}/{k}": v for k, v in task.loss(forward).items()})
                return self._total(losses), losses

            (loss, losses), gradient = jax.value_and_grad(whole, has_aux=True)(params)
            return loss, losses, gradient
        return self._accumulated(params, frozen, batch, rng)

    def _forwards(self, params: Flat, frozen: Flat, batch: Batch, rng: jax.Array) -> dict[str, Forward]:
        tree = nested(lora.merge({**params, **frozen}, self.lora_scale))
        return {
            stream: Forward(self.model, tree, batch[stream], jax.random.fold_in(rng, i), train=True)
            for i, stream in enumerate(self.tasks)
        }

    def _total(self, losses: Losses) -> jax.Array:
        total = jnp.zeros(())
        for tasks in self.tasks.values():
            for name, task in tasks.items():
                value, weight = losses[f"{name}/loss"]
                total += task.weight * value / jnp.maximum(weight, 1e-9)
        return total

    def _tasks(self, coupled: bool) -> list[tuple[str, str, Task]]:
        return [(s, n, t) for s, tasks in self.tasks.items() for n, t in tasks.items() if t.couples_rows == coupled]

    def _accumulated(self, params: Flat, frozen: Flat, batch: Batch, rng: jax.Array) -> tuple[jax.Array, Losses, Flat]:
        parts = self.accumulate
        micro = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1), batch)
        whole = lambda x: jnp.swapaxes(x, 0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])  # noqa: E731
        split = lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)  # noqa: E731

        def forwards(p: Flat, rows: Batch, m: jax.Array) -> dict[str, Forward]:
            return self._forwards(p, frozen, rows, jax.random.fold_in(rng, m))

        # Pass 1, no gradient: total weights of the additive tasks, embeddings of the coupled ones. XLA drops what
        # neither needs.
        def first(_: None, xs: tuple[Batch, jax.Array]) -> tuple[None, Any]:
            views = forwards(params, *xs)
            weights = {n: t.loss(views[s])["loss"][1] for s, n, t in self._tasks(coupled=False)}
            return None, (weights, {n: t.embed(views[s]) for s, n, t in self._tasks(coupled=True)})

        index = jnp.arange(parts)
        _, (weights, embedded) = jax.lax.scan(first, None, (micro, index))
        totals = jax.tree.map(lambda w: jnp.maximum(jnp.sum(w), 1e-9), weights)
        embedded = jax.tree.map(whole, embedded)

        # The coupled losses of the whole batch, and their gradients by embeddings and by the scale parameters.
        def couple(p: Flat, embeddings: dict[str, Any]) -> tuple[jax.Array, Losses]:
            losses: Losses = {}
            scales = {s: f.scale() for s, f in self._forwards(p, frozen, batch, rng).items() if self._couples(s)}
            for s, n, task in self._tasks(coupled=True):
                made = task.couple(embeddings[n], embedded[n][1], scales[s])
                losses.update({f"{n}/{k}": v for k, v in made.items()})
            total = sum(
                (
                    t.weight * losses[f"{n}/loss"][0] / jnp.maximum(losses[f"{n}/loss"][1], 1e-9)
                    for _, n, t in self._tasks(True)
                ),
                jnp.zeros(()),
            )
            return total, losses

        embeddings = {n: e for n, (e, _) in embedded.items()}
        (coupled_loss, coupled), (gradient, cotangents) = jax.value_and_grad(couple, argnums=(0, 1), has_aux=True)(
            params, embeddings
        )
        cotangents = jax.tree.map(split, cotangents)

        # Pass 2: one scalar a microbatch whose gradient is its share of the whole batch's gradient.
        def second(carry: tuple[Flat, jax.Array, Losses], xs: tuple[Batch, Any, jax.Array]) -> tuple[Any, None]:
            rows, cotangent, m = xs

            def share(p: Flat) -> tuple[jax.Array, tuple[jax.Array, Losses]]:
                views = forwards(p, rows, m)
                loss, losses = jnp.zeros(()), {}
                for s, n, t in self._tasks(coupled=False):
                    made = t.loss(views[s])
                    losses.update({f"{n}/{k}": v for k, v in made.items()})
                    loss += t.weight * made["loss"][0] / totals[n]
                surrogate = loss
                for s, n, t in self._tasks(coupled=True):
                    made, _ = t.embed(views[s])
                    surrogate += sum(
                        jnp.vdot(a, b)
                        for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(cotangent[n]), strict=True)
                    )
                return surrogate, (loss, losses)

            (_, (loss, losses)), new = jax.value_and_grad(share, has_aux=True)(params)
            gradient, total, sums = carry
            return (jax.tree.map(jnp.add, gradient, new), total + loss, jax.tree.map(jnp.add, sums, losses)), None

        shapes = jax.eval_shape(
            lambda: {
                f"{n}/{k}": v
                for s, n, t in self._tasks(coupled=False)
                for k, v in t.loss(forwards(params, jax.tree.map(lambda x: x[0], micro), 0)[s]).items()
            }
        )
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (gradient, loss, losses), _ = jax.lax.scan(second, (gradient, coupled_loss, zeros), (micro, cotangents, index))
        return loss, {**losses, **coupled}, gradient

    def _couples(self, stream: str) -> bool:
        return any(t.couples_rows for t in self.tasks[stream].values())


def make_train_step(
    objective: Objective, tx: optax.GradientTransformation, *, seed: int, ema: float = 0.0
) -> Callable[[State, Batch], tuple[State, dict[str, Any]]]:
    """The pure update (state, batch) -> (state, metrics as (sum, weight)). Randomness is fold_in(seed, step).

    A step whose loss or gradient is not finite leaves parameters, optimizer and average as they were, and is counted.
    """

    def step(state: State, batch: Batch) -> tuple[State, dict[str, Any]]:
        rng = jax.random.fold_in(jax.random.key(seed), state["step"])
        loss, losses, gradient = objective.gradient(state["params"], state["frozen"], batch, rng)
        norm = optax.global_norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt = tx.update(gradient, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)  # noqa: E731
        params = keep(params, state["params"])
        average = jax.tree.map(lambda e, p: e * ema + p * (1 - ema), state["ema"], params) if state["ema"] else {}
        bad = 1 - finite.astype(jnp.int32)
        new = {
            "params": params,
            "frozen": state["frozen"],
            "opt": keep(opt, state["opt"]),
            "ema": keep(average, state["ema"]),
            "step": state["step"] + 1,
            "skipped": state["skipped"] + bad,
            "bad_in_a_row": (state["bad_in_a_row"] + 1) * bad,
        }
        one = jnp.ones(())
        metrics = {"loss": (loss, one), "gradient_norm": (norm, one), **losses}
        return new, {"metrics": metrics, "bad_in_a_row": new["bad_in_a_row"], "skipped": new["skipped"]}

    return step
