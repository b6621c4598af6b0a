"""A run that begins where another one ended: parameters, processor, and what is refused."""

import json

import numpy as np
import pytest

from mmjax import assemble, cli, sharding
from mmjax.config import merge
from mmjax.experiment import from_mapping, load
from mmjax.trained import open_trained
from mmjax.workdir import Workdir


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
    own = {data.train["main"].annotations(i)["label"] for i in range(len(data.train["main"]))}
    assert assemble.fit_processor(fresh, data).labels == tuple(sorted(own)) != processor.labels


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
        ({"init": {"fresh": ["pool/("]}}, "config.init.fresh: 'pool/(' is no regular expression"),
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


@pytest.mark.slow
def test_another_vocabulary_under_kept_embeddings_is_refused(tiny_mapping, tmp_path, run_file, capsys):
    mapping = tiny_mapping("contrastive", train__steps=1)
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


@pytest.mark.slow
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


def test_adapters_join_a_trained_stack_and_are_trained_by_their_name(small, base):
    over = {"model": {"patch_encoder": {"adapter": 4}}, "optimizer": {"train": [".*_adapter/.*", "head_.*"]}}
    config = from_mapping(small({**over, "init": {"path": str(base)}}))
    data = assemble.open_data(config)
    model = assemble.build_model(config, assemble.fit_processor(config, data))
    plan = assemble.make_plan(config, model, data, sharding.make_mesh(config.mesh))
    adapters = [n for n in plan.layout.shapes if "_adapter/" in n]
    assert len(adapters) == 8 and set(plan.match.new) == set(adapters)
    assert set(plan.trainable) == {*adapters, "head_classification/logits/kernel", "head_classification/logits/bias"}
    assert set(plan.left_out) == set(plan.frozen) == Workdir(base).shapes.keys() - set(plan.trainable)
