"""Every family against torch: hidden states, pooled vectors, logits and greedy tokens on random weights of odd sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from mmjax.decoding import generate

from .fixture_folders import FOLDER, NAMES, OTHER_NAMES, TOKENS, expected, load, with_other_names

BOUND = 1e-4  # of the tensor's largest value, in float32


def outputs(model, params, inputs):
    """What the model gives for all inputs that are there, named as in expected.npz."""
    found = {}
    apply = functools.partial(model.apply, {"params": traverse_util.unflatten_dict(params, sep="/")})
    if "image" in inputs:
        image = apply(inputs["image"], method="encode_image")
        found |= {f"image_{k}": v for k, v in zip(image._fields, (image.tokens.x, *image[1:]), strict=True)}
    if "text" in inputs and model.config.text_encoder:
        text = apply(inputs["text"], inputs["text_mask"], method="encode_text")
        found |= {f"text_{k}": v for k, v in zip(text._fields, (text.tokens.x, *text[1:]), strict=True)}
    if "text" in inputs and model.config.decoder:
        decoded = apply(inputs["text"], inputs["text_mask"], method="decode")
        found |= {"decoder_hidden": decoded.hidden, "decoder_logits": decoded.logits}
    if model.contrastive and "image" in inputs and "text" in inputs:
        scale, bias = apply(method="contrastive_scale")
        cosines = found["image_embedding"] @ found["text_embedding"].T
        found["contrastive_logits"] = cosines * jnp.exp(scale) + bias
    for head in model.heads:
        found[f"head_{head.name}"] = apply(head.name, found[f"{head.source}_pooled"], method="head")
    return found


def compare(loaded, inputs, truths, prefix=""):
    """{output: largest relative difference}; every truth must have its counterpart. Padding is nobody's output."""
    with jax.default_matmul_precision("highest"):
        found = jax.jit(functools.partial(outputs, loaded.model))(loaded.params, inputs)
    differences = {}
    for name, truth in truths.items():
        ours = np.asarray(found[name.removeprefix(prefix)])
        assert ours.shape == truth.shape, name
        config = loaded.model.config.text_encoder
        if name in ("text_tokens", "decoder_hidden", "decoder_logits") and not (config and config.read_padding):
            ours, truth = (np.where(inputs["text_mask"][..., None], v, 0) for v in (ours, truth))
        differences[name] = float(np.abs(ours - truth).max() / np.abs(truth).max())
    return differences


@pytest.fixture(scope="module")
def table():
    """{(folder, output): difference}, printed at the end (pytest -s)."""
    rows = {}
    yield rows
    print("\n| folder | output | largest relative difference |\n|---|---|---|")
    for (name, output), difference in sorted(rows.items()):
        print(f"| {name} | {output} | {difference:.1e} |")


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_torch(name, table):
    inputs, truths = expected(name)
    truths = {k: v for k, v in truths.items() if k != "greedy" and not k.startswith("other_")}
    inputs.pop("other_image", None)
    differences = compare(load(FOLDER / name), inputs, truths)
    table.update({(name, output): difference for output, difference in differences.items()})
    assert max(differences.values()) <= BOUND, differences


@pytest.mark.parametrize("name", [n for n in NAMES if "other_image" in np.load(FOLDER / n / "expected.npz")])
def test_outputs_with_resized_positions_are_those_of_torch(name, table):
    inputs, truths = expected(name)
    other = inputs["other_image"]
    truths = {k: v for k, v in truths.items() if k.startswith("other_")}
    differences = compare(load(FOLDER / name, other.shape[1:3]), {"image": other}, truths, "other_")
    table.update({(name, output): difference for output, difference in differences.items()})
    assert max(differences.values()) <= BOUND, differences


@pytest.mark.parametrize("name", [n for n in NAMES if "out_greedy" in np.load(FOLDER / n / "expected.npz")])
def test_greedy_tokens_of_padded_prompts_are_those_of_torch_one_by_one(name):
    inputs, truths = expected(name)
    loaded = load(FOLDER / name)

    def write(params, ids, mask):
        params = traverse_util.unflatten_dict(params, sep="/")
        return generate(loaded.model, params, length=TOKENS, eos=-1, prefix_ids=ids, prefix_mask=mask)

    with jax.default_matmul_precision("highest"):
        ours = jax.jit(write)(loaded.params, inputs["text"], inputs["text_mask"])
    np.testing.assert_array_equal(ours, truths["greedy"])


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_names_of_other_releases_give_the_same_parameters(name, tmp_path):
    one, other = load(FOLDER / name).params, load(with_other_names(name, tmp_path / name)).params
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key], err_msg=key)
