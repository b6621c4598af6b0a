"""The commands that look at data, time it and pack it, on a tiny run's own config."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mmjax import cli
from mmjax.metrics import read_lines
from mmjax.report import GREY, INK, RIGHT


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def config_file(tiny_mapping, tmp_path):
    """(task names, overrides) -> a config file."""

    def write(*tasks, **overrides):
        file = tmp_path / "config.py"
        file.write_text(f"def get_config():\n    return {tiny_mapping(*tasks, mesh__data=0, **overrides)!r}\n")
        return str(file)

    return write


def colours(path):
    return {tuple(map(int, colour)) for colour in np.unique(np.asarray(Image.open(path)).reshape(-1, 3), axis=0)}


def rgb(colour):
    return tuple(bytes.fromhex(colour[1:]))


def test_preview_shows_what_is_learnt_what_is_read_and_the_padding(config_file, tmp_path, capsys):
    file, out = config_file("captioning", "vqa", processor__questions=5), tmp_path / "p.png"
    assert cli.main(["data", "preview", "--config", file, "--out", str(out), "--rows", "10"]) == 0
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith("row ")]
    assert len(rows) == 10 and all(line.endswith(".png") for line in rows)
    text, question = (next(x for x in said.splitlines() if x.startswith(f"  {n} 1:")) for n in ("text", "question"))
    assert text.split()[2] == "<bos>" and "[<eos>]" in text  # bos is given, all that follows is learnt
    assert all(word.startswith("[") for word in text.partition(" ·")[0].split()[3:])
    assert "[" not in question and "<eos>" in question
    assert int(text.rpartition(" x ")[2]) + len(text.partition(" ·")[0].split()) - 2 == 20  # of 20 tokens
    assert "question 5: (masked: the row has no more)" in said
    assert {rgb(INK), rgb(GREY), rgb(RIGHT)} <= colours(out)


def test_preview_of_conversations_marks_the_assistants_turns(config_file, tmp_path, capsys):
    file = config_file("chat", data__train__path="talks.json", processor__chat_length=40)
    assert cli.main(["data", "preview", "--config", file, "--out", str(tmp_path / "p.png")]) == 0
    chats = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  chat:")]
    assert len(chats) == 8 and all("[<eos>]" in line and "user" not in line.partition("[")[2][:1] for line in chats)
    assert any("<image>" in line for line in chats)


def test_bench_times_the_input_and_its_stages_and_builds_no_model(config_file, monkeypatch, capsys):
    from mmjax import assemble

    monkeypatch.setattr(assemble, "build_model", None)
    assert cli.main(["data", "bench", "--config", config_file("captioning"), "--steps", "3"]) == 0
    said = capsys.readouterr().out
    line = next(line.split() for line in said.splitlines() if line.startswith("main"))
    assert line[1:4] == ["8", "1", "3"] and all(float(x.replace(",", "")) >= 0 for x in line[4:])
    assert [stage for stage in ("read", "pictures", "texts") if f"main    {stage}" in said] == [
        "read",
        "pictures",
        "texts",
    ]


def test_unknown_actions_and_values_are_refused(config_file, tmp_path, capsys):
    file = config_file("captioning")
    assert cli.main(["data", "bench", "--config", file, "--steps", "0"]) == 2
    assert "mmjax data bench: --steps: found 0" in capsys.readouterr().err
    assert cli.main(["data", "preview", "--config", file, "--rows", "0"]) == 2
    crop = "--config.processor.augment.crop_area=0.5,1.0"
    assert cli.main(["data", "pack", "--config", file, "--out", str(tmp_path / "o"), crop]) == 2
    assert "mmjax data pack: config.processor.augment.crop_area" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    with pytest.raises(SystemExit):
        cli.main(["data", "look"])


TRAIN_WITHOUT = """
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None  # an import of either raises
from mmjax import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_run_on_packed_data_is_the_run_on_the_data_and_needs_no_tensorflow(config_file, tmp_path, capsys):
    file = config_file("captioning", processor__augment={"flip": True, "contrast": 0.2}, train__steps=2)
    assert cli.main(["data", "pack", "--config", file, "--out", str(tmp_path / "packed")]) == 0
    printed = [line.strip(" \\") for line in capsys.readouterr().out.splitlines() if "--config.data" in line]
    assert printed == [
        f"--config.data.train.path={tmp_path}/packed/train",
        f"--config.data.validation.path={tmp_path}/packed/validation",
    ]
    assert cli.main(["train", "--config", file, "--workdir", str(tmp_path / "a")]) == 0
    command = ["train", "--config", file, "--workdir", str(tmp_path / "b"), *printed]
    done = subprocess.run([sys.executable, "-c", TRAIN_WITHOUT, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = (
        [
            {k: v for k, v in line.items() if "second" not in k and k != "data_wait"}
            for line in read_lines(w / "metrics.jsonl")
        ]
        for w in (tmp_path / "a", tmp_path / "b")
    )
    assert first == second and len(first) >= 3
    tables = [json.loads((tmp_path / w / "eval" / "validation.json").read_text()) for w in "ab"]
    assert tables[0] == tables[1]


PACKED = {"processor__image__aspect": "native", "data__train__pack_tokens": 48, "data__train__pack_rows": 4,
          "data__train__batch_size": 8}  # fmt: skip


def test_preview_of_packed_rows_shows_segments_empty_places_and_padding(config_file, tmp_path, capsys):
    file = config_file("captioning", data__holdout=0, **PACKED)
    assert cli.main(["data", "preview", "--config", file, "--out", str(tmp_path / "p.png"), "--rows", "20"]) == 0
    said = capsys.readouterr().out.splitlines()
    titles = [line for line in said if line.startswith("sequence ")]
    assert len(titles) == 20 and titles[0].startswith("sequence 1: ")
    for i, title in enumerate(titles):
        first = said.index(title) + 1
        texts, rest = said[first : first + 4], said[first + 4]
        real = [text for text in texts if "<bos>" in text]
        assert len(real) == int(title.split()[2]) and all("[<eos>]" in text for text in real), i
        words = sum(len(text.split()) - 2 for text in real)  # "segment 1:" before them
        padding = 0 if "no padding" in rest else int(rest.rpartition(" x ")[2])
        assert words + padding == 48
    assert any("(empty: no row, or one that cannot be read)" in line for line in said)


def test_bench_and_dry_run_tell_the_padding_of_packed_rows_and_buckets(config_file, tmp_path, capsys):
    told = "main: text packed: 20 rows in "
    file = config_file("captioning", data__holdout=0, **PACKED)
    assert cli.main(["data", "bench", "--config", file, "--steps", "2"]) == 0
    assert told in capsys.readouterr().out
    assert cli.main(["train", "--config", file, "--workdir", str(tmp_path / "w"), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert f"train/{told}" in said and "native aspect within 16 patches of 8 px" in said and "(8, 4, 16, 192)" in said
    file = config_file("captioning", data__holdout=0, data__train__buckets=[12, 16])
    assert cli.main(["data", "bench", "--config", file, "--steps", "2"]) == 0
    assert "text in buckets of 12, 16, 20 tokens: padding" in capsys.readouterr().out


def losses(workdir):
    found = read_lines(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k in ("step", "loss", "rows", "gradient_norm")} for line in found]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["packed", "buckets"])
def test_a_run_on_native_pictures_goes_on_where_it_stopped_and_predicts(
    layout, config_file, tiny_set, tmp_path, capsys
):
    options = PACKED if layout == "packed" else {"processor__image__aspect": "native", "data__train__buckets": [16]}
    file = config_file("captioning", "contrastive", optimizer__schedule="constant", **options)
    one, two = (["train", "--config", file, "--workdir", str(tmp_path / w)] for w in "ab")
    assert cli.main([*one, "--config.train.steps=4"]) == 0
    assert cli.main([*two, "--config.train.steps=2"]) == 0
    assert cli.main([*two, "--config.train.steps=4"]) == 0
    whole, resumed = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert [line for line in resumed if line["step"] > 2] == [line for line in whole if line["step"] > 2]
    assert (tmp_path / "a" / "eval" / "validation.png").exists()
    wide = tmp_path / "wide.png"
    Image.open(tiny_set / "images" / "00.png").resize((64, 24)).save(wide)
    capsys.readouterr()
    command = ["predict", "--workdir", str(tmp_path / "a"), "--image", str(wide), "--labels", "a circle,a square"]
    assert cli.main([*command, "--panel", str(tmp_path / "o.png")]) == 0
    assert "%  a circle" in capsys.readouterr().out and (tmp_path / "o.png").exists()
