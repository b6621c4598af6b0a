"""Rows that cannot be read: a whole run over a set of which a tenth is broken, as a user would start it."""

import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from mmjax import assemble, cli, sharding
from mmjax.config import merge
from mmjax.data.bad_records import BadRecords
from mmjax.errors import ConfigError
from mmjax.experiment import load
from mmjax.metrics import read_lines

ROWS, STEPS = 40, 10  # two epochs of batches of 8
BROKEN = {3: "truncated", 17: "not a picture", 24: "empty", 31: "damaged"}


def picture(i: int) -> bytes:
    pixels = np.random.default_rng(i).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((40 + i, 36)).save(buffer, "PNG" if i == 31 else "JPEG")
    return buffer.getvalue()


def damage(data: bytes, cause: str) -> bytes:
    half = len(data) // 2
    return {
        "truncated": data[:half],
        "not a picture": b"<html>404 Not Found</html>",
        "empty": b"",
        "damaged": data[:half] + bytes([data[half] ^ 16]) + data[half + 1 :],
    }[cause]


@pytest.fixture(scope="module")
def configs(tiny_mapping, tmp_path_factory):
    """{"clean", "broken": config file}: the same run on the set as it was, and with a tenth of its pictures broken."""
    files = {}
    for name in ("clean", "broken"):
        folder = tmp_path_factory.mktemp(name)
        for i in range(ROWS):
            data = picture(i)
            (folder / f"{i:02}.jpg").write_bytes(damage(data, BROKEN[i]) if name == "broken" and i in BROKEN else data)
        (folder / "train.csv").write_text(
            "image,caption\n" + "".join(f"{i:02}.jpg,picture {i} of {ROWS}\n" for i in range(ROWS))
        )
        mapping = tiny_mapping("contrastive", processor__augment={"crop_area": [0.5, 1.0], "flip": True})
        mapping = merge(mapping, {"data": {"root": str(folder), "holdout": 0.0}, "mesh": {"data": 0}})
        mapping["data"]["train"]["path"] = "train.csv"
        towers = {name: {**mapping["model"][name], "depth": 1} for name in ("patch_encoder", "text_encoder")}
        mapping["model"] = {"embed_dim": 32, **towers}
        mapping["train"] = {"steps": STEPS, "log_every": 1}
        files[name] = folder / "config.py"
        files[name].write_text(f"def get_config():\n    return {mapping!r}\n")
    return files


def batches(file, *fraction):
    config, _ = load(str(file), dict([("data.max_bad_fraction", *fraction)] if fraction else []))
    data = assemble.open_data(config)
    whole = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    (pipeline,) = assemble.train_pipelines(config, data, assemble.fit_processor(config, data), whole).values()
    return list(pipeline.batches(0, STEPS))


@pytest.mark.slow
def test_a_run_over_a_set_with_a_tenth_of_bad_files_ends_well_and_counts_them(configs, tmp_path, capsys):
    workdir = tmp_path / "run"
    allowed = "--config.data.max_bad_fraction=0.1"
    assert cli.main(["train", "--config", str(configs["broken"]), "--workdir", str(workdir), allowed]) == 0
    noted = [json.loads(line) for line in (workdir / "bad_records.jsonl").read_text().splitlines()]
    assert {line["row"]: line["cause"] for line in noted} == BROKEN and len(noted) == len(BROKEN)
    assert {line["id"] for line in noted} == {f"{row:02}.jpg" for row in BROKEN}
    logged = list(read_lines(workdir / "metrics.jsonl"))
    assert [x["step"] for x in logged if "lr" in x] == list(range(1, STEPS + 1))
    assert "1 damaged, 1 empty, 1 not a picture, 1 truncated" in capsys.readouterr().out


def test_every_other_row_is_bit_equal_to_the_clean_run(configs):
    seen = 0
    for clean, broken in zip(batches(configs["clean"]), batches(configs["broken"], "0.1"), strict=True):
        whole = ~np.isin(clean["row"], list(BROKEN))
        seen += (~whole).sum()
        assert clean.keys() == broken.keys() and not set(broken["row"]) & set(BROKEN)
        for name in clean:
            assert np.array_equal(clean[name][whole], broken[name][whole]), name
    assert seen == 2 * len(BROKEN)  # once an epoch


@pytest.mark.parametrize("allowed", ["0", pytest.param("0.05", marks=pytest.mark.slow)])
def test_more_bad_files_than_allowed_end_the_command_with_exit_code_2(configs, allowed, tmp_path, capsys):
    command = ["train", "--config", str(configs["broken"]), "--workdir", str(tmp_path / "run")]
    assert cli.main([*command, f"--config.data.max_bad_fraction={allowed}"]) == 2
    said = capsys.readouterr().err
    assert "train.csv" in said and "data.max_bad_fraction" in said


def test_a_row_is_written_once_however_often_it_is_met(tmp_path):
    file = tmp_path / "bad.jsonl"
    for _ in range(2):  # a run, and the same resumed
        bad = BadRecords("s", 10, 0.3, file)
        for row, cause in ((4, "empty"), (7, "damaged"), (4, "empty")):
            bad.add(row, f"p{row}", cause, ConfigError(f"s, row {row}"))
        assert len(bad) == 2 and 4 in bad and 5 not in bad and bad.summary() == "1 damaged, 1 empty"
    assert [json.loads(line)["row"] for line in file.read_text().splitlines()] == [4, 7]
