"""The tokens that Hugging Face's `generate` writes with the same weights (tests/fixtures/make_generation.py): of a tiny
GPT-2, and of imported folders of GPT-2, Llama and BLIP.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.decoding import generate
from mmjax.generation_config import GenerationConfig
from mmjax.models.decoder import DecoderConfig
from mmjax.models.multimodal import ModelConfig, Multimodal, TokenIds
from mmjax.next_token import filtered
from mmjax.train_step import nested
from tests.pretrained.fixture_folders import load
from tests.pretrained.with_processor import FIXTURES

NAMES = {"min_new_tokens": "min_length", "no_repeat_ngram_size": "no_repeat_ngram", "max_new_tokens": "length"}


@functools.cache
def fixture():
    with np.load(Path(__file__).parent / "fixtures" / "generation.npz") as file:
        return dict(file)


CASES = sorted(name[5:] for name in fixture() if name.startswith("case/"))


@functools.cache
def gpt2():
    """The model of the fixture: GPT-2 is the decoder with these settings."""
    f = fixture()
    config = DecoderConfig(width=16, depth=2, heads=2, mlp_dim=64, eps=1e-5, memory="prefix", length=32)
    model = Multimodal(ModelConfig(decoder=config), tokens=TokenIds(vocab_size=40, pad=3, bos=1, eos=2))

    def norm(name):
        return {"scale": f[f"{name}.weight"], "bias": f[f"{name}.bias"]}

    def dense(kernel, bias):
        return {"kernel": kernel, "bias": bias}

    def block(i):
        name = f"transformer.h.{i}"
        qkv = zip(*(np.split(f[f"{name}.attn.c_attn.{x}"], 3, -1) for x in ("weight", "bias")), strict=True)
        parts = dict(zip(("query", "key", "value"), (dense(*x) for x in qkv), strict=True))
        mlp = {ours: dense(f[f"{name}.mlp.{its}.weight"], f[f"{name}.mlp.{its}.bias"])
               for ours, its in (("up", "c_fc"), ("down", "c_proj"))}  # fmt: skip
        out = dense(f[f"{name}.attn.c_proj.weight"], f[f"{name}.attn.c_proj.bias"])
        return {"attention_norm": norm(f"{name}.ln_1"), "attention": {**parts, "out": out},
                "mlp_norm": norm(f"{name}.ln_2"), "mlp": mlp}  # fmt: skip

    stack = {f"block_{i:02d}": block(i) for i in range(2)} | {"final_norm": norm("transformer.ln_f")}
    embed = {"embedding": f["transformer.wte.weight"], "position": f["transformer.wpe.weight"]}
    return model, jax.tree.map(jnp.asarray, {"decoder": {"embed": embed, "transformer": stack}})


def write(config, rows=slice(None), pad=0):
    """New tokens [B, L] for the fixture's prompts, with `pad` more columns of padding."""
    model, params = gpt2()
    ids = np.pad(fixture()["prompt"][rows], ((0, 0), (pad, 0)), constant_values=3)
    mask = np.pad(fixture()["mask"][rows].astype(bool), ((0, 0), (pad, 0)))

    @jax.jit
    def run(params, ids, mask):
        return generate(model, params, config=config, prefix_ids=ids, prefix_mask=mask)

    return np.asarray(run(params, jnp.asarray(ids), jnp.asarray(mask)))


def settings(name):
    its = json.loads(str(fixture()[f"settings/{name}"]))
    return GenerationConfig(**{NAMES.get(k, k): v for k, v in its.items() if k != "do_sample"})


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_hugging_face(name):
    np.testing.assert_array_equal(write(settings(name)), fixture()[f"case/{name}"])


def test_the_cases_hold_ends_of_every_kind():
    ends = [(fixture()[f"case/{name}"] == 2).any(1) for name in CASES]
    assert any(0 < e.sum() < len(e) for e in ends)
    assert len({fixture()[f"case/{name}"][:, :9].tobytes() for name in CASES}) >= 11


@pytest.mark.parametrize("name", ["greedy", "beam_all"])
def test_batch_size_and_padding_change_no_token(name):
    whole = fixture()[f"case/{name}"]
    np.testing.assert_array_equal(write(settings(name), slice(1, 3), pad=4), whole[1:3])
    np.testing.assert_array_equal(write(settings(name), slice(8, 9)), whole[8:9])


