"""The update: equal on every mesh, with scan and without, whole and in microbatches, for every task."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TASKS

from mmjax import assemble, sharding
from mmjax.experiment import from_mapping
from mmjax.flops import count
from mmjax.models.forward import Forward
from mmjax.train_step import Objective, make_train_step, nested, new_state

TOWERS = "patch_encoder", "text_encoder", "fusion", "decoder"
MESHES = {"one": {"data": 1}, "data": {"data": 8}, "fsdp": {"fsdp": 8}, "mixed": {"data": 2, "fsdp": 2, "tensor": 2}}


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
        pipelines = assemble.train_pipelines(self.config, self.data, self.processor, self.mesh)
        self.batch = {
            n: sharding.put_batch(next(p.batches(0, 1)), self.mesh, p.batch_size) for n, p in pipelines.items()
        }

    def objective(self, *names, accumulate=1):
        """Of the named tasks; of all by default."""
        tasks = self.config.tasks_of("main")
        return Objective(self.model, {"main": {n: tasks[n] for n in names or tasks}}, accumulate)

    def state(self):
        """Drawn in NumPy: no program to compile, and no head or gate at zero, behind which every gradient is zero."""
        draw = np.random.default_rng(0)
        params = {}
        for name, shape in sorted(self.plan.layout.shapes.items()):
            spread = shape.shape[-2] ** -0.5 if len(shape.shape) > 1 else 0.1
            params[name] = np.float32(draw.normal(size=shape.shape) * spread + name.endswith("scale"))
        trained, frozen = ({n: params[n] for n in names} for names in (self.plan.trainable, self.plan.frozen))
        state = new_state(trained, frozen, self.plan.tx, ema=bool(self.plan.abstract["ema"]))
        return jax.device_put(state, self.plan.shardings)

    def gradient(self, *names, accumulate=1):
        """(loss, {name: gradient}) of the named tasks."""
        objective, state = self.objective(*names, accumulate=accumulate), self.state()
        run = sharding.jit(self.mesh, lambda p, f, b: objective.gradient(p, f, b, jax.random.key(0)))
        loss, _, gradient = run(state["params"], state["frozen"], self.batch)
        return float(loss), jax.device_get(gradient)


def assert_same(one, other, bound=1e-5):
    """Loss and every gradient agree to `bound` of the tensor's largest value.

    Where a tensor is all but 0, of a thousandth of the largest gradient. A key bias shifts all logits of a softmax row:
    its gradient is 0, and what is found is the rounding of a sum as large as the key kernel's gradient.
    """
    (loss, gradients), (other_loss, others) = one, other
    assert loss == pytest.approx(other_loss, rel=bound)
    size = {name: np.abs(g).max() for name, g in gradients.items()}
    floor = 1e-3 * max(size.values())
    assert floor > 0 and size.keys() == others.keys()
    scale = {name: max(size[name.replace("key/bias", "key/kernel")], floor) for name in size}
    off = {name: np.abs(others[name] - g).max() / scale[name] for name, g in gradients.items()}
    assert {name: x for name, x in off.items() if not x < bound} == {}


@pytest.fixture(scope="module")
def setup(tiny_mapping):
    """mesh name -> a run with every task; a tower has one layer, for the next would lie on the mesh as it does."""
    kept = {}

    def of(mesh):
        if mesh not in kept:
            mapping = tiny_mapping(*TASKS)
            mapping["mesh"] = MESHES[mesh]
            kept[mesh] = Setup(mapping)
        return kept[mesh]

    return of


@pytest.fixture(scope="module")
def reference(setup):
    """(loss, gradient) of tasks on one device."""
    return functools.cache(lambda *tasks: setup("one").gradient(*tasks))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data", "fsdp", "mixed"])
@pytest.mark.parametrize("task", TASKS)
def test_loss_and_gradients_are_equal_on_every_mesh(setup, reference, task, mesh):
    assert_same(reference(task), setup(mesh).gradient(task))


@pytest.mark.slow
def test_scan_over_layers_gives_the_same_gradients(tiny_mapping):
    tasks = "contrastive", "captioning", "vqa"
    mapping = tiny_mapping(*tasks)
    for tower in TOWERS:
        mapping["model"][tower]["depth"] = 2
    loop = Setup(mapping).gradient()
    for tower in TOWERS:
        mapping["model"][tower]["scan"] = True
    assert_same(loop, Setup(mapping).gradient())


@pytest.mark.slow
@pytest.mark.parametrize(
    "tasks", [("contrastive", "captioning", "vqa"), ("contrastive_softmax",), ("vqa_generate", "classification")]
)
def test_microbatches_give_the_gradient_of_the_whole_batch(setup, reference, tasks):
    assert_same(reference(*tasks), setup("one").gradient(*tasks, accumulate=4))
    assert_same(reference(*tasks), setup("mixed").gradient(*tasks, accumulate=2))


@pytest.fixture(scope="module")
def talk(tiny_mapping):
    """(how the decoder reads, mesh name) -> a run of the chat task on conversations with and without a picture."""
    kept = {}

    def of(memory, mesh):
        if (memory, mesh) not in kept:
            mapping = tiny_mapping("chat", data__train__path="talks.json", processor__chat_length=40)
            mapping["mesh"] = MESHES[mesh]
            mapping["model"]["decoder"]["memory"] = memory
            mapping["model"] |= {"text_encoder": None, "fusion": {"name": "none"}}
            kept[memory, mesh] = Setup(mapping)
        return kept[memory, mesh]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["cross_attention", "prefix"])
def test_conversations_are_learnt_equally_on_every_mesh_and_in_microbatches(talk, memory):
    whole = talk(memory, "one")
    batch = jax.device_get(whole.batch["main"])
    assert 0 < batch["image_valid"].sum() < len(batch["valid"]) and batch["chat_supervised"].any()
    reference = whole.gradient()
    assert_same(reference, whole.gradient(accumulate=4))
    for mesh in ("data", "fsdp", "mixed"):
        assert_same(reference, talk(memory, mesh).gradient())


def test_one_stream_encodes_each_picture_once(setup):
    """Three tasks on one stream cost one picture tower: by FLOPs of the traced gradient."""
    s = setup("one")

    def flops(*tasks):
        a, objective = s.plan.abstract, s.objective(*tasks)
        return count(lambda p, b: objective.gradient(p, {}, b, jax.random.key(0))[0], a["params"], s.batch)

    image = flops("classification")
    parts = [flops(t) for t in ("captioning", "vqa")]
    both = flops("captioning", "vqa", "classification")
    assert both < sum(parts) + image - 1.9 * 0.9 * image


def test_freezing_a_tower_removes_its_optimizer_state_and_its_backward_pass(tiny_mapping):
    full = Setup(tiny_mapping("contrastive"))
    mapping = tiny_mapping("contrastive")
    mapping["optimizer"]["freeze"] = ["patch_encoder/.*"]
    half = Setup(mapping)
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    tower = size({n: s for n, s in full.plan.layout.shapes.items() if n.startswith("patch_encoder/")})
    assert size(full.plan.abstract["opt"]) - size(half.plan.abstract["opt"]) == 2 * tower
    assert all(not n.startswith("patch_encoder/") for n in half.plan.abstract["params"])

    def flops(s):
        a, objective = s.plan.abstract, s.objective()
        return count(
            lambda p, f, b: objective.gradient(p, f, b, jax.random.key(0))[2], a["params"], a["frozen"], s.batch
        )

    def tower_forward(s):
        return count(lambda p, b: Forward(s.model, nested(p), b).image().pooled, s.plan.layout.shapes, s.batch["main"])

    # Forward once and backward twice become forward once (the stem's input needs no gradient to begin with).
    saved = flops(full) - flops(half)
    assert 1.7 * tower_forward(full) < saved < 2.1 * tower_forward(full)
    state = half.state()
    step = sharding.jit(half.mesh, make_train_step(half.objective(), half.plan.tx, seed=0))
    after, _ = step(state, half.batch)
    assert all(bool(jnp.all(after["frozen"][n] == state["frozen"][n])) for n in state["frozen"])


@pytest.fixture(scope="module")
def averaged(tiny_mapping):
    """(run, its compiled step) of one task with a moving average."""
    s = Setup(tiny_mapping("classification", train__ema=0.9))
    return s, sharding.jit(s.mesh, make_train_step(s.objective(), s.plan.tx, seed=0, ema=0.9))


def test_a_step_without_finite_gradient_is_skipped_and_counted(averaged):
    s, step = averaged
    state, name = s.state(), "head_classification/logits/bias"
    poisoned = {**state, "params": {**state["params"], name: jnp.full_like(state["params"][name], jnp.nan)}}
    after, out = step(poisoned, s.batch)
    assert int(out["bad_in_a_row"]) == int(after["skipped"]) == 1
    for tree in ("params", "opt", "ema"):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(after[tree]), jax.device_get(poisoned[tree]))
    after, out = step({**after, "params": state["params"]}, s.batch)
    assert int(out["bad_in_a_row"]) == 0 and int(after["skipped"]) == 1
    for name in ("patch_encoder/stem/kernel", "head_classification/logits/kernel"):
        assert not np.array_equal(after["params"][name], state["params"][name])


def test_ema_follows_the_parameters(averaged):
    s, step = averaged
    state = s.state()
    after, _ = step(state, s.batch)
    for name in ("patch_encoder/position", "head_classification/logits/kernel"):
        old, new = (np.asarray(x["params"][name], np.float64) for x in (state, after))
        np.testing.assert_allclose(after["ema"][name], 0.9 * old + 0.1 * new, atol=1e-7)


def test_state_is_born_sharded_and_donated(tiny_mapping):
    mapping = tiny_mapping("classification")
    mapping["mesh"] = MESHES["fsdp"]
    s = Setup(mapping)
    state = assemble.initial_state(s.config, s.model, s.plan)
    kernel = state["params"]["patch_encoder/transformer/block_00/mlp/up/kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[0] == kernel.shape[0] // 8
    step = sharding.jit(
        s.mesh,
        make_train_step(s.objective(), s.plan.tx, seed=0),
        donate_argnums=0,
        out_shardings=(s.plan.shardings, sharding.replicated(s.mesh)),
    )
    memory = step.lower(s.plan.abstract, s.batch).compile().memory_analysis()
    held = sum(np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(s.plan.abstract))
    assert memory.alias_size_in_bytes >= held


def test_parameters_start_the_same_on_every_mesh(tiny_mapping):
    states = []
    for mesh in ("one", "mixed"):
        mapping = tiny_mapping("vqa")
        mapping["mesh"] = MESHES[mesh]
        s = Setup(mapping)
        states.append(jax.device_get(assemble.initial_state(s.config, s.model, s.plan)["params"]))
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, rtol=0, atol=1e-6, err_msg=name)
