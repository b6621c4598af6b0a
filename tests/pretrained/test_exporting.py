"""`mmjax export`: what was imported comes out to the bit, with the processor; what no family can say is an error."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import transformers

from mmjax import cli
from mmjax.config import build
from mmjax.errors import ConfigError
from mmjax.models.multimodal import ModelConfig, Multimodal
from mmjax.pretrained import exporting
from mmjax.pretrained.source import Published
from mmjax.pretrained.tensor_files import INDEX, open_tensors
from tests.pretrained.test_importing import imported

NAMES = ["vit", "dinov2", "clip", "siglip", "bert", "gpt2", "llama", "qwen2"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def exported(workdir, out, *more):
    return cli.main(["export", "--workdir", str(workdir), "--to", "hf", str(out), *more])


def assert_same_tensors(one, other):
    one, other = (open_tensors(folder, "x") for folder in (one, other))
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key].map(), other[key].map(), err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_import_then_export_then_import_is_identical(name, folder, tmp_path):
    assert imported(folder(name), tmp_path / "w") == 0
    assert exported(tmp_path / "w", tmp_path / "out") == 0
    assert_same_tensors(folder(name), tmp_path / "out")
    first, again = (Published(path, "x") for path in (folder(name), tmp_path / "out"))
    assert first.model == again.model and first.shapes == again.shapes
    same = lambda settings: json.dumps(settings).replace(str(tmp_path / "out"), str(folder(name)))  # noqa: E731
    assert same(first.settings) == same(again.settings)
    assert first.processor == again.processor or first.processor.differences(again.processor) == []


def test_what_changed_stands_in_config_json_and_the_rest_stays(folder, tmp_path):
    source = shutil.copytree(folder("clip"), tmp_path / "f")
    config = json.loads((source / "config.json").read_text()) | {"my_note": "kept"}
    (source / "config.json").write_text(json.dumps(config))
    (source / "chat_template.jinja").write_text("{{ messages }}")
    overrides = ("processor.image.size=30", "processor.tokenizer.added=<image>")
    assert imported(source, tmp_path / "w", *overrides) == 0
    assert exported(tmp_path / "w", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found["my_note"] == "kept" and found["vision_config"]["image_size"] == 30
    assert found["text_config"]["vocab_size"] == 62
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["crop_size"]["height"] == 30
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_tokens_to_ids("<image>") == 61
    again = Published(tmp_path / "out", "x")
    assert again.folder.described.image_size == (30, 30) and again.processor.tokenizer.image == 61


def test_a_large_model_is_sharded_and_another_dtype_is_rounded(folder, tmp_path, monkeypatch):
    assert imported(folder("gpt2"), tmp_path / "w") == 0
    monkeypatch.setattr(exporting, "SHARD_BYTES", 20_000)
    assert exported(tmp_path / "w", tmp_path / "out", "--dtype", "bfloat16") == 0
    assert (tmp_path / "out" / INDEX).is_file()
    exact, rounded = open_tensors(folder("gpt2"), "x"), open_tensors(tmp_path / "out", "x")
    assert exact.keys() == rounded.keys()
    for key, stored in rounded.items():
        np.testing.assert_array_equal(stored.map(), exact[key].map().astype(ml_dtypes.bfloat16))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_transformers_reads_texts_as_the_model_does(folder, tmp_path):
    """bos and eos of texts that are read: as of the folder (SigLIP: no bos), also in a tokenizer written anew."""
    for name in ("clip", "siglip"):
        assert imported(folder(name), tmp_path / f"{name}_w", "processor.tokenizer.added=<image>") == 0
        assert exported(tmp_path / f"{name}_w", tmp_path / f"{name}_out") == 0
        old, new = (transformers.AutoTokenizer.from_pretrained(f) for f in (folder(name), tmp_path / f"{name}_out"))
        text = "a photo of two red dogs"
        assert old(text)["input_ids"] == new(text)["input_ids"]
        assert (new(text)["input_ids"][0] == 1) == (name == "clip")


def test_a_run_that_began_with_no_folder_is_written_by_the_family_that_can_say_it(folder, tmp_path):
    assert imported(folder("clip_gelu"), tmp_path / "w") == 0
    shutil.rmtree(tmp_path / "w" / "origin")
    assert exported(tmp_path / "w", tmp_path / "out") == 0
    assert_same_tensors(folder("clip_gelu"), tmp_path / "out")
    old, new = (Published(path, "x") for path in (folder("clip_gelu"), tmp_path / "out"))
    assert old.model == new.model and old.settings["image"] == new.settings["image"]
    old, new = (transformers.AutoTokenizer.from_pretrained(f) for f in (folder("clip_gelu"), tmp_path / "out"))
    assert old("two red dogs")["input_ids"] == new("two red dogs")["input_ids"]


def test_what_no_family_can_say_is_an_error_that_names_the_setting():
    config = build(
        ModelConfig, {"patch_encoder": {"width": 32, "heads": 2, "depth": 1, "stem": "conv"}}, "config.model"
    )
    model = Multimodal(config=config, image_size=(32, 32))
    with pytest.raises(ConfigError) as error:
        exporting._said({}, model, (), ())
    said = str(error.value)
    assert said.startswith("no family can say what this model is:") and "\n  vit: " in said and "stem is 'conv'" in said


def test_a_folder_that_is_not_empty_is_left_alone(folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("")
    assert exported(tmp_path / "w", tmp_path / "out") == 2
    assert "is not empty" in capsys.readouterr().err