def test_draws_are_from_the_same_filtered_distribution():
    config = GenerationConfig(temperature=0.7, top_k=12, top_p=0.8)
    ours = jax.nn.softmax(filtered(jnp.asarray(fixture()["filter/logits"]), config))
    theirs = fixture()["filter/probabilities"]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    assert ((theirs > 0).sum(1) < 12).any() and (theirs > 0).sum() < 6 * 12


@functools.cache
def folders():
    with np.load(Path(__file__).parent / "fixtures" / "generation_folders.npz") as file:
        return dict(file)


FOLDERS = ("gpt2", "llama", "blip_captions")
FOLDER_CASES = sorted({n.split("/")[2] for n in folders() if "/case/" in n} - {"drawn"})


def of(folder, name):
    return folders()[f"{folder}/{name}"]


def begun(folder):
    """(model, parameters, prompt [B, P] and its mask, what is read) of a folder; captions begin with bos alone."""
    loaded = load(FIXTURES / folder)
    params = nested(loaded.params)
    if folder != "blip_captions":
        return loaded.model, params, jnp.asarray(of(folder, "prompt")), jnp.asarray(of(folder, "mask")), None
    memory = loaded.model.apply({"params": params}, of(folder, "image"), method="encode_image").tokens
    ids = jnp.full((len(memory.x), 1), loaded.model.tokens.bos)
    return loaded.model, params, ids, jnp.ones(ids.shape, bool), memory


def folder_settings(folder, case):
    its = json.loads(str(of(folder, f"settings/{case}")))
    return GenerationConfig(**{NAMES.get(k, k): v for k, v in its.items() if k != "do_sample"})


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("case", FOLDER_CASES)
def test_imported_folders_write_the_tokens_of_hugging_face(folder, case):
    wanted = of(folder, f"case/{case}")
    model, params, ids, mask, memory = begun(folder)

    @jax.jit
    def run(params, ids, mask, memory):
        return generate(
            model, params, memory, folder_settings(folder, case), length=wanted.shape[1], eos=int(of(folder, "end")),
            pad=0, prefix_ids=ids, prefix_mask=mask,
        )  # fmt: skip

    with jax.default_matmul_precision("highest"):
        np.testing.assert_array_equal(run(params, ids, mask, memory), wanted)


def test_folders_hold_texts_that_end_and_beams_that_differ():
    for folder in FOLDERS:
        cases = {case: of(folder, f"case/{case}") for case in FOLDER_CASES}
        ends = [(ids == of(folder, "end")).any(1).mean() for ids in cases.values()]
        assert max(ends) > 0 and min(ends) < 1, folder
        assert len({ids.tobytes() for ids in cases.values()}) >= 4, folder


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_step_draws_from_the_distribution_of_hugging_face(folder):
    """At every step of texts that Hugging Face drew: temperature, top-k and top-p leave the same probabilities."""
    drawn, theirs = of(folder, "case/drawn"), of(folder, "probabilities")
    config = folder_settings(folder, "drawn")
    model, params, ids, mask, memory = begun(folder)
    start, steps = ids.shape[1], theirs.shape[1]
    ids = jnp.concatenate([ids, drawn[:, : steps - 1]], 1)
    mask = jnp.concatenate([mask, jnp.ones((len(ids), steps - 1), bool)], 1)
    with jax.default_matmul_precision("highest"):
        logits = model.apply({"params": params}, ids, mask, memory, method="decode").logits[:, start - 1 :]
    ours = jax.nn.softmax(filtered(logits.reshape(-1, logits.shape[-1]), config)).reshape(logits.shape)
    before = np.cumsum(drawn == of(folder, "end"), 1) - (drawn == of(folder, "end"))
    going = before[:, :steps] == 0  # what comes after an end is nobody's
    np.testing.assert_allclose(np.asarray(ours)[going], theirs[going], rtol=0, atol=1e-5)
    assert going.sum() > 40 and 1 < (theirs[going] > 0).sum(-1).mean() < config.top_k
