"""The search: what is suggested, given up, taken up again after a kill, and shown."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmjax import cli, tune
from mmjax.errors import ConfigError
from mmjax.tune import Dimension

# A training whose figures are known: the larger the learning rate up to 1e-2, the better.
FAKE = """
import json, os, signal, sys
from pathlib import Path
from mmjax import train
from mmjax.run import Diverged

def fake(config, mapping, workdir, watch=None):
    if config.optimizer.weight_decay > 0.9:
        raise Diverged("the loss is not finite")
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "metrics.jsonl"
    begun = len(path.read_text().splitlines()) if path.exists() else 0
    for step in range(begun, 4):
        figures = {"validation/vqa/accuracy": 10 * config.optimizer.lr * (step + 1)}
        with path.open("a") as lines:
            lines.write(json.dumps({"step": step, **figures}) + chr(10))
        if step == 2 and workdir.name == os.environ.get("KILL_AT") and not begun:
            os.kill(os.getpid(), signal.SIGKILL)
        if step:
            watch(step, figures)
    return 0

train.train = fake
"""
METRIC = ["--metric", "validation/vqa/accuracy"]


@pytest.fixture
def search(tiny_mapping, tmp_path):
    """arguments -> the finished process of `mmjax tune` with the training above."""
    file = tmp_path / "config.py"
    file.write_text(f"def get_config():\n    return {tiny_mapping('vqa')!r}\n")

    def run(*arguments, kill_at=""):
        import os

        command = ["tune", "--config", str(file), "--workdir", str(tmp_path / "w"), *METRIC, *arguments]
        code = FAKE + f"from mmjax import cli\nsys.exit(cli.main({command!r}))\n"
        environment = {**os.environ, "KILL_AT": kill_at}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)

    return run


def trials(folder):
    import optuna

    study = optuna.load_study(study_name="tune", storage=f"sqlite:///{folder / 'tune.db'}")
    return study.get_trials()


SPACE = ["--space", "optimizer.lr=log:1e-4:1e-2", "--space", "processor.questions=1,2"]


@pytest.mark.slow
def test_a_killed_search_goes_on_with_what_was_finished_and_the_trial_that_was_not(search, tmp_path):
    killed = search(*SPACE, "--trials", "4", kill_at="002")
    assert killed.returncode == -signal.SIGKILL
    before = trials(tmp_path / "w")
    assert [t.state.name for t in before] == ["COMPLETE", "COMPLETE", "RUNNING"]
    done = search(*SPACE, "--trials", "4")
    assert done.returncode == 0, done.stderr
    after = trials(tmp_path / "w")
    assert [t.state.name for t in after] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert [t.value for t in after[:2]] == [t.value for t in before[:2]]
    assert after[3].params == before[2].params and after[3].user_attrs["folder"] == "002"
    assert list(after[3].intermediate_values) == [1, 2, 3]  # those of before the kill too
    unbroken = search(*SPACE, "--trials", "4", "--workdir", str(tmp_path / "unbroken"))
    assert unbroken.returncode == 0
    # As many trials; the one after the kill is suggested from another number of trials.
    assert [t.params for t in trials(tmp_path / "unbroken")][:3] == [after[k].params for k in (0, 1, 3)]
    again = search(*SPACE, "--trials", "4")
    assert again.returncode == 0 and "trial 5" not in again.stdout and "best: mmjax train" in again.stdout


@pytest.mark.slow
def test_bad_trials_are_given_up_and_the_best_is_named(search, tmp_path):
    done = search(*SPACE, "--trials", "12")
    assert done.returncode == 0, done.stderr
    told = trials(tmp_path / "w")
    states = [t.state.name for t in told]
    assert len(states) == 12 and states[:4] == ["COMPLETE"] * 4 and "PRUNED" in states
    pruned = [t for t in told if t.state.name == "PRUNED"]
    assert all(len(t.intermediate_values) < 3 for t in pruned)
    best = max((t for t in told if t.value is not None), key=lambda t: t.value)
    assert best.value == pytest.approx(40 * best.params["optimizer.lr"], rel=1e-4)
    table = (tmp_path / "w" / "tune.txt").read_text()
    assert table.splitlines()[2].split()[0] == f"{best.number}" and "importance: optimizer.lr" in table
    line = next(x for x in table.splitlines() if x.startswith("best: mmjax train"))
    assert f"--config.optimizer.lr={best.params['optimizer.lr']:.6g}" in line
    assert (tmp_path / "w" / "tune.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_diverged_trial_is_given_up_and_impossible_values_end_the_search_when_all_are(search, tmp_path):
    done = search("--space", "optimizer.weight_decay=0.0,0.95", "--trials", "6")
    assert done.returncode == 0, done.stderr
    states = {t.params["optimizer.weight_decay"]: t.state.name for t in trials(tmp_path / "w")}
    assert states == {"0.0": "COMPLETE", "0.95": "PRUNED"}
    other = ["--workdir", str(tmp_path / "v")]
    done = search("--space", "model.text_encoder.pool=mean,nothing", *other, "--trials", "6")
    assert done.returncode == 0 and "nothing" in done.stderr
    assert {t.state.name for t in trials(tmp_path / "v")} == {"COMPLETE", "FAIL"}


@pytest.mark.slow
def test_what_is_asked_wrongly_is_refused(search, tmp_path):
    for arguments, message in (
        (["--space", "optimizer.lrr=log:1e-4:1e-2"], "config.optimizer.lrr: no such key. Did you mean 'lr'"),
        (["--space", "optimizer.lr=log:1e-2"], "--space optimizer.lr: found 'log:1e-2', expected KEY=log:1e-4"),
        ([*SPACE, *SPACE], "is given twice"),
    ):
        done = search(*arguments, "--trials", "2")
        assert done.returncode == 2 and message in done.stderr, done.stderr
    assert search(*SPACE, "--trials", "1", "--workdir", str(tmp_path / "v")).returncode == 0
    done = search("--space", "optimizer.lr=0.1,0.2", "--trials", "2", "--workdir", str(tmp_path / "v"))
    assert done.returncode == 2 and "holds a search with another space" in done.stderr


@pytest.mark.parametrize(
    "text,dimension",
    [
        ("a.b=log:1e-4:1e-2", Dimension("a.b", "log", 1e-4, 1e-2)),
        ("a.b=uniform:-1:0.5", Dimension("a.b", "uniform", -1.0, 0.5)),
        ("a.b=int:2:8", Dimension("a.b", "int", 2, 8)),
        ("a.b=2,4", Dimension("a.b", "choice", choices=("2", "4"))),
    ],
)
def test_spaces_are_read(text, dimension):
    assert Dimension.parse(text) == dimension


@pytest.mark.parametrize("text", ["a.b", "a.b=", "a.b=3", "a.b=2,2", "a.b=log:0:1", "a.b=int:1.5:2", "a.b=uniform:2:1"])
def test_spaces_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="--space"):
        Dimension.parse(text)


@pytest.mark.slow
def test_trials_are_real_runs_that_can_be_used(tiny_mapping, tmp_path, capsys):
    mapping = tiny_mapping("classification", train__steps=4)
    mapping["eval"] = {"every": "2 steps", "start": False, "batch_size": 8}
    (tmp_path / "c.py").write_text(f"def get_config():\n    return {mapping!r}\n")
    metric = ["--metric", "validation/classification/accuracy", "--config.mesh.data=0"]
    command = ["tune", "--config", str(tmp_path / "c.py"), "--workdir", str(tmp_path / "w"), *metric]
    assert cli.main([*command, "--space", "optimizer.lr=1e-3,1e-2", "--trials", "2"]) == 0
    out = capsys.readouterr().out
    assert "trial 1, 2 of 2: optimizer.lr=" in out and "best: mmjax train --config" in out
    (folder,) = {t.user_attrs["folder"] for t in trials(tmp_path / "w")[:1]}
    assert (tmp_path / "w" / "trials" / folder / "eval" / "validation.json").is_file()
    told = json.loads((tmp_path / "w" / "trials" / folder / "config.json").read_text())
    assert told["checkpoint"]["best"] == "validation/classification/accuracy"
    metric = ["--metric", "validation/classification/acuracy", "--config.mesh.data=0"]
    command = ["tune", "--config", str(tmp_path / "c.py"), "--workdir", str(tmp_path / "v"), *metric]
    assert cli.main([*command, "--space", "optimizer.lr=1e-3,1e-2", "--trials", "1"]) == 2
    assert "Did you mean 'validation/classification/accuracy'?" in capsys.readouterr().err
    assert [t.state.name for t in trials(tmp_path / "v")] == ["FAIL"]


def test_one_search_at_a_time(tmp_path):
    with (
        tune._alone(tmp_path),
        pytest.raises(ConfigError, match="another 'mmjax tune' is searching"),
        tune._alone(tmp_path),
    ):
        pass
    assert Path(tmp_path / "tune.lock").is_file()
