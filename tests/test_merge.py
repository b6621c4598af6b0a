"""A workdir that needs nothing else."""

import json

import pytest
from conftest import stored

from mmjax import cli
from mmjax.workdir import Workdir


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
    assert cli.main(["compare", "--after", str(out)]) == 2
    assert "was merged, not trained" in capsys.readouterr().err
    assert cli.main(["merge", "--workdir", str(workdir), "--out", str(out), "--config.data.holdout=0.5"]) == 2
    assert "--config.data.holdout: weights are merged as they are" in capsys.readouterr().err
