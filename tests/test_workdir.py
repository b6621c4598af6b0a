"""What a workdir's checkpoint holds, and how it is read with and without its base."""

import shutil

import numpy as np
from conftest import planned, stored

from mmjax import cli
from mmjax.init_config import InitConfig
from mmjax.workdir import Workdir, source_of


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


def test_a_part_of_a_run_is_named_with_the_checkpoint_that_was_asked_for(base):
    found = [source_of(InitConfig(patch_encoder=str(base), checkpoint=step)).identity for step in ("2", "4")]
    assert [identity["step"] for identity in found] == ["2", "4"] and found[0]["sha256"] != found[1]["sha256"]


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
