"""Before against after: pairing by id, the two tests, what is refused, and the command on real workdirs."""

import json

import numpy as np
import pytest

from mmjax import cli, comparison
from mmjax.errors import ConfigError
from mmjax.evaluators.figure import Tally
from mmjax.evaluators.intervals import mcnemar


def figure(scores, weights=None, names=None, name="t/m", **options):
    tally = Tally("chance")
    for i, score in enumerate(scores):
        tally.add(
            {"id": str(i) if names is None else names[i]}, score, 0.5, weight=1 if weights is None else weights[i]
        )
    return tally.figure(name, **options)


RANDOM = np.random.default_rng(0)
OLD, NEW = (RANDOM.random((2, 200)) < [[0.5], [0.7]]).astype(float)


def test_rows_are_paired_by_id_whatever_their_order():
    names, order = [f"row {i}" for i in range(200)], RANDOM.permutation(200)
    (change,) = comparison.changes([figure(OLD, names=names)], [figure(NEW[order], names=[names[i] for i in order])])
    assert (change.before.value, change.after.value, change.rows) == (OLD.mean(), NEW.mean(), 200)
    assert change.test == "mcnemar" and change.p == mcnemar(OLD, NEW) < 0.01
    difference = NEW - OLD
    half = 1.96 * difference.std() / np.sqrt(200)
    np.testing.assert_allclose(change.interval, (difference.mean() - half, difference.mean() + half), atol=0.016)


def test_only_rows_that_both_have_count():
    names = [f"row {i}" for i in range(200)]
    (change,) = comparison.changes([figure(OLD[:150], names=names[:150])], [figure(NEW, names=names)])
    assert change.rows == 150 and change.after.value == NEW[:150].mean() and change.after.baseline is None
    with pytest.raises(ConfigError, match="test: t/m: no row in common"):
        comparison.changes([figure(OLD)], [figure(NEW, names=names)], "test")
    with pytest.raises(ConfigError, match="no figure in common. Before has t/x; after has t/m"):
        comparison.changes([figure(OLD, name="t/x")], [figure(NEW)])


def test_shares_are_swapped_and_what_is_no_ratio_has_no_test():
    weights = RANDOM.integers(1, 5, 200)
    before, after = figure(OLD * weights, weights), figure(NEW * weights, weights)
    (change,) = comparison.changes([before], [after])
    assert change.test == "swaps" and change.p < 0.01
    nll = [figure(x, weights, percent=False, link="exp") for x in (weights * 2.0, weights * 1.0)]
    (change,) = comparison.changes([nll[0]], [nll[1]])
    np.testing.assert_allclose(change.interval, np.e - np.e**2)
    (change,) = comparison.changes([figure(OLD, weights)], [figure(NEW, weights + 1)])  # other tokens
    assert change.p is None and change.interval is not None
    bare = comparison.Figure("t/m", 0.5, 7)
    (change,) = comparison.changes([bare], [bare])
    assert (change.interval, change.p, change.cells()[3:5]) == (None, None, ("+0.0", ""))


def test_the_table_marks_the_exact_test():
    text = comparison.table({"test": comparison.changes([figure(OLD)], [figure(NEW)])})
    row = next(line for line in text.splitlines() if line.startswith("t/m"))
    assert f"{100 * OLD.mean():.1f} %" in row and "*" in row and "50.0 % (chance)" in row and row.endswith("200")


def test_a_run_against_itself_changes_nothing(trained, capsys):
    workdir, _ = trained
    command = ["compare", "--before", str(workdir), "--after", str(workdir), "--config.mesh.data=0"]
    assert cli.main(command) == 0
    assert "validation: before against after" in capsys.readouterr().out
    told = json.loads((workdir / "eval" / "comparison.json").read_text())["validation"]
    assert {"vqa/accuracy", "captioning/exact", "classification/accuracy"} <= told.keys()
    whole = {f"captioning/{n}" for n in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor_exact")}  # of a whole set
    assert whole == {name for name, change in told.items() if change["p"] is None}
    for name, change in told.items():
        assert change["difference"] == 0
        assert name in whole or (change["p"] == 1 and change["interval"] == [0, 0])


def test_a_run_is_compared_with_what_it_began_with(trained, capsys):
    workdir, file = trained
    before = {p.name: p.read_bytes() for p in (workdir / "eval").iterdir() if p.suffix == ".json"}
    again = ["train", "--config", str(file), "--workdir", str(workdir), "--compare", "--config.mesh.data=0"]
    assert cli.main(again) == 0  # it is trained already, and still compared
    out = capsys.readouterr().out
    assert "already trained" in out and "validation: before against after" in out
    told = json.loads((workdir / "eval" / "comparison.json").read_text())["validation"]
    start = json.loads((workdir / "eval" / "before" / "validation.json").read_text())
    assert start["step"] == 0 and before["validation.json"]
    for name, change in told.items():
        assert change["before"] == pytest.approx(start["figures"][name]["value"])
        assert change["difference"] == pytest.approx(change["after"] - change["before"])
    assert told["captioning/exact"]["test"] == "mcnemar" and 0 < told["captioning/exact"]["p"] <= 1


@pytest.mark.slow
def test_a_run_on_top_of_another_is_compared_by_itself(adapted, base, tiny_set, capsys):
    workdir, file = adapted
    test = f"--config.data.test.path={tiny_set / 'all.jsonl'}"
    assert cli.main(["train", "--config", str(file), "--workdir", str(workdir), test]) == 0
    assert "test: before against after" in capsys.readouterr().out
    assert cli.main(["eval", "--workdir", str(base), f"--config.data.eval.path={tiny_set / 'all.jsonl'}"]) == 0
    told = json.loads((workdir / "eval" / "comparison.json").read_text())["test"]["classification/accuracy"]
    old = json.loads((base / "eval" / "eval.json").read_text())["figures"]["classification/accuracy"]
    assert told["before"] == pytest.approx(old["value"]) and told["rows"] == old["n"] == 20
    # The two runs, each with its own model and processor, say the same.
    assert cli.main(["compare", "--before", str(base), "--after", str(workdir), test]) == 0
    again = json.loads((workdir / "eval" / "comparison.json").read_text())["test"]["classification/accuracy"]
    assert again == told


def test_files_of_predictions_give_the_figures_that_they_came_with(trained, tmp_path, capsys):
    workdir, _ = trained
    file = workdir / "eval" / "validation.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines[:3]:
        total, weight = line["scores"]["vqa/accuracy"]
        line["scores"]["vqa/accuracy"] = [weight - total, weight]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "other.json").write_text(file.with_suffix(".json").read_text())
    assert cli.main(["compare", "--before", str(file), "--after", str(tmp_path / "other.jsonl")]) == 0
    row = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("vqa/accuracy "))
    value = json.loads(file.with_suffix(".json").read_text())["figures"]["vqa/accuracy"]["value"]
    assert f"{100 * value:.1f} %" in row.split("  ")[1:4] or f"{100 * value:.1f} %" in row


def test_what_cannot_be_compared_is_refused(trained, tmp_path, capsys):
    workdir, _ = trained
    file = str(workdir / "eval" / "validation.jsonl")
    for arguments, message in (
        (["--before", str(tmp_path / "no"), "--after", file], "--before: no file or folder"),
        (["--before", str(workdir), "--after", file], "expected two workdirs or two jsonl files"),
        (["--before", file, "--after", file, "--config.eval.batch_size=3"], "prediction files are compared as they"),
    ):
        assert cli.main(["compare", *arguments]) == 2
        assert message in capsys.readouterr().err
