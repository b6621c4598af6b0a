"""Every key of a folder is used or set aside, every parameter is found; what is wrong is named."""

import json
import shutil

import numpy as np
import pytest

from mmjax.errors import ConfigError
from mmjax.pretrained.folder import open_folder
from mmjax.pretrained.tensor_files import ToWrite, open_tensors, write_tensors
from mmjax.pretrained.weights import Weights
from tests.pretrained.with_processor import FIXTURES


def rewritten(source, target, change):
    """A copy of a fixture whose {key: array} went through `change`."""
    target.mkdir(parents=True)
    shutil.copy(FIXTURES / source / "config.json", target)
    arrays = change({key: np.array(t.map()) for key, t in open_tensors(FIXTURES / source, "x").items()})
    write_tensors(target, [ToWrite(k, a.dtype, a.shape, lambda a=a: a) for k, a in arrays.items()])
    return target


def test_a_renamed_key_is_missing_and_unused(tmp_path):
    key = "vision_model.encoder.layers.1.mlp.fc1.weight"
    folder = rewritten(
        "clip", tmp_path / "f", lambda a: {k.replace("1.mlp.fc1.w", "1.mlp.fcl.w"): v for k, v in a.items()}
    )
    with pytest.raises(ConfigError) as error:
        open_folder(folder, "config.init.path")
    assert f"no tensor '{key}' (for patch_encoder/transformer/block_01/mlp/up/kernel)" in str(error.value)
    assert "Did you mean" in str(error.value) and "Nothing uses" in str(error.value)
    assert "text_model.encoder.layers.1.mlp.fcl.weight" in str(error.value)


def test_an_added_key_is_unused(tmp_path):
    folder = rewritten("llama", tmp_path / "f", lambda a: {**a, "model.surprise": np.zeros(3, np.float32)})
    with pytest.raises(ConfigError, match="Nothing uses 'model.surprise'"):
        open_folder(folder, "config.init.path")


def test_a_shape_that_is_off_is_named_with_both(tmp_path):
    key = "model.layers.0.mlp.up_proj.weight"
    folder = rewritten("llama", tmp_path / "f", lambda a: {**a, key: a[key][:-1]})
    found = open_tensors(folder, "x")[key].shape
    with pytest.raises(ConfigError) as error:
        Weights(open_folder(folder, "config.init.path"))
    whole = [found[0] + 1, found[1]]
    assert f"'{key}' of '{folder}/model.safetensors' is {list(found)}, expected {whole} by config.json" in str(
        error.value
    )


def test_a_tied_copy_must_be_equal(tmp_path):
    import jax

    def tied(different):
        return lambda a: {**a, "lm_head.weight": next(v for k, v in a.items() if k.endswith("wte.weight")) + different}

    mesh = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for different in (0, 1):
        weights = Weights(
            open_folder(rewritten("gpt2", tmp_path / str(different), tied(different)), "config.init.path")
        )
        name = "decoder/embed/embedding"
        wanted = {name: jax.ShapeDtypeStruct(weights.shapes[name], np.float32, sharding=mesh)}
        if not different:
            assert weights.read(wanted).keys() == wanted.keys()
            continue
        with pytest.raises(
            ConfigError, match="wte.weight' and 'lm_head.weight' of .* are one parameter here, but differ"
        ):
            weights.read(wanted)


def test_a_model_type_without_a_family_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clap"}))
    with pytest.raises(ConfigError, match="model_type 'clap' is of no family that can be read. Did you mean 'clip'"):
        open_folder(tmp_path, "config.init.path")


def test_what_is_no_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no file '.*config.json'. Expected a Hugging Face folder"):
        open_folder(tmp_path, "config.init.path")
