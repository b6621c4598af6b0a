"""Warm starts that combine folders: each part from its own, what is missing begins anew, is listed and counted."""

import json
import shutil

import jax
import numpy as np
import pytest

from mmjax import cli
from mmjax.config import merge
from mmjax.experiment import from_mapping, load
from mmjax.init_config import InitConfig
from mmjax.trained import open_trained
from mmjax.workdir import source_of
from tests.pretrained.with_processor import complete, tokenizer_json


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("public")
    ends = {"clip": 60}
    return {
        name: complete(name, base / name, end=ends.get(name, 59), bos=name != "siglip")
        for name in ("clip", "siglip", "bert", "llama", "gpt2")
    }


@pytest.fixture
def config(tiny_set, tmp_path):
    """(init, more) -> a config file on the tiny set."""

    def write(init, **more):
        whole = {
            "data": {
                "root": str(tiny_set),
                "train": {"path": "all.jsonl", "batch_size": 8},
                "holdout": 0.3,
                "threads": 1,
            },
            "init": init,
            "optimizer": {"lr": 1e-2, "warmup": "0 steps"},
            "train": {"steps": 2, "log_every": 1},
            "eval": {"every": "", "start": False},
        }
        (tmp_path / "c.py").write_text(f"def get_config():\n    return {merge(whole, more)!r}\n")
        return str(tmp_path / "c.py")

    return write


def test_clips_tower_and_a_llama_meet_through_a_new_projector(folders, config, tmp_path, capsys):
    """Only the projector is trained: the towers are those of the folders after it, read from there again."""
    init = {"patch_encoder": str(folders["clip"]), "decoder": str(folders["llama"])}
    file = config(
        init,
        model={"decoder": {"memory": "prefix"}},
        tasks={"captioning": {}},
        processor={"length": 12, "tokenizer": {"added": ["<image>"]}},
    )
    train = ["train", "--config", file, "--workdir", str(tmp_path / "w")]
    assert cli.main([*train, "--config.optimizer.train=decoder/memory_projection.*,decoder/embed/.*"]) == 0
    said = capsys.readouterr().out
    assert "init: 86 of 88 parameters" in said and "decoder/embed/embedding: 1 rows added to 61" in said
    assert (
        "begin anew: 2 (1,116 numbers): decoder/memory_projection_30/bias, decoder/memory_projection_30/kernel" in said
    )
    trained = open_trained(tmp_path / "w", "latest", {})
    clip, llama = (source_of(InitConfig(path=str(folders[n]))) for n in ("clip", "llama"))
    for source, part in ((clip, "patch_encoder/"), (llama, "decoder/transformer/")):
        names = [n for n in source.shapes if n.startswith(part)]
        spec = {
            n: jax.ShapeDtypeStruct(source.shapes[n], np.float32, sharding=trained.params[n].sharding) for n in names
        }
        for name, array in source.read(spec).items():
            np.testing.assert_array_equal(trained.params[name], array, err_msg=name)
    assert trained.config.model.decoder.rope_theta == llama.model["decoder"]["rope_theta"]


def test_siglips_tower_and_bert_meet_in_a_new_fusion(folders, config):
    init = {"patch_encoder": str(folders["siglip"]), "text_encoder": str(folders["bert"])}
    fusion = {"name": "cross_attention", "width": 32, "depth": 1, "heads": 2}
    built, mapping = load(config(init, model={"fusion": fusion}, tasks={"matching": {}}), {})
    source = source_of(built.init)
    assert {n.split("/")[0] for n in source.shapes} == {"patch_encoder", "text_encoder"}
    assert built.model.text_encoder.norm_first is False and built.model.patch_encoder.pool == "attention"
    assert built.processor.image.size == source.opened["patch_encoder"].settings["image"]["size"]
    assert built.processor.tokenizer.path == str(folders["bert"])
    assert from_mapping(mapping) == built


def test_a_part_that_a_folder_does_not_have_is_named(folders, config, capsys):
    file = config({"decoder": str(folders["bert"])}, tasks={"captioning": {}})
    assert cli.main(["train", "--config", file, "--workdir", "unused"]) == 2
    said = capsys.readouterr().err
    assert f"config.init.decoder: '{folders['bert']}' has no decoder. It has text_encoder." in said


def test_two_vocabularies_in_one_model_are_an_error(folders, config, tmp_path, capsys):
    other = shutil.copytree(folders["gpt2"], tmp_path / "other")
    (other / "tokenizer.json").write_text(tokenizer_json(61, end=59).replace('"dog"', '"hound"'))
    file = config({"text_encoder": str(folders["bert"]), "decoder": str(other)}, tasks={"captioning": {}})
    assert cli.main(["train", "--config", file, "--workdir", "unused"]) == 2
    assert "have different vocabularies. Expected one for the whole model" in capsys.readouterr().err


def test_another_tokenizer_than_the_tables_is_an_error_before_the_first_step(folders, config, tmp_path, capsys):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tokenizer.json").write_text(tokenizer_json(61, end=60).replace('"dog"', '"hound"'))
    file = config({"path": str(folders["clip"])}, tasks={"contrastive": {}})
    override = f"--config.processor.tokenizer.path={tmp_path / 'own' / 'tokenizer.json'}"
    assert cli.main(["train", "--config", file, "--workdir", str(tmp_path / "w"), override]) == 2
    said = capsys.readouterr()
    assert "config.processor.tokenizer: another vocabulary than that of" in said.err
    assert "config.processor.tokenizer.path: " in said.out  # the override is listed


def test_a_run_on_a_whole_folder_takes_loss_sizes_and_pictures_and_exports_again(folders, config, tmp_path):
    file = config({"path": str(folders["clip"])}, tasks={"contrastive": {}})
    assert cli.main(["train", "--config", file, "--workdir", str(tmp_path / "w")]) == 0
    found = json.loads((tmp_path / "w" / "config.json").read_text())
    assert found["tasks"]["contrastive"]["loss_kind"] == "softmax" and found["model"]["embed_dim"] == 20
    assert found["processor"]["length"] == 13 and found["processor"]["image"]["size"] == 18
    assert cli.main(["export", "--workdir", str(tmp_path / "w"), str(tmp_path / "out")]) == 0
    before, after = (source_of(InitConfig(path=str(f))) for f in (folders["clip"], tmp_path / "out"))
    assert before.model == after.model and before.shapes == after.shapes
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["initializer_factor"] == 1.0  # what the family does not know of stays
