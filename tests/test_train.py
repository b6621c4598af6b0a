"""The loop: exact resume after kill -9, exactly N updates, stopping, and what it refuses."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mmjax import cli

TIMES = ("examples_per_second", "data_wait", "step_seconds_p50", "step_seconds_p95")


def start(file, workdir):
    """The command as a user starts it, on one device."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = {**os.environ, "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "mmjax", "train", "--config", str(file), "--workdir", str(workdir)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def lines(workdir):
    """Training's lines of metrics.jsonl without what depends on the clock."""
    path = Path(workdir, "metrics.jsonl")
    found = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append({k: v for k, v in json.loads(text).items() if k not in TIMES})
        except ValueError:
            continue  # a line that is being written
    return found


def final_state(workdir, file):
    """All arrays of the last checkpoint by name."""
    import jax

    from mmjax import assemble, sharding
    from mmjax.checkpoint import CheckpointConfig, Checkpointer
    from mmjax.experiment import load

    config, _ = load(str(file), {})
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    data = assemble.open_data(config)
    model = assemble.build_model(config, assemble.fit_processor(config, data))
    plan = assemble.make_plan(config, model, data, mesh)
    checkpoints = Checkpointer(Path(workdir, "checkpoints"), CheckpointConfig(), read_only=True)
    step, state = checkpoints.restore_latest(plan.abstract)
    checkpoints.close()
    return step, {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(state)}


def kill_when(process, condition):
    """SIGKILL at the first moment that the condition holds; False where the run ended before."""
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if condition():
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    assert process.poll() == 0, process.stdout.read()
    return False


def mapping_of(kind, tiny_mapping):
    mapping = tiny_mapping("vqa", "contrastive", train__steps=60, train__ema=0.99)
    mapping["model"]["patch_encoder"] |= {"dropout": 0.1, "patch_dropout": 0.25}
    mapping["processor"]["augment"] = {"crop_area": [0.6, 1.0], "flip": True}
    mapping["checkpoint"] = {"every": "5 steps"}
    mapping["eval"] = {"every": "25 steps", "start": False, "batch_size": 8, "examples": 2}
    mapping["model"]["decoder"] = None
    if kind == "two_streams_accumulated":
        mapping["train"]["accumulate"] = 2
        source = mapping["data"]["train"]
        mapping["data"]["train"] = {"pairs": {**source, "batch_size": 4}, "asked": source}
        mapping["tasks"]["vqa"] = {**mapping["tasks"]["vqa"], "stream": "asked"}
    return mapping


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills"), [("plain", 10), ("two_streams_accumulated", 3)])
def test_resume_is_bit_exact_after_kill(kind, kills, tiny_mapping, run_file, tmp_path):
    file = run_file(mapping_of(kind, tiny_mapping))
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    finish(start(file, straight))
    moments = random.Random(kind)
    in_save = {1, 2}  # these kills fall into an asynchronous save, the others at a random step
    for number in range(kills):
        process = start(file, broken)
        seen = max((x["step"] for x in lines(broken)), default=0)
        target = moments.randint(1, 5) + seen
        saving = lambda: any("tmp" in p.name for p in (broken / "checkpoints").glob("*"))  # noqa: E731
        arrived = lambda: max((x["step"] for x in lines(broken)), default=0) >= target  # noqa: B023, E731
        if not kill_when(process, saving if number in in_save else arrived):
            break
    else:
        finish(start(file, broken))
    assert number >= min(kills, 3) - 1, "the run ended before it could be killed often enough"
    assert lines(broken) == lines(straight)
    (step, one), (other_step, other) = final_state(straight, file), final_state(broken, file)
    assert step == other_step == 60
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name


@pytest.mark.slow
def test_sigterm_saves_and_exits_75_and_the_same_command_goes_on(tiny_mapping, run_file, tmp_path):
    mapping = mapping_of("plain", tiny_mapping)
    mapping["checkpoint"]["every"] = "1000 steps"
    file = run_file(mapping)
    process = start(file, tmp_path / "w")
    while not lines(tmp_path / "w") and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert "saved step" in output
    finish(start(file, tmp_path / "w"))
    assert [x["step"] for x in lines(tmp_path / "w") if "lr" in x] == list(range(1, 61))
    assert "already trained to step 60 of 60" in finish(start(file, tmp_path / "w"))


def test_exactly_n_updates_and_the_files_of_a_run(trained):
    workdir, _ = trained
    training = [x for x in lines(workdir) if "lr" in x]
    assert [x["step"] for x in training] == list(range(1, 7))
    assert [x["step"] for x in lines(workdir) if "lr" not in x] == [0, 3, 6]
    for name in ("config.json", "curves.png", "eval/validation.json", "eval/validation.png"):
        assert (workdir / name).stat().st_size > 100, name
    figures = json.loads((workdir / "eval" / "validation.json").read_text())["figures"]
    assert {"vqa/accuracy", "captioning/exact", "classification/accuracy", "matching/accuracy"} <= figures.keys()
    assert all(f["baseline"] is not None for n, f in figures.items() if n == "vqa/accuracy")


