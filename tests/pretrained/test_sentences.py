"""Folders of sentence-transformers: BERT whose tokens are pooled as `1_Pooling` says."""

import json
import shutil

import jax
import numpy as np
import pytest

from mmjax import cli
from mmjax.errors import ConfigError
from mmjax.pretrained.source import Published
from mmjax.pretrained.tensor_files import open_tensors
from mmjax.train_step import nested
from mmjax.trained import open_trained
from tests.pretrained.test_importing import imported


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def sentences(folder, tmp_path):
    """(kind) -> the tiny BERT with such a pooling."""

    def make(**modes):
        made = shutil.copytree(folder("bert"), tmp_path / "sentences")
        (made / "1_Pooling").mkdir()
        said = {"word_embedding_dimension": 24, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}
        (made / "1_Pooling" / "config.json").write_text(json.dumps(said | modes))
        (made / "modules.json").write_text("[]")
        return made

    return make


def test_the_vector_is_the_mean_of_the_tokens_and_all_comes_out_again(sentences, tmp_path):
    made = sentences(pooling_mode_mean_tokens=True)
    assert imported(made, tmp_path / "w") == 0
    trained = open_trained(tmp_path / "w", "latest", {})
    ids = np.arange(3, 15).reshape(2, 6)
    mask = np.arange(6) < np.array([[6], [4]])
    text = jax.jit(
        lambda p: trained.model.apply({"params": p}, ids, mask, method="encode_text"),
    )(nested(trained.params))
    tokens = np.asarray(text.tokens.x, np.float64)
    want = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    np.testing.assert_allclose(text.pooled, want, rtol=0, atol=1e-5)
    assert cli.main(["export", "--workdir", str(tmp_path / "w"), "--to", "hf", str(tmp_path / "out")]) == 0
    one, other = open_tensors(made, "x"), open_tensors(tmp_path / "out", "x")
    assert one.keys() == other.keys() and any("pooler" in key for key in one)
    for key in one:
        np.testing.assert_array_equal(one[key].map(), other[key].map(), err_msg=key)
    again = Published(tmp_path / "out", "x")
    assert again.model["text_encoder"]["pool"] == "mean" and again.model["text_encoder"]["pooler"] == "none"
    for name in ("1_Pooling/config.json", "modules.json"):
        assert (tmp_path / "out" / name).read_text() == (made / name).read_text()


def test_the_first_token_may_be_the_vector_without_the_pooler(sentences):
    model = Published(sentences(pooling_mode_cls_token=True), "x").model["text_encoder"]
    assert (model["pool"], model["pooler"]) == ("cls", "none")


@pytest.mark.parametrize("modes", [{}, {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}])
def test_another_pooling_is_an_error(modes, sentences):
    with pytest.raises(ConfigError, match="1_Pooling/config.json' pools by .*; expected one of pooling_mode_mean"):
        Published(sentences(**modes), "x")


def test_a_layer_after_the_pooling_is_an_error(sentences):
    made = sentences(pooling_mode_mean_tokens=True)
    (made / "2_Dense").mkdir()
    with pytest.raises(ConfigError, match="2_Dense' is a layer after the pooling"):
        Published(made, "x")
