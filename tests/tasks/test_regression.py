"""Numbers, from the data to the figure."""

import json

import numpy as np
import pytest

from mmjax import assemble, cli
from mmjax.experiment import load


@pytest.mark.slow
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
    file.write_text("image,value\n" + "".join(f"{n},{1040 + 2.5 * (i % 7)}\n" for i, n in enumerate(names)))
    scales = {}
    for fresh in ("()", "('head_age/.*',)"):
        config, _ = load(str(run_file(mapping)), {"init.path": str(tmp_path / "w"), "init.fresh": fresh})
        scales[fresh] = assemble.fit_processor(config, assemble.open_data(config)).values
    # A head that is kept means what it meant: its numbers are not scaled anew.
    assert scales["()"] == pytest.approx((np.mean(values), np.std(values)))
    assert scales["('head_age/.*',)"] == pytest.approx((1000 + np.mean(values), np.std(values)))