def test_a_finished_run_says_so_and_a_changed_one_is_refused(trained, capsys):
    workdir, file = trained
    same = ["train", "--config", str(file), "--workdir", str(workdir), "--config.mesh.data=0"]
    assert cli.main(same) == 0
    assert "already trained" in capsys.readouterr().out
    assert cli.main([*same, "--config.optimizer.lr=0.5"]) == 2
    assert "config.optimizer.lr: was 0.001, is 0.5" in capsys.readouterr().err


def test_eval_repeats_the_figures_of_training_and_reads_another_set(trained, tiny_set, capsys):
    workdir, _ = trained
    during = json.loads((workdir / "eval" / "validation.json").read_text())
    assert cli.main(["eval", "--workdir", str(workdir), "--checkpoint", "latest", "--config.mesh.data=0"]) == 0
    after = json.loads((workdir / "eval" / "validation.json").read_text())
    assert after["figures"] == during["figures"]
    assert (
        cli.main(
            [
                "eval",
                "--workdir",
                str(workdir),
                f"--config.data.eval.path={tiny_set / 'all.jsonl'}",
                "--config.mesh.data=0",
                "--config.eval.probe=true",
                "--config.tasks.captioning.generation.num_beams=2",
            ]
        )
        == 0
    )
    figures = json.loads((workdir / "eval" / "eval.json").read_text())["figures"]
    assert figures["classification/accuracy"]["n"] == figures["probe/linear_accuracy"]["n"] == 20
    # By neighbours of itself in the training set: most pictures are in both.
    assert figures["probe/neighbours_accuracy"]["value"] > figures["probe/neighbours_accuracy"]["baseline"]
    assert cli.main(["eval", "--workdir", str(workdir), "--config.model.embed_dim=8"]) == 2
    assert "fixed by training" in capsys.readouterr().err


def test_dry_run_prints_the_plan_and_leaves_nothing(tiny_mapping, run_file, tmp_path, capsys):
    file = run_file(tiny_mapping("vqa"))
    assert (
        cli.main(
            ["train", "--config", str(file), "--workdir", str(tmp_path / "w"), "--dry_run", "--config.mesh.data=0"]
        )
        == 0
    )
    out = capsys.readouterr().out
    for part in ("patch_encoder/stem/kernel", "question", "FLOPs a step", "compiled memory a device", "mesh data=8"):
        assert part in out
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer__lrr": 1}, r"config.optimizer.lrr: no such key. Did you mean 'lr'?"),
        ({"optimizer__lr": "fast"}, "config.optimizer.lr: found 'fast' (str), expected a number."),
        ({"optimizer__freeze": ["patch_encodr/.*"]},
         "the pattern 'patch_encodr/.*' matches no parameter. Did you mean 'patch_encoder/.*'"),
        ({"tasks__vqa__stream": "quesions"}, "config.tasks.vqa.stream: no stream 'quesions'"),
        ({"tasks__vga": {}}, "config.tasks.vga.kind: no task 'vga'. Did you mean 'vqa'?"),
        ({"model__decoder": None, "tasks__captioning": {}},
         "config.model.decoder: none, but the task 'captioning' needs one."),
        ({"data__train__path": "al.jsonl"}, "config.data.train.path: no file or folder"),
        ({"train__accumulate": 2, "tasks__matching": {}}, "'matching' compares rows of the whole batch"),
        ({"train__steps": 0}, "expected exactly one above 0"),
        ({"data__train__batch_size": 6, "mesh__data": 8}, "does not divide by mesh data x fsdp (8)"),
        ({"mesh__tensor": 8, "mesh__data": 1, "model__fusion__mlp_dim": 60},
         "(60) does not divide by config.mesh.tensor=8"),
    ],
)  # fmt: skip
def test_bad_config_ends_before_step_0_with_exit_code_2(change, message, tiny_mapping, run_file, tmp_path, capsys):
    file = run_file(tiny_mapping("vqa", **{"mesh__data": 0, **change}))
    assert cli.main(["train", "--config", str(file), "--workdir", str(tmp_path / "w")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "w" / "metrics.jsonl").exists()


def test_missing_picture_ends_before_step_0_and_names_its_row(tiny_set, tiny_mapping, run_file, tmp_path, capsys):
    text = (tiny_set / "all.jsonl").read_text().splitlines()
    text[9] = text[9].replace(json.loads(text[9])["image"], "absent.png")
    (tiny_set / "broken.jsonl").write_text("\n".join(text))
    file = run_file(tiny_mapping("vqa", data__train__path="broken.jsonl"))
    assert cli.main(["train", "--config", str(file), "--workdir", str(tmp_path / "w"), "--config.mesh.data=0"]) == 2
    assert "broken.jsonl, row 10: no file 'absent.png' below" in capsys.readouterr().err
