"""GPT-2 (Radford et al., 2019)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmjax.models.multimodal import Multimodal
from mmjax.pretrained.config_json import classes, parts
from mmjax.pretrained.family import Described, Tensor
from mmjax.pretrained.layouts import CONV1D, JOINED, SAME
from mmjax.pretrained.settings import ACTIVATIONS, Setting, demand, ids, read_settings, required, write_settings
from mmjax.pretrained.tables import layers, linear, norm, prefix_of, same, under

NAME = "gpt2"
MODEL_TYPES = ("gpt2",)

SETTINGS = (
    Setting("n_embd", "width"),
    Setting("n_layer", "depth"),
    Setting("n_head", "heads"),
    Setting("n_positions", "length"),
    Setting("activation_function", "activation", ACTIVATIONS),
    Setting("layer_norm_epsilon", "eps"),
    Setting("tie_word_embeddings", "tie"),
)
OURS = {"memory": "prefix", "position": "learned"}

QKV = ("attention/query", "attention/key", "attention/value")
# Its dense layers are stored [in, out], as ours are.
LAYER = (
    *norm("ln_1", "attention_norm"),
    Tensor("attn.c_attn.weight", tuple(f"{name}/kernel" for name in QKV), CONV1D),
    Tensor("attn.c_attn.bias", tuple(f"{name}/bias" for name in QKV), JOINED),
    *linear("attn.c_proj", "attention/out", layout=SAME),
    *norm("ln_2", "mlp_norm"),
    *linear("mlp.c_fc", "mlp/up", layout=SAME),
    *linear("mlp.c_proj", "mlp/down", layout=SAME),
)


def read(config: Mapping[str, Any], keys: Collection[str] | None = None) -> Described:
    demand(config, {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False})
    model = read_settings(SETTINGS, config) | OURS
    model["mlp_dim"] = config.get("n_inner") or 4 * model["width"]
    prefix = prefix_of(keys, "transformer.", True)
    body = (
        *same("wpe.weight", "embed/position"),
        *layers(LAYER, model["depth"], "h.{}.", "transformer"),
        *norm("ln_f", "transformer/final_norm"),
    )
    tied = ("lm_head.weight",) if model["tie"] else ()
    return Described(
        model={"decoder": model},
        tensors=(
            *same(f"{prefix}wte.weight", "decoder/embed/embedding", *tied),
            *under(body, prefix, "decoder/"),
            *(() if tied else same("lm_head.weight", "decoder/output")),
        ),
        aside={r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)": "the causal mask"},
        vocab_size=required(config, "vocab_size"),
        token_ids=ids(config, bos="bos_token_id", eos="eos_token_id", pad="pad_token_id"),
    )


def write(model: Multimodal, labels: Sequence[str] = (), aside: Collection[str] = ()) -> dict[str, Any]:
    (part,) = parts(model, "decoder")
    classes(model, "")
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **write_settings(SETTINGS, part),
        "n_inner": part.mlp_dim,
        "vocab_size": model.tokens.vocab_size,
        "bos_token_id": model.tokens.bos,
        "eos_token_id": model.tokens.eos,
        "pad_token_id": model.tokens.pad,
    }
