"""Picture and text settings of a folder are those that transformers would use."""

import json
import shutil

import numpy as np
import pytest
import transformers

from mmjax.errors import ConfigError
from mmjax.models.forward import Forward
from mmjax.models.multimodal import TokenIds
from mmjax.pretrained.processing import picture_settings
from mmjax.pretrained.source import Published

HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
EXPECTED = {
    "clip": (
        {
            "size": {"shortest_edge": 224},
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "resample": 3,
        },
        {"size": 224, "width": 0, "resize": "crop", "short_side": 0, "method": "bicubic"},
    ),
    "clip of 2021": (
        {"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3, "feature_extractor_type": "CLIP"},
        {"size": 224, "width": 0, "resize": "crop", "short_side": 0, "method": "bicubic"},
    ),
    "dinov2": (
        {
            "size": {"shortest_edge": 256},
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "resample": 3,
        },
        {"size": 224, "width": 0, "resize": "crop", "short_side": 256, "method": "bicubic"},
    ),
    "siglip": (
        {"size": {"height": 384, "width": 384}, "resample": 3},
        {"size": 384, "width": 0, "resize": "squash", "method": "bicubic"},
    ),
    "vit of 2021": (
        {"size": 224, "image_processor_type": "ViTFeatureExtractor"},
        {"size": 224, "width": 0, "resize": "squash", "method": "bilinear"},
    ),
    "not square": (
        {"size": {"height": 96, "width": 160}, "resample": 2},
        {"size": 96, "width": 160, "resize": "squash", "method": "bilinear"},
    ),
}


def with_pictures(folder, target, told, file="preprocessor_config.json"):
    copy = shutil.copytree(folder, target)
    (copy / "preprocessor_config.json").unlink()
    (copy / file).write_text(json.dumps(told))
    return Published(copy, "config.init.path").folder


@pytest.mark.parametrize("case", EXPECTED)
def test_pictures_are_set_as_the_folder_says(case, folder, tmp_path):
    told, settings = EXPECTED[case]
    found = picture_settings(with_pictures(folder("clip"), tmp_path / "f", told | HALF))
    assert found == settings | {"mean": HALF["image_mean"], "std": HALF["image_std"]}
    nested = with_pictures(folder("clip"), tmp_path / "g", {"image_processor": told | HALF}, "processor_config.json")
    assert picture_settings(nested) == found


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"do_resize": False}, "do_resize is False, expected True"),
        ({"do_pad": True}, "do_pad is True, expected False"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0, expected 1/255"),
        ({"size": {"shortest_edge": 224}}, "without a crop, so that pictures differ in size"),
        ({"size": {"height": 8}}, "expected a height and a width"),
    ],
)
def test_pictures_that_cannot_be_are_named(told, named, folder, tmp_path):
    with pytest.raises(ConfigError, match=named):
        picture_settings(with_pictures(folder("clip"), tmp_path / "f", {"size": 18, "resample": 3} | told))


def test_without_picture_settings_the_guess_is_said(folder, tmp_path, capsys):
    copy = shutil.copytree(folder("clip"), tmp_path / "f")
    (copy / "preprocessor_config.json").unlink()
    assert picture_settings(Published(copy, "config.init.path").folder) == {"size": 18, "width": 0}
    assert "is not there: pictures are squashed to 18 x 18" in capsys.readouterr().out


class Recorder:
    """A model that keeps what its text encoder is given."""

    def __init__(self, tokens):
        self.tokens = tokens

    def apply(self, variables, ids, mask, segments=None, *, method, **_):
        self.ids, self.mask = np.asarray(ids), np.asarray(mask if segments is None else segments > 0)
        return ids


@pytest.mark.parametrize("name", ["clip", "siglip", "bert"])
def test_the_text_encoder_reads_the_ids_of_transformers(name, folder):
    """With bos and eos or without, padded to the towers' length, cut with its eos: as AutoTokenizer does it."""
    from mmjax.assemble import token_ids

    source = Published(folder(name), "config.init.path")
    processor, texts = source.processor, ["a photo of two red dogs", "yes", "one two three " * 9]
    ids, mask = processor.encode(texts, processor.length)
    model = Recorder(token_ids(processor))
    Forward(model, {}, {"text": ids[:, None], "text_mask": mask[:, None]}, train=False).text()
    length = processor.length - (name == "siglip")
    if name != "bert":
        assert length == source.model["text_encoder"]["length"]
    theirs = transformers.AutoTokenizer.from_pretrained(folder(name))
    theirs = theirs([processor.cleaned(t) for t in texts], padding="max_length", truncation=True, max_length=length)
    np.testing.assert_array_equal(model.ids, theirs["input_ids"])
    np.testing.assert_array_equal(model.mask, np.array(theirs["attention_mask"]).astype(bool))
    assert (model.ids[0, 0] == 1) == (name != "siglip")


def test_siglips_texts_are_lower_case_and_without_punctuation_in_its_first_release(folder, tmp_path):
    assert Published(folder("clip"), "x").settings["clean"] == []
    copy = shutil.copytree(folder("siglip"), tmp_path / "f")
    for kind, steps in (
        ({"tokenizer_class": "SiglipTokenizer"}, ["lower", "no_punctuation"]),
        ({"tokenizer_class": "GemmaTokenizerFast"}, ["lower"]),
        ({"tokenizer_class": "GemmaTokenizer", "do_lower_case": False}, []),
    ):
        (copy / "tokenizer_config.json").write_text(json.dumps(kind))
        source = Published(copy, "x")
        assert source.settings["clean"] == steps
    (copy / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "SiglipTokenizer"}))
    assert Published(copy, "x").processor.cleaned("A red Dog, isn't it?") == "a red dog isnt it"


@pytest.mark.parametrize(
    ("tokens", "read"),
    [
        (TokenIds(30, 0, 1, 2), [1, 7, 2]),
        (TokenIds(30, 0, 1, 2, read_bos=-1), [7, 2]),
        (TokenIds(30, 0, 0, 2, read_bos=5), [5, 7, 2]),
        (TokenIds(30, 0, 1, 2, read_eos=False), [1, 7]),
        (TokenIds(30, 2, 2, 2, read_bos=-1, read_eos=False), [7]),
    ],
)
def test_packed_and_single_texts_are_read_alike(tokens, read):
    """bos may be the eos (GPT-2), or another token than what a decoder starts with (BLIP)."""
    model = Recorder(tokens)
    line = np.array([[tokens.bos, 7, tokens.eos, tokens.pad]])
    mask = np.array([[True, True, True, False]])
    Forward(model, {}, {"text": line[:, None], "text_mask": mask[:, None]}, train=False).text()
    assert list(model.ids[model.mask]) == read
    segments = np.where(mask, 1, 0)
    both = {"text": np.concatenate([line[:, :3], line], 1), "text_valid": np.ones((1, 2), bool)}
    both["text_segment"] = np.concatenate([segments[:, :3], 2 * segments], 1)
    Forward(model, {}, both, train=False).text()
    assert list(model.ids[model.mask]) == 2 * read
