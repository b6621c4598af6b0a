"""A workdir opened again: as it began, and on the way from there."""

import dataclasses
import json

import numpy as np
import pytest

from mmjax import cli
from mmjax.trained import open_trained


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


def test_a_head_that_began_anew_stays_as_trained_at_every_share(adapted):
    trained = open_trained(adapted[0], "best", {})
    init = dataclasses.replace(trained.config.init, fresh=("head_.*",))
    fresh = dataclasses.replace(trained, config=dataclasses.replace(trained.config, init=init))
    mixed, base, head = fresh.interpolated(0.0), trained.before().params, "head_classification/logits/kernel"
    np.testing.assert_array_equal(mixed[head], trained.params[head])
    assert not np.array_equal(mixed[head], base[head])
    kept = [n for n in base if not n.startswith("head_")]
    assert kept and all(np.array_equal(mixed[n], base[n]) for n in kept)
