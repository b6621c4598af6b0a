"""Gemma (Gemma Team, 2024a) and Gemma 2 (2024b)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmjax.errors import ConfigError
from mmjax.models.multimodal import Multimodal
from mmjax.pretrained.config_json import classes, parts
from mmjax.pretrained.family import Described
from mmjax.pretrained.llama import read_rope, write_rope
from mmjax.pretrained.settings import (
    ACTIVATIONS,
    SIZES,
    WHERE,
    Setting,
    demand,
    ids,
    read_settings,
    required,
    write_settings,
)
from mmjax.pretrained.tables import Table, layers, linear, norm, prefix_of, same, under

NAME = "gemma"
MODEL_TYPES = ("gemma", "gemma2")

SETTINGS = (
    *SIZES,
    Setting("num_key_value_heads", "kv_heads"),
    Setting("head_dim", "head_dim"),
    Setting("intermediate_size", "mlp_dim"),
    Setting("rms_norm_eps", "eps"),
    Setting("max_position_embeddings", "length"),
    Setting("tie_word_embeddings", "tie"),
    Setting("attention_bias", "attention_bias", {False: "none", True: "all"}),
)
ACTIVATION = {
    "gemma": Setting("hidden_act", "activation", ACTIVATIONS),
    "gemma2": Setting("hidden_activation", "activation", ACTIVATIONS),
}
OURS = {
    "memory": "prefix",
    "position": "rope",
    "norm": "rmsnorm_offset",
    "gated": True,
    "bias": False,
    "scale_embedding": True,
}


def decoder_settings(config: Mapping[str, Any], where: str = WHERE) -> dict[str, Any]:
    """The language model. ConfigError where it is none of ours."""
    kind = config["model_type"]
    model = read_settings((*SETTINGS, ACTIVATION[kind]), config, where) | OURS | read_rope(config, where)
    if kind == "gemma":
        return model
    wanted = ["full_attention" if i % 2 else "sliding_attention" for i in range(model["depth"])]
    if required(config, "layer_types", where) != wanted:
        raise ConfigError(f"{where}: layer_types: expected sliding_attention and full_attention in turn.")
    scalar = required(config, "query_pre_attn_scalar", where)
    return model | {
        "norm_after": True,
        "window": config["sliding_window"] or 0,
        "attention_softcap": config["attn_logit_softcapping"] or 0.0,
        "logit_softcap": config["final_logit_softcapping"] or 0.0,
        "attention_scale": 0.0 if scalar == model["head_dim"] else scalar**-0.5,
    }


def decoder_table(model: Mapping[str, Any], prefix: str, head: str) -> Table:
    """Names below prefix, and the head <-> below `decoder/`."""
    biased = model["attention_bias"] == "all"
    second = "mlp_norm" if not model.get("norm_after") else "attention_out_norm"
    rows = (
        *norm("input_layernorm", "attention_norm", bias=False),
        *linear("self_attn.q_proj", "attention/query", bias=biased),
        *linear("self_attn.k_proj", "attention/key", bias=biased),
        *linear("self_attn.v_proj", "attention/value", bias=biased),
        *linear("self_attn.o_proj", "attention/out", bias=biased),
        *norm("post_attention_layernorm", second, bias=False),
        *linear("mlp.gate_proj", "mlp/gate", bias=False),
        *linear("mlp.up_proj", "mlp/up", bias=False),
        *linear("mlp.down_proj", "mlp/down", bias=False),
    )
    if model.get("norm_after"):
        rows += norm("pre_feedforward_layernorm", "mlp_norm", bias=False)
        rows += norm("post_feedforward_layernorm", "mlp_out_norm", bias=False)
    tied = (head,) if model["tie"] else ()
    body = (
        *layers(rows, model["depth"], "layers.{}.", "transformer"),
        *norm("norm", "transformer/final_norm", bias=False),
    )
    return (
        *same(f"{prefix}embed_tokens.weight", "decoder/embed/embedding", *tied),
        *under(body, prefix, "decoder/"),
        *(() if tied else same(head, "decoder/output")),
    )


def read(config: Mapping[str, Any], keys: Collection[str] | None = None) -> Described:
    if config.get("use_bidirectional_attention"):
        raise ConfigError(f"{WHERE}: use_bidirectional_attention: found true, only causal attention can be read.")
    model = decoder_settings(config)
    return Described(
        model={"decoder": model},
        tensors=decoder_table(model, prefix_of(keys, "model.", True), "lm_head.weight"),
        aside={r".*\.rotary_emb\.inv_freq": "follows from rope_theta"},
        vocab_size=required(config, "vocab_size"),
        token_ids=ids(config, bos="bos_token_id", eos="eos_token_id", pad="pad_token_id"),
    )


def write_decoder(model: Multimodal, part: Any) -> dict[str, Any]:
    """What a config.json says of the language model, `model_type` and vocabulary included."""
    kind = "gemma2" if part.norm_after else "gemma"
    demand({"bias": part.bias}, {"bias": False}, "export")
    written = {
        "model_type": kind,
        **write_settings((*SETTINGS, ACTIVATION[kind]), part),
        "rope_parameters": write_rope(part),
        "vocab_size": model.tokens.vocab_size,
        "bos_token_id": model.tokens.bos,
        "eos_token_id": model.tokens.eos,
        "pad_token_id": model.tokens.pad,
    }
    if kind == "gemma2":
        written |= {
            "sliding_window": part.window or None,
            "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(part.depth)],
            "attn_logit_softcapping": part.attention_softcap or None,
            "final_logit_softcapping": part.logit_softcap or None,
            "query_pre_attn_scalar": round(part.attention_scale**-2) if part.attention_scale else part.head_dim,
        }
    return written


def write(model: Multimodal, labels: Sequence[str] = (), aside: Collection[str] = ()) -> dict[str, Any]:
    (part,) = parts(model, "decoder")
    classes(model, "")
    written = write_decoder(model, part)
    name = "Gemma2" if written["model_type"] == "gemma2" else "Gemma"
    return {"architectures": [f"{name}ForCausalLM"], **written}
