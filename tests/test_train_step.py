"""The update: equal on every mesh, with scan and without, whole and in microbatches, for every task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TASKS

from mmjax import assemble, sharding
from mmjax.experiment import from_mapping
from mmjax.train_step import Objective, make_train_step

MESHES = {"data": {"data": 8}, "fsdp": {"fsdp": 8}, "mixed": {"data": 2, "fsdp": 2, "tensor": 2}}


class Setup:
    """A tiny run up to its first step, on the devices that its mesh names."""

    def __init__(self, mapping):
        self.config = from_mapping(mapping)
        sizes = self.config.mesh
        devices = jax.devices()[: (sizes.data or 1) * sizes.fsdp * sizes.tensor]
        self.mesh = sharding.make_mesh(sizes, devices)
        self.data = assemble.open_data(self.config)
        self.processor = assemble.fit_processor(self.config, self.data)
        self.model = assemble.build_model(self.config, self.processor)
        self.plan = assemble.make_plan(self.config, self.model, self.data, self.mesh)
        tasks = {s: self.config.tasks_of(s) for s in self.config.data.train}
        self.objective = Objective(self.model, tasks, self.config.train.accumulate)
        pipelines = assemble.train_pipelines(self.config, self.data, self.processor, self.mesh)
        self.batch = {
            n: sharding.put_batch(next(p.batches(0, 1)), self.mesh, p.batch_size) for n, p in pipelines.items()
        }

    def state(self):
        return assemble.initial_state(self.config, self.model, self.plan)

    def gradient(self, state=None):
        state = state or self.state()
        run = sharding.jit(self.mesh, lambda p, f, b: self.objective.gradient(p, f, b, jax.random.key(0)))
        loss, _, gradient = run(state["params"], state["frozen"], self.batch)
        return float(loss), jax.device_get(gradient)


def assert_same(one, other, bound=1e-5):
    """Loss and every gradient agree to `bound` of the tensor's largest value.

    Where a tensor is all but 0, of the largest gradient instead.
    """
    assert one[0] == pytest.approx(other[0], rel=bound)
    floor = 1e-3 * max(np.abs(g).max() for g in one[1].values())
    for name, gradient in one[1].items():
        np.testing.assert_allclose(
            other[1][name], gradient, rtol=0, atol=bound * max(np.abs(gradient).max(), floor), err_msg=name
        )


@pytest.fixture(scope="module")
def reference(tiny_mapping):
    """{task: (loss, gradient)} on one device."""
    kept = {}

    def of(task):
        if task not in kept:
            kept[task] = Setup(tiny_mapping(task)).gradient()
        return kept[task]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("task", TASKS)
def test_loss_and_gradients_are_equal_on_every_mesh(tiny_mapping, reference, task, mesh):
    mapping = tiny_mapping(task)
    mapping["mesh"] = MESHES[mesh]
    assert_same(reference(task), Setup(mapping).gradient())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["contrastive", "captioning", "vqa"])
def test_scan_over_layers_gives_the_same_gradients(tiny_mapping, reference, task):
    mapping = tiny_mapping(task)
    for tower in ("patch_encoder", "text_encoder", "fusion", "decoder"):
        mapping["model"][tower]["scan"] = True
    assert_same(reference(task), Setup(mapping).gradient())


@pytest.mark.slow
@pytest.mark.parametrize(
    "tasks", [("contrastive", "captioning", "vqa"), ("contrastive_softmax",), ("vqa_generate", "classification")]
)
def test_microbatches_give_the_gradient_of_the_whole_batch(tiny_mapping, tasks):
    whole = Setup(tiny_mapping(*tasks)).gradient()
    assert_same(whole, Setup(tiny_mapping(*tasks, train__accumulate=4)).gradient())
    mixed = tiny_mapping(*tasks, train__accumulate=2)
    mixed["mesh"] = MESHES["mixed"]
    assert_same(whole, Setup(mixed).gradient())


def test_one_stream_encodes_each_picture_once(tiny_mapping):
    """Three tasks on one stream cost one picture tower: by FLOPs of the traced loss."""
    from mmjax.flops import count

    def forward_flops(*tasks):
        s = Setup(tiny_mapping(*tasks))
        state = s.state()
        return count(
            lambda p, f, b: s.objective.gradient(p, f, b, jax.random.key(0))[0],
            state["params"],
            state["frozen"],
            s.batch,
        )

    image = forward_flops("classification")
    parts = [forward_flops(t) for t in ("captioning", "vqa")]
    both = forward_flops("captioning", "vqa", "classification")
    assert both < sum(parts) + image - 1.9 * 0.9 * image


def test_freezing_a_tower_removes_its_optimizer_state_and_its_backward_pass(tiny_mapping):
    from mmjax.flops import count

    full = Setup(tiny_mapping("contrastive"))
    mapping = tiny_mapping("contrastive")
    mapping["optimizer"]["freeze"] = ["patch_encoder/.*"]
    half = Setup(mapping)
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    tower = size({n: s for n, s in full.plan.layout.shapes.items() if n.startswith("patch_encoder/")})
    assert size(full.plan.abstract["opt"]) - size(half.plan.abstract["opt"]) == 2 * tower
    assert all(not n.startswith("patch_encoder/") for n in half.plan.abstract["params"])

    def flops(s):
        a = s.plan.abstract
        return count(
            lambda p, f, b: s.objective.gradient(p, f, b, jax.random.key(0))[2], a["params"], a["frozen"], s.batch
        )

    def tower_forward(s):
        from mmjax.models.multimodal import Forward
        from mmjax.train_step import nested

        a = s.plan.layout.shapes
        return count(lambda p, b: Forward(s.model, nested(p), b).image().pooled, a, s.batch["main"])

    # Forward once and backward twice become forward once (the stem's input needs no gradient to begin with).
    saved = flops(full) - flops(half)
    assert 1.7 * tower_forward(full) < saved < 2.1 * tower_forward(full)
    state = half.state()
    step = sharding.jit(half.mesh, make_train_step(half.objective, half.plan.tx, seed=0))
    after, _ = step(state, half.batch)
    assert all(bool(jnp.all(after["frozen"][n] == state["frozen"][n])) for n in state["frozen"])


def test_a_step_without_finite_gradient_is_skipped_and_counted(tiny_mapping):
    s = Setup(tiny_mapping("classification", train__ema=0.9))
    step = sharding.jit(s.mesh, make_train_step(s.objective, s.plan.tx, seed=0, ema=0.9))
    state = s.state()
    bias = "head_classification/logits/bias"
    poisoned = {**state, "params": {**state["params"], bias: jnp.full_like(state["params"][bias], jnp.nan)}}
    after, out = step(poisoned, s.batch)
    assert int(out["bad_in_a_row"]) == int(after["skipped"]) == 1
    for tree in ("params", "opt", "ema"):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(after[tree]), jax.device_get(poisoned[tree]))
    after, out = step({**after, "params": state["params"]}, s.batch)
    assert int(out["bad_in_a_row"]) == 0 and int(after["skipped"]) == 1
    name = "head_classification/logits/kernel"  # the head starts at zero: towers move from the second update on
    assert not np.array_equal(after["params"][name], state["params"][name])


def test_state_is_born_sharded_and_donated(tiny_mapping):
    mapping = tiny_mapping("vqa")
    mapping["mesh"] = MESHES["fsdp"]
    s = Setup(mapping)
    state = s.state()
    kernel = state["params"]["patch_encoder/transformer/block_00/mlp/up/kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[0] == kernel.shape[0] // 8
    step = sharding.jit(
        s.mesh,
        make_train_step(s.objective, s.plan.tx, seed=0),
        donate_argnums=0,
        out_shardings=(s.plan.shardings, sharding.replicated(s.mesh)),
    )
    memory = step.lower(s.plan.abstract, s.batch).compile().memory_analysis()
    held = sum(np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(s.plan.abstract))
    assert memory.alias_size_in_bytes >= held


def test_ema_follows_the_parameters(tiny_mapping):
    s = Setup(tiny_mapping("classification"))
    config = s.config
    plan = assemble.make_plan(from_mapping(tiny_mapping("classification", train__ema=0.9)), s.model, s.data, s.mesh)
    state = assemble.initial_state(from_mapping(tiny_mapping("classification", train__ema=0.9)), s.model, plan)
    step = sharding.jit(s.mesh, make_train_step(s.objective, plan.tx, seed=config.train.seed, ema=0.9))
    after, _ = step(state, s.batch)
    for name in ("patch_encoder/position", "head_classification/logits/kernel"):
        expected = 0.9 * np.asarray(state["params"][name], np.float64) + 0.1 * np.asarray(
            after["params"][name], np.float64
        )
        np.testing.assert_allclose(after["ema"][name], expected, atol=1e-7)
