"""The loop in fine-tuning: LoRA on a mesh, stages, and runs that end when they no longer get better."""

import json
import shutil

import numpy as np
import pytest
from conftest import stored

from mmjax import cli
from mmjax.trained import open_trained
from mmjax.workdir import Workdir


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
