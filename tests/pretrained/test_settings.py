"""config.json is read strictly: what a family does not know, or what contradicts itself, is an error that names it."""

import json
import shutil

import pytest

from mmjax.config import merge, nest
from mmjax.errors import ConfigError
from mmjax.pretrained import bert, clip, llama, vit
from mmjax.pretrained.config_json import completed
from mmjax.pretrained.folder import open_folder
from mmjax.pretrained.settings import ACTIVATIONS, Setting, as_size, pair, read_settings, write_settings

from .fixture_folders import FOLDER


def changed(name, target, changes):
    """A copy of a folder with other values in config.json."""
    shutil.copytree(FOLDER / name, target / name)
    file = target / name / "config.json"
    file.write_text(json.dumps(merge(json.loads(file.read_text()), nest(changes))))
    return target / name


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vit", {"hidden_act": "gelu_fast"}, "hidden_act: found 'gelu_fast', can be read: 'gelu'"),
        ("vit", {"num_channels": 1}, "num_channels: found 1, only 3 can be read"),
        ("vit", {"patch_size": [6, 3]}, "patch_size: found 6 x 3, only squares"),
        ("vit_pooler", {"pooler_act": "relu"}, "pooler_act: found 'relu', only 'tanh'"),
        ("vit_pooler", {"pooler_output_size": 8}, "pooler_output_size: found 8, only 30"),
        ("vit", {"id2label": {"9": "b"}}, "id2label: found the classes"),
        ("clip", {"text_config.hidden_act": "tanh"}, "config.json: text_config: hidden_act: found 'tanh'"),
        ("clip", {"vision_config.image_size": [18, 24]}, "image_size: found 18 x 24, only squares"),
        ("clip", {"text_config_dict": {"hidden_size": 99}}, "text_config.hidden_size: found 28 there, and 99 in"),
        ("siglip", {"vision_config.vision_use_head": False}, "vision_use_head: found False, only True"),
        ("siglip", {"text_config.projection_size": 24}, "vision_config: hidden_size: found 30, only 24"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type: found 'relative_key'"),
        ("bert", {"is_decoder": True}, "is_decoder: found True, only False"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: found True"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights: found False"),
        ("llama", {"rope_theta": 7.0}, "rope_theta: found 7.0 there, and 500.0 in rope_parameters"),
        ("llama", {"rope_scaling": {"factor": 2.0}}, "rope_scaling.factor: found 2.0 there, and 4.0 in rope_param"),
        ("llama", {"rope_parameters.type": "linear"}, "found type 'linear' and rope_type 'llama3'"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type: found 'dynamic', can be"),
        ("llama", {"rope_parameters.partial_rotary_factor": 0.5}, "partial_rotary_factor: found 0.5, only 1.0"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "layer_types: found sliding_attention"),
    ],
)
def test_what_is_not_known_or_contradicts_names_file_and_key(name, changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as raised:
        open_folder(changed(name, tmp_path, changes), "config.init.path")
    assert str(raised.value).startswith("config.init.path: ") and f"{name}" in str(raised.value)


def test_older_spellings_of_rope_are_the_same_model(tmp_path):
    folder = changed("llama", tmp_path, {})
    raw = json.loads((folder / "config.json").read_text())
    rope = raw.pop("rope_parameters")
    raw |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": {"type": rope.pop("rope_type"), **rope}}
    (folder / "config.json").write_text(json.dumps(raw))
    described = open_folder(folder, "test").described
    assert described == open_folder(FOLDER / "llama", "test").described
    decoder = described.model["decoder"]
    assert (decoder["rope_theta"], decoder["rope_scaling"], decoder["rope_factor"]) == (500.0, "llama3", 4.0)


@pytest.mark.parametrize("eos", [[59, 60], None])
def test_an_eos_that_config_json_does_not_settle_is_left_to_the_tokenizer(eos):
    config = completed({**json.loads((FOLDER / "llama" / "config.json").read_text()), "eos_token_id": eos})
    assert llama.read(config).token_ids == {"bos": 1, "pad": 0}


def test_the_eos_of_old_clip_folders_means_the_highest_id():
    old, new = (
        clip.read(completed(json.loads((FOLDER / name / "config.json").read_text()))) for name in ("clip", "clip_gelu")
    )
    assert old.model["text_encoder"]["pool"] == "highest_id" and not old.token_ids
    assert new.model["text_encoder"]["pool"] == "eos" and new.token_ids["eos"] == 59


def test_optional_parts_are_those_of_the_files():
    config = completed(json.loads((FOLDER / "bert" / "config.json").read_text()))
    assert bert.read(config, {"pooler.dense.weight"}).model["text_encoder"]["pooler"] == "tanh"
    assert bert.read(config, {"bert.embeddings.word_embeddings.weight"}).model["text_encoder"]["pooler"] == "none"
    config = completed(json.loads((FOLDER / "vit" / "config.json").read_text()))
    described = vit.read(config, {"vit.pooler.dense.weight", "classifier.weight"})
    assert described.model["patch_encoder"]["pooler"] == "none" and described.heads == {"classification": (7, "image")}


def test_every_activation_is_written_by_a_name_that_is_read_as_the_same():
    table = (Setting("hidden_act", "activation", ACTIVATIONS),)
    for ours in set(ACTIVATIONS.values()):
        part = type("Part", (), {"activation": ours})
        assert read_settings(table, write_settings(table, part)) == {"activation": ours}


@pytest.mark.parametrize(("said", "size"), [(224, (224, 224)), ([18, 30], (18, 30))])
def test_picture_sizes_are_a_side_or_two(said, size):
    assert pair({"image_size": said}, "image_size") == size and as_size(size) == said


def test_a_value_that_is_missing_is_named():
    with pytest.raises(ConfigError, match="config.json: hidden_size: missing"):
        read_settings((Setting("hidden_size", "width"),), {"hidden_size": None})
