"""Every family against torch: hidden states, pooled vectors, logits, greedy tokens; random weights of odd sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from mmjax.decoding import generate

from .fixture_folders import FOLDER, NAMES, OTHER_NAMES, TOKENS, expected, load, with_other_names

BOUND = 1e-4  # of the tensor's largest value, in float32


def read(model, apply, inputs):
    """Everything that is read: ({output: array}, what the decoder reads, or None)."""
    found, memory = {}, None
    if "frames" in inputs:
        memory = apply(inputs["frames"], method="encode_sound")
        found["sound_tokens"] = memory.x
    for name in ("text", "image"):
        if name in inputs and getattr(model.config, {"text": "text_encoder", "image": "patch_encoder"}[name]):
            mask = (inputs["text_mask"],) if name == "text" else ()
            output = apply(inputs[name], *mask, method=f"encode_{name}")
            memory = output.tokens
            found |= {f"{name}_{k}": v for k, v in zip(output._fields, (memory.x, *output[1:]), strict=True)}
            if name == "text":
                text = memory
    if model.config.fusion.name != "none":
        fused = apply(text, memory, method="fuse")
        memory = fused.tokens
        found |= {"fused_tokens": memory.x, "fused_pooled": fused.pooled}
    return found, memory


def prompt(model, inputs):
    """(ids, mask) of what the decoder writes, and whether pictures have their places in it."""
    name = "decoder_text" if "decoder_text" in inputs else "text"
    return inputs[name], inputs[f"{name}_mask"], "image" in inputs and model.config.decoder.memory == "prefix"


def applied(model, params):
    return functools.partial(model.apply, {"params": traverse_util.unflatten_dict(params, sep="/")})


def outputs(model, params, inputs):
    """What the model gives for all inputs that are there, named as in expected.npz."""
    apply = applied(model, params)
    found, memory = read(model, apply, inputs)
    if model.config.decoder:
        ids, mask, placed = prompt(model, inputs)
        prefix = inputs.get("decoder_prefix")
        decoded = apply(ids, mask, memory, prefix=prefix, placed=placed, method="decode")
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
    text = loaded.model.config.text_encoder
    masks = {}
    if "text_mask" in inputs and text and not text.read_padding:
        masks = dict.fromkeys(("text_tokens", "fused_tokens"), inputs["text_mask"])
    if loaded.model.config.decoder:
        masks |= dict.fromkeys(("decoder_hidden", "decoder_logits"), prompt(loaded.model, inputs)[1])
    differences = {}
    for name, truth in truths.items():
        ours = np.asarray(found[name.removeprefix(prefix)])
        assert ours.shape == truth.shape, name
        if name in masks:
            ours, truth = (np.where(masks[name][..., None], v, 0) for v in (ours, truth))
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

    def write(params, inputs):
        memory = read(loaded.model, applied(loaded.model, params), inputs)[1]
        ids, mask, placed = prompt(loaded.model, inputs)
        return generate(
            loaded.model,
            traverse_util.unflatten_dict(params, sep="/"),
            memory,
            length=TOKENS,
            eos=-1,
            prefix_ids=ids,
            prefix_mask=mask,
            prefix_full="decoder_prefix" in inputs,
            placed=placed,
        )

    with jax.default_matmul_precision("highest"):
        ours = jax.jit(write)(loaded.params, inputs)
    np.testing.assert_array_equal(ours, truths["greedy"])


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_names_of_other_releases_give_the_same_parameters(name, tmp_path):
    one, other = load(FOLDER / name).params, load(with_other_names(name, tmp_path / name)).params
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key], err_msg=key)
