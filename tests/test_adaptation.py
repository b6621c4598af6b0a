"""Fine-tuning as a user does it: from a trained workdir, with LoRA, in stages, until it no longer gets better."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import TOWER

from mmjax import assemble, cli, sharding
from mmjax.checkpoint import CheckpointConfig, Checkpointer
from mmjax.config import merge
from mmjax.experiment import from_mapping, load
from mmjax.models import lora
from mmjax.train_step import Objective
from mmjax.trained import open_trained
from mmjax.workdir import Workdir

MESH = "--config.mesh.data=1", "--config.mesh.fsdp=8"


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    """mapping -> a config file that returns it."""
    folder = tmp_path_factory.mktemp("configs")

    def write(mapping):
        file = folder / f"c{len(list(folder.iterdir()))}.py"
        file.write_text(f"import json\ndef get_config():\n    return json.loads({json.dumps(mapping)!r})\n")
        return file

    return write


@pytest.fixture(scope="module")
def small(tiny_mapping):
    """overrides -> the mapping of a one-layer patch encoder with a class head, on an fsdp mesh of eight devices."""

    def make(over=None, **overrides):
        mapping = tiny_mapping("classification", **overrides)
        mapping["model"] = {"patch_encoder": {**TOWER, "depth": 1, "patch": 8}}
        mapping["mesh"] = {"fsdp": 8}
        mapping["optimizer"] = {"lr": 0.01, "warmup": "0 steps"}
        return merge(mapping, over or {})

    return make


@pytest.fixture(scope="module")
def base(small, run_file, tmp_path_factory):
    """The workdir of a full run of four steps."""
    workdir = tmp_path_factory.mktemp("base")
    file = run_file(small(train__steps=4))
    assert cli.main(["train", "--config", str(file), "--workdir", str(workdir)]) == 0
    return workdir


LORA = {"adapt": {"lora": ["patch_encoder/.*"], "rank": 2, "alpha": 4}, "optimizer": {"train": ["head_.*"]}}


@pytest.fixture(scope="module")
def adapted(small, base, run_file, tmp_path_factory):
    """(workdir, config file) of a LoRA run on top of `base`: 6 steps, a checkpoint every second."""
    workdir = tmp_path_factory.mktemp("adapted")
    file = run_file(small({**LORA, "init": {"path": str(base)}}))
    assert cli.main(["train", "--config", str(file), "--workdir", str(workdir)]) == 0
    return workdir, file


def stored(workdir, step):
    """{path in the state: array} of a checkpoint as it lies there."""
    checkpoints = Checkpointer(Path(workdir) / "checkpoints", CheckpointConfig(), read_only=True)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), checkpoints.leaves(step))
    state = checkpoints.restore_partial(step, abstract)
    checkpoints.close()
    return {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(state)}


def planned(file):
    """(config, model, data, plan) of a config file."""
    config, _ = load(str(file), {})
    data = assemble.open_data(config)
    model = assemble.build_model(config, assemble.fit_processor(config, data))
    return config, model, data, assemble.make_plan(config, model, data, sharding.make_mesh(config.mesh))


def test_a_lora_checkpoint_holds_what_was_trained_and_its_base_is_read_again(adapted, base):
    workdir, file = adapted
    state = stored(workdir, 6)
    assert not any(name.startswith("['frozen']") for name in state)
    assert all("lora_" in n or "head_" in n for n in state if n.startswith("['params']"))
    assert any("block_00/attention/query/lora_a" in n for n in state)
    before, after = Workdir(base), Workdir(workdir)
    assert after.meta["base"] == before.identity
    assert before.shapes == after.shapes
    config, model, _, plan = planned(file)
    one, other = (w.read(plan.layout.abstract(before.shapes)) for w in (before, after))
    for name, value in other.items():
        adapts = name.endswith("/kernel") or name.startswith("head_")
        assert np.array_equal(value, one[name]) != adapts, name


def test_optimizer_state_is_that_of_the_trained_share(adapted):
    _, file = adapted
    _, _, _, plan = planned(file)
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree) if x.shape)  # noqa: E731
    assert size(plan.abstract["opt"]) == 2 * size(plan.abstract["params"])
    assert size(plan.abstract["params"]) < 0.4 * size(plan.layout.shapes)


def test_a_lora_run_on_an_fsdp_mesh_goes_on_to_the_same_bits(adapted, tmp_path):
    workdir, file = adapted
    broken = tmp_path / "broken"
    command = ["train", "--config", str(file), "--workdir", str(broken)]
    assert cli.main(command) == 0
    shutil.rmtree(broken / "checkpoints" / "6")  # as if it had been killed before its last save
    assert cli.main(command) == 0
    one, other = stored(workdir, 6), stored(broken, 6)
    assert one.keys() == other.keys()
    assert all(one[n].tobytes() == other[n].tobytes() for n in one)


def test_another_base_is_refused_by_name(small, run_file, base, adapted, tmp_path, capsys):
    workdir, _ = adapted
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    assert cli.main(["eval", "--workdir", str(workdir), f"--config.init.path={moved}"]) == 0
    data = next(
        p for p in sorted((moved / "checkpoints" / "4" / "state").rglob("*")) if p.is_file() and p.stat().st_size
    )
    data.write_bytes(data.read_bytes() + b"x")
    capsys.readouterr()
    assert cli.main(["eval", "--workdir", str(workdir), f"--config.init.path={moved}"]) == 2
    error = capsys.readouterr().err
    assert str(base) in error and str(moved) in error and "sha256" in error


def test_merged_weights_answer_as_those_with_factors_do(adapted, small, run_file, tmp_path, capsys):
    workdir, file = adapted
    out = tmp_path / "merged"
    assert cli.main(["merge", "--workdir", str(workdir), "--out", str(out)]) == 0
    assert Workdir(out).base is None and not any("lora" in n for n in stored(out, 6))
    assert cli.main(["eval", "--workdir", str(out)]) == 0
    figures = [json.loads((w / "eval" / "validation.json").read_text())["losses"] for w in (out, workdir)]
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)
    assert cli.main(["merge", "--workdir", str(workdir), "--out", str(out)]) == 2
    assert "a workdir already" in capsys.readouterr().err


def test_interpolation_ends_at_the_base_and_at_the_trained(adapted, base, capsys):
    workdir, _ = adapted
    assert cli.main(["eval", "--workdir", str(base)]) == 0
    capsys.readouterr()
    assert cli.main(["eval", "--workdir", str(workdir), "--config.eval.interpolate=0,0.5,1"]) == 0
    read = lambda w, name: json.loads((w / "eval" / f"{name}.json").read_text())["losses"]  # noqa: E731
    assert read(workdir, "validation_wise_0") == pytest.approx(read(base, "validation"), rel=1e-6)
    assert read(workdir, "validation_wise_1") == pytest.approx(read(workdir, "validation"), rel=1e-6)
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert [r for r in rows if r[:1] == ["wise"]] == [["wise", "0"], ["wise", "0.5"], ["wise", "1"]]
    trained = open_trained(workdir, "best", {})
    half, before = trained.interpolated(0.5), trained.before().params
    for name, value in trained.params.items():
        np.testing.assert_allclose(half[name], (np.asarray(before[name]) + np.asarray(value)) / 2, atol=1e-6)


def test_before_is_the_base_under_the_new_config(adapted, base):
    before, old = open_trained(adapted[0], "best", {}).before(), open_trained(base, "best", {})
    assert before.step == 0 and before.params.keys() == old.params.keys()
    assert all(np.array_equal(x, old.params[n]) for n, x in before.params.items())


def test_stages_train_what_each_names_and_resume_through_the_boundary(small, base, run_file, tmp_path, capsys):
    stages = {
        "align": {"length": "3 steps", "optimizer": {"train": ["head_.*"], "lr": 0.1}},
        "all": {"optimizer": {"freeze": ["patch_encoder/stem/.*"]}},
    }
    over = {"init": {"path": str(base)}, "stages": stages, "train": {"ema": 0.5}, "checkpoint": {"keep_latest": 9}}
    over["checkpoint"]["every"] = "1 step"
    file = run_file(small(over))
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    command = ["train", "--config", str(file), "--workdir"]
    assert cli.main([*command, str(straight)]) == 0
    said = capsys.readouterr().out
    assert "stage align: steps 1 to 3" in said and "stage all: steps 4 to 6" in said
    rates = [json.loads(x)["lr"] for x in (straight / "metrics.jsonl").read_text().splitlines() if '"lr"' in x]
    cosine = lambda lr: [lr * 0.5 * (1 + np.cos(np.pi * i / 3)) for i in range(3)]  # noqa: E731
    assert rates == pytest.approx(cosine(0.1) + cosine(0.01), rel=1e-5)
    figures = [json.loads((straight / "eval" / f"validation{k}.json").read_text())["losses"] for k in ("", "_raw")]
    assert figures[0] != figures[1]  # the average and, beside it, the weights as they are
    third, last, first = stored(straight, 3), stored(straight, 6), open_trained(base, "best", {}).params
    assert not any("patch_encoder" in n for n in third)  # stage 1 trained the head alone, all else is the base's
    assert sorted(n for n in last if n.startswith("['frozen']")) == []
    assert not any("stem" in n for n in last)
    assert any("mu" in n and "block_00" in n for n in last)
    end = open_trained(straight, "latest", {}).params
    assert np.array_equal(end["patch_encoder/stem/kernel"], first["patch_encoder/stem/kernel"])
    changed = "patch_encoder/transformer/block_00/mlp/up/kernel"
    assert not np.array_equal(end[changed], first[changed])
    shutil.copytree(straight, broken)
    for step in (4, 5, 6):
        shutil.rmtree(broken / "checkpoints" / str(step))
    assert cli.main([*command, str(broken)]) == 0  # goes on at the boundary
    other = stored(broken, 6)
    assert last.keys() == other.keys() and all(last[n].tobytes() == other[n].tobytes() for n in last)


def test_a_run_stops_when_it_no_longer_gets_better_and_shows_its_best(small, run_file, tmp_path, capsys):
    over = {
        "eval": {"every": "1 step"},
        "checkpoint": {"best": "validation/classification/loss", "best_mode": "min", "every": "1 step"},
        "train": {"steps": 30, "ema": 0.0, "early_stop": {"patience": 2, "min_change": 0.0}},
        "optimizer": {"lr": 1.0, "schedule": "constant", "name": "sgd", "clip": 0.0},  # soon gets worse
    }
    file, straight, broken = run_file(small(over)), tmp_path / "straight", tmp_path / "broken"
    command = ["train", "--config", str(file), "--workdir"]
    assert cli.main([*command, str(straight)]) == 0
    assert "2 evaluations without a better validation/classification/loss" in capsys.readouterr().out
    lines = [json.loads(x) for x in (straight / "metrics.jsonl").read_text().splitlines()]
    values = {x["step"]: x["validation/classification/loss"] for x in lines if "lr" not in x}
    best, end = min(values, key=values.get), max(values)
    assert end == best + 2 < 30
    report = json.loads((straight / "eval" / "validation.json").read_text())
    assert report["step"] == best
    assert report["losses"]["classification/loss"] == pytest.approx(values[best], rel=1e-6)
    assert Workdir(straight).step == best and Workdir(straight, "latest").step == end
    shutil.copytree(straight, broken)
    shutil.rmtree(broken / "checkpoints" / str(end))  # killed between the two evaluations that it waited for
    assert cli.main([*command, str(broken)]) == 0
    again = [json.loads(x) for x in (broken / "metrics.jsonl").read_text().splitlines()]
    assert {x["step"]: x["validation/classification/loss"] for x in again if "lr" not in x} == values
    (broken / "eval" / "validation.json").write_text(json.dumps({**report, "step": end}))  # killed before the last word
    assert cli.main([*command, str(broken)]) == 0
    assert f"already trained to step {end} of 30" in capsys.readouterr().out
    assert json.loads((broken / "eval" / "validation.json").read_text()) == report


class Step:
    """A tiny run of two towers, fusion and a tied decoder with LoRA, up to its gradient."""

    def __init__(self, mapping):
        self.config = from_mapping(mapping)
        sizes = self.config.mesh
        devices = jax.devices()[: (sizes.data or 1) * sizes.fsdp * sizes.tensor]
        mesh, data = sharding.make_mesh(sizes, devices), assemble.open_data(self.config)
        processor = assemble.fit_processor(self.config, data)
        self.model = assemble.build_model(self.config, processor)
        self.plan = assemble.make_plan(self.config, self.model, data, mesh)
        pipeline = assemble.train_pipelines(self.config, data, processor, mesh)["main"]
        self.batch = {"main": sharding.put_batch(next(pipeline.batches(0, 1)), mesh, 8)}

    def params(self):
        """Drawn in NumPy, factors too: behind a B of zero the gradient of A is zero."""
        draw = np.random.default_rng(0)
        made = {}
        for name, shape in sorted(self.plan.layout.shapes.items()):
            spread = shape.shape[-2] ** -0.5 if len(shape.shape) > 1 else 0.1
            made[name] = np.float32(draw.normal(size=shape.shape) * spread + name.endswith("scale"))
        return jax.device_put(made, dict(self.plan.layout.shardings))

    def gradient(self, params=None, accumulate=1):
        objective = Objective(self.model, {"main": self.config.tasks_of("main")}, accumulate, self.config.adapt.scale)
        params = self.params() if params is None else params
        run = sharding.jit(self.plan.layout.mesh, lambda p, f, b: objective.gradient(p, f, b, jax.random.key(0))[::2])
        loss, gradient = run(
            {n: params[n] for n in self.plan.trainable}, {n: params[n] for n in self.plan.frozen}, self.batch
        )
        return float(loss), jax.device_get(gradient)


@pytest.fixture(scope="module")
def many(tiny_mapping):
    def make(mesh, scan=False):
        mapping = tiny_mapping("captioning", "contrastive")
        mapping |= {"mesh": mesh, "adapt": {"lora": [".*/(attention|mlp)/.*"], "rank": 2}}
        for tower in ("patch_encoder", "text_encoder", "decoder"):
            mapping["model"][tower]["scan"] = scan
        mapping["model"]["fusion"] = {"name": "none"}
        return mapping

    return make


@pytest.fixture(scope="module")
def whole(many):
    """(loss, {kernel: gradient}) of the merged weights, without factors, on one device."""
    with_factors = Step(many({"data": 1}, scan=True))
    mapping = many({"data": 1}, scan=True)
    mapping.pop("adapt")
    merged = lora.merge(with_factors.params(), with_factors.config.adapt.scale)
    return with_factors, Step(mapping).gradient(merged)


def assert_same(one, other, whole):
    """As far as kernel gradients that agree to 1e-5 of their largest value allow: dB = s A^T dW, dA = s dW B^T.

    Where a kernel's gradient is all but 0, its value is a thousandth of the largest of all.
    """
    step, (_, gradients) = whole
    params = {n: np.abs(np.asarray(x)) for n, x in step.params().items()}
    floor = 1e-3 * max(np.abs(g).max() for g in gradients.values())
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    for name, gradient in one[1].items():
        kernel = lora.kernel_of(name)
        a, b = (params[n] for n in lora.factors_of(kernel))
        size = a.sum(0).max() if name.endswith("lora_b") else b.sum(1).max()
        size *= step.config.adapt.scale * max(np.abs(gradients[kernel]).max(), floor)
        assert np.abs(other[1][name] - gradient).max() < 1e-5 * size, name


@pytest.mark.slow
def test_gradients_of_factors_are_those_of_the_merged_weights_in_a_loop_a_scan_and_microbatches(many, whole):
    step, (loss, full) = whole
    params, scale, found = step.params(), step.config.adapt.scale, step.gradient()
    expected = {}
    for kernel in {lora.kernel_of(n) for n in step.plan.trainable}:
        a, b = lora.factors_of(kernel)
        expected[a] = scale * full[kernel] @ np.asarray(params[b]).T
        expected[b] = scale * np.asarray(params[a]).T @ full[kernel]
    assert found[1].keys() == expected.keys() and all(np.any(g) for g in found[1].values())
    assert_same((loss, expected), found, whole)
    mapping = many({"data": 1}, scan=True)
    for tower in ("patch_encoder", "text_encoder", "decoder"):
        mapping["model"][tower]["scan"] = False
    assert_same(found, Step(mapping).gradient(accumulate=2), whole)


@pytest.mark.slow
def test_gradients_of_factors_are_those_of_any_mesh(many, whole):
    step, _ = whole
    mixed = Step(many({"data": 2, "fsdp": 2, "tensor": 2}, scan=True))
    assert_same(step.gradient(), mixed.gradient(), whole)
    spec = {n: tuple(h.spec) for n, h in mixed.plan.layout.shardings.items()}
    stem = "patch_encoder/transformer/block_00/mlp/up/"
    assert spec[stem + "lora_a"] == ("fsdp", None) and spec[stem + "lora_b"] == (None, "tensor")


@pytest.fixture(scope="module")
def more_shapes(tiny_set, tmp_path_factory):
    """The pictures of the tiny set with one class more: every third is a zebra."""
    folder = tmp_path_factory.mktemp("more")
    lines = [json.loads(x) for x in (tiny_set / "all.jsonl").read_text().splitlines()]
    lines = [x for x in lines if "label" in x]
    for i in range(0, len(lines), 3):
        lines[i]["label"] = "zebra"
    (folder / "more.jsonl").write_text("\n".join(json.dumps({k: x[k] for k in ("image", "label")}) for x in lines))
    return folder / "more.jsonl"


def test_new_classes_come_after_those_of_the_source_whose_columns_are_kept(small, base, more_shapes, tiny_set, capsys):
    over = {
        "init": {"path": str(base)},
        "data": {"train": {"path": str(more_shapes), "root": str(tiny_set / "images")}},
    }
    config = from_mapping(small(over))
    data = assemble.open_data(config)
    processor, old = assemble.fit_processor(config, data), Workdir(base).processor
    assert processor.labels == (*old.labels, "zebra") and processor.tokenizer.to_json() == old.tokenizer.to_json()
    assert "config.processor.labels: 1 more than the source's" in capsys.readouterr().out
    model = assemble.build_model(config, processor)
    plan = assemble.make_plan(config, model, data, sharding.make_mesh(config.mesh))
    assert plan.match.grown == ("head_classification/logits/bias", "head_classification/logits/kernel")
    params, before = assemble.initial_params(config, model, plan.layout), open_trained(base, "best", {}).params
    for name, value in params.items():
        kept = before[name]
        assert np.array_equal(value[..., : kept.shape[-1]], kept) and not np.any(value[..., kept.shape[-1] :]), name
    fresh = from_mapping(small({**over, "init": {"path": str(base), "fresh": ["head_.*"]}}))
    assert assemble.fit_processor(fresh, data).labels == tuple(sorted(processor.labels))


def test_a_run_begins_with_the_sources_processor_and_names_what_overrides_it(small, base, run_file, capsys):
    mapping = small({"init": {"path": str(base)}})
    mapping["processor"] = {"length": 64}
    config, _ = load(str(run_file(mapping)), {})
    assert (config.processor.length, config.processor.image.size) == (64, 32)  # 32 px are the source's
    said = [x for x in capsys.readouterr().out.splitlines() if "overrides" in x]
    assert said == ["config.processor.length: 20 -> 64 overrides the source's"]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"init": {"path": "nowhere"}}, "config.init.path: 'nowhere' is no workdir"),
        ({"init": {"fresh": ["pool/.*"]}}, "config.init.fresh: the pattern 'pool/.*' matches no parameter"),
        ({"model": {"patch_encoder": {"mlp_dim": 48}}}, "'patch_encoder/transformer/block_00/mlp/down/kernel' is"),
        ({"model": {"patch_encoder": {"adapter": 4}}, "optimizer": {"train": ["head_.*"]}},
         "8 parameters begin at random and are never trained"),
        ({"adapt": {"lora": ["text_encoder/.*"]}}, "config.adapt.lora: the pattern 'text_encoder/.*' matches no dense"),
        ({"adapt": {"lora": [".*"]}, "optimizer": {"train": ["head_.*"]}}, "is trained, but config.adapt.lora adapts"),
        ({"stages": {"a": {"length": "6 steps"}, "b": {}}}, "config.stages.b: found steps 6 to 6 of 6"),
        ({"stages": {"a": {}, "b": {}}}, "config.stages.a.length: found '', expected a length"),
        ({"train": {"early_stop": {"patience": 1}}}, "config.train.early_stop: goes by the figure"),
    ],
)  # fmt: skip
def test_what_cannot_be_adapted_is_an_error(over, message, small, base, run_file, tmp_path, capsys):
    file = run_file(small(merge({"init": {"path": str(base)}}, over)))
    assert cli.main(["train", "--config", str(file), "--workdir", str(tmp_path / "w")]) == 2
    assert message in capsys.readouterr().err


def test_another_vocabulary_under_kept_embeddings_is_refused(tiny_mapping, tmp_path, run_file, capsys):
    mapping = tiny_mapping("contrastive", train__steps=1)
    for tower in ("patch_encoder", "text_encoder"):
        mapping["model"][tower]["depth"] = 1
    mapping["model"] |= {"decoder": None, "fusion": {"name": "none"}}
    mapping["mesh"] = {"data": 0}
    command = ["train", "--config", str(run_file(mapping)), "--workdir"]
    assert cli.main([*command, str(tmp_path / "a")]) == 0
    init = f"--config.init.path={tmp_path / 'a'}"
    vocabulary = "--config.processor.tokenizer.vocab_size=384"
    capsys.readouterr()
    assert cli.main([*command, str(tmp_path / "b"), init, vocabulary]) == 2
    error = capsys.readouterr().err
    assert "another vocabulary" in error and "text_encoder/embed/embedding" in error
    fresh = "--config.init.fresh=('text_encoder/embed/embedding',)"
    assert cli.main([*command, str(tmp_path / "b"), init, vocabulary, fresh, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "config.processor.tokenizer.vocab_size: 320 -> 384 overrides" in said
    assert "begin anew: 1 (" in said and "text_encoder/embed/embedding" in said


def test_a_mixture_of_old_and_new_goes_on_from_a_workdir_and_is_judged_on_both(
    small, base, more_shapes, tiny_set, run_file, tmp_path
):
    source = {"old": {"path": "all.jsonl", "weight": 1}, "new": {"path": str(more_shapes), "weight": 3}}
    source["new"]["root"] = str(tiny_set / "images")
    mapping = small({"init": {"path": str(base)}, "train": {"steps": 2}})
    mapping["data"]["train"] = {"stream": "main", "batch_size": 8, **source}
    mapping["data"]["test"] = {
        name: {"stream": "main", **{k: v for k, v in s.items() if k != "weight"}} for name, s in source.items()
    }
    mapping["tasks"]["classification"]["class_weights"] = "balanced"
    assert cli.main(["train", "--config", str(run_file(mapping)), "--workdir", str(tmp_path / "w")]) == 0
    assert cli.main(["eval", "--workdir", str(tmp_path / "w")]) == 0
    for name in source:
        assert json.loads((tmp_path / "w" / "eval" / f"{name}.json").read_text())["figures"]


def test_numbers_are_learnt_from_their_mean(small, tiny_set, run_file, tmp_path):
    lines = [json.loads(x) for x in (tiny_set / "all.jsonl").read_text().splitlines()]
    names = sorted({x["image"] for x in lines})
    file = tmp_path / "ages.csv"
    file.write_text("image,value\n" + "".join(f"{n},{40 + 2.5 * (i % 7)}\n" for i, n in enumerate(names)))
    ages = {"path": str(file), "root": str(tiny_set / "images")}
    mapping = small({"data": {"train": ages}, "eval": {"start": True}, "train": {"steps": 30}})
    mapping["tasks"] = {"age": {"kind": "regression", "loss_kind": "huber"}}
    mapping["data"]["holdout"] = 0
    mapping["data"]["validation"] = ages
    mapping["data"]["check_overlap"] = False
    assert cli.main(["train", "--config", str(run_file(mapping)), "--workdir", str(tmp_path / "w")]) == 0
    judged = [json.loads(x) for x in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
    judged = [x["validation/age/rmse"] for x in judged if "lr" not in x]
    baseline = json.loads((tmp_path / "w" / "eval" / "validation.json").read_text())["figures"]["age/rmse"]["baseline"]
    values = [40 + 2.5 * (i % 7) for i in range(20)]
    assert judged[0] == pytest.approx(np.std(values), rel=1e-5) == pytest.approx(baseline, rel=1e-5)
    assert judged[-1] < 0.7 * judged[0]
    assert cli.main(["predict", "--workdir", str(tmp_path / "w"), "--image", str(tiny_set / "images" / "00.png")]) == 0
