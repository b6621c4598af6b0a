"""Tables of tensors: prefixes and older names multiply, every parameter of a family's model stands in one row."""

import jax
import pytest

from mmjax.models.multimodal import initialise
from mmjax.pretrained.layouts import LINEAR, SAME
from mmjax.pretrained.tables import layers, linear, norm, prefix_of, under
from mmjax.train_step import flat_names

from .fixture_folders import FOLDER, NAMES, load


def test_rows_of_a_layer_are_numbered_and_keep_their_older_names():
    table = layers(linear("fc", "mlp/up", "dense"), 2, "encoder.{}.", "transformer", "layers.{}.")
    weight, bias = table[2:]
    assert weight.theirs == "encoder.1.fc.weight" and weight.ours == ("transformer/block_01/mlp/up/kernel",)
    assert weight.also == ("encoder.1.dense.weight", "layers.1.fc.weight", "layers.1.dense.weight")
    assert weight.layout is LINEAR and bias.layout is SAME and bias.ours == ("transformer/block_01/mlp/up/bias",)
    assert [t.theirs for t in under(norm("ln", "norm", bias=False), "vit.", "tower/")] == ["vit.ln.weight"]


@pytest.mark.parametrize(("keys", "written", "prefix"), [
    ({"vit.a"}, False, "vit."), ({"a"}, True, ""), (None, True, "vit."), (None, False, ""),
])  # fmt: skip
def test_a_prefix_is_that_of_the_files_or_of_the_export(keys, written, prefix):
    assert prefix_of(keys, "vit.", written) == prefix


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_one_row_and_every_key_one_owner(name):
    loaded = load(FOLDER / name)
    tensors = loaded.folder.described.tensors
    ours = [parameter for tensor in tensors for parameter in tensor.ours]
    made = flat_names(jax.eval_shape(lambda key: initialise(loaded.model, key), jax.random.key(0)))
    fresh = {"contrastive_log_scale"} if name == "blip_matches" else set()  # BLIP's files have no place for it
    assert sorted(ours) == sorted(made.keys() - fresh) and fresh <= made.keys()
    keys = [key for tensor in tensors for key in (tensor.theirs, *tensor.also)]
    assert len(keys) == len(set(keys))
