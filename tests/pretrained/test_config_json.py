"""Exports: the same bits in the same tensors, and a config.json that says all, or an error that names what is lost."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from mmjax.config import build
from mmjax.errors import ConfigError
from mmjax.models.multimodal import HeadSpec, ModelConfig, Multimodal, TokenIds
from mmjax.pretrained import bert, clip, dinov2, gpt2, llama, siglip, vit
from mmjax.pretrained.config_json import describe_export, label_names, labels_of
from mmjax.pretrained.tensor_files import open_tensors

from .fixture_folders import FOLDER, NAMES, export, in_dtype, load

SMALL = {"width": 32, "depth": 2, "heads": 2, "mlp_dim": 64}


@pytest.mark.parametrize("name", NAMES)
def test_an_export_is_the_folder_that_was_imported(name, tmp_path):
    loaded = load(FOLDER / name)
    exported = export(loaded, tmp_path / name)
    before, after = open_tensors(FOLDER / name, "before"), open_tensors(exported, "after")
    used = {(k if k in before else _bare(k)): stored for k, stored in after.items()}
    assert used.keys() == before.keys()
    for key, stored in before.items():
        assert used[key].shape == stored.shape, key
        np.testing.assert_array_equal(used[key].map(), stored.map(), err_msg=key)
    again = load(exported)
    assert again.model == loaded.model and again.folder.described.labels == loaded.folder.described.labels
    assert again.params.keys() == loaded.params.keys()
    for key, value in loaded.params.items():
        np.testing.assert_array_equal(again.params[key], value, err_msg=key)


def _bare(key: str) -> str:
    """Without the prefix that hub files of towers have, and `save_pretrained` of today leaves out."""
    return key.replace("vision_model.", "").replace("text_model.", "")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["clip", "gpt2", "llama"])
def test_half_precision_is_read_to_the_bit(name, dtype, tmp_path):
    loaded, half = load(FOLDER / name), load(in_dtype(name, tmp_path / name, dtype))
    for key, value in loaded.params.items():
        rounded = np.asarray(value).astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(half.params[key], rounded, err_msg=key)


def picture_tower(**changes):
    return {
        "patch_encoder": {**SMALL, "patch": 8, "pool": "cls", "cls_position": True, "activation": "gelu", **changes}
    }


def model_of(settings, **keywords):
    config = build(ModelConfig, {"patch_encoder": None, **settings}, "config.model")
    return Multimodal(config, **{"image_size": (16, 16), "tokens": TokenIds(vocab_size=50)} | keywords)


@pytest.mark.parametrize(
    ("family", "settings", "keywords"),
    [
        (vit, picture_tower(), {}),
        (vit, picture_tower(pooler="tanh"), {"image_size": (16, 32)}),
        (vit, picture_tower(), {"heads": (HeadSpec("classification", 3, "image"),)}),
        (dinov2, picture_tower(layer_scale=True), {}),
        (dinov2, picture_tower(layer_scale=True, gated=True, activation="silu", mlp_dim=88), {}),
        (clip, picture_tower(norm_input=True, stem_bias=False), {}),
        (siglip, {"patch_encoder": {**SMALL, "patch": 8, "pool": "attention"}}, {}),
        (bert, {"text_encoder": {**SMALL, **bert.OURS, "token_types": 2, "activation": "gelu"}}, {}),
        (gpt2, {"decoder": {**SMALL, "memory": "prefix"}}, {}),
        (llama, {"decoder": {**SMALL, **llama.OURS, "bias": False, "activation": "silu"}}, {}),
        (llama, {"decoder": {**SMALL, **llama.OURS, "bias": False, "attention_bias": "qkv", "kv_heads": 1}}, {}),
    ],
)
def test_a_model_trained_from_scratch_is_said_whole(family, settings, keywords):
    model = model_of(settings, **keywords)
    config, described = describe_export(family, model)
    assert config["model_type"] in family.MODEL_TYPES
    assert dict(described.heads) == {h.name: (h.outputs, h.source) for h in model.heads}


@pytest.mark.parametrize(
    ("family", "settings", "keywords", "message"),
    [
        (vit, picture_tower(layer_scale=True), {}, "patch_encoder.layer_scale is True, and would be False"),
        (vit, {"patch_encoder": {**SMALL, "patch": 8, "pool": "mean"}}, {}, "patch_encoder.pool is 'mean'"),
        (vit, picture_tower(), {"heads": (HeadSpec("vqa", 3, "image"),)}, "no place for the head 'vqa'"),
        (
            vit,
            {**picture_tower(), "text_encoder": SMALL},
            {},
            "has patch_encoder, text_encoder; expected patch_encoder",
        ),
        (vit, {**picture_tower(), "fusion": {**SMALL, "name": "concat"}}, {}, "has patch_encoder, fusion"),
        (dinov2, picture_tower(layer_scale=True, mlp_dim=65), {}, "mlp_dim 65 is no whole multiple of width 32"),
        (clip, picture_tower(norm_input=True, stem_bias=False), {"image_size": (16, 32)}, "image_size: found 32"),
        (gpt2, {"decoder": {**SMALL, "memory": "prefix", "gated": True}}, {}, "decoder.gated is True"),
        (gpt2, {"decoder": SMALL}, {}, "decoder.memory is 'cross_attention', and would be 'prefix'"),
        (llama, {"decoder": {**SMALL, **llama.OURS, "attention_bias": "no_key"}}, {}, "attention_bias is 'no_key'"),
        (llama, {"decoder": {**SMALL, **llama.OURS, "norm_after": True, "bias": False}}, {}, "norm_after is True"),
    ],
)
def test_what_a_family_cannot_say_is_an_error_that_names_it(family, settings, keywords, message):
    with pytest.raises(ConfigError, match=message):
        describe_export(family, model_of(settings, **keywords))


def test_settings_of_the_run_alone_do_not_hinder_an_export():
    model = model_of(picture_tower(dropout=0.1, drop_path=0.2, patch_dropout=0.5, remat="full", scan=True))
    describe_export(vit, dataclasses.replace(model, mean=(0.1, 0.2, 0.3)))


def test_labels_keep_their_order_and_need_a_name_each():
    names = label_names(["dog", "cat"], 2)
    assert labels_of(names) == ("dog", "cat") and names["label2id"] == {"dog": 0, "cat": 1}
    assert labels_of(label_names((), 2)) == ("LABEL_0", "LABEL_1")
    with pytest.raises(ConfigError, match="1 different label names for 2 classes"):
        label_names(["dog", "dog"], 2)
    with pytest.raises(ConfigError, match="id2label: found the classes \\[0, 2\\]"):
        labels_of({"id2label": {"0": "a", "2": "b"}})
