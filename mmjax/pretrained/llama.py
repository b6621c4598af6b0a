"""Llama 2 and 3 (Touvron et al., 2023; Grattafiori et al., 2024), SmolLM2 among them, and Qwen 2 and 2.5."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmjax.errors import ConfigError
from mmjax.models.multimodal import Multimodal
from mmjax.pretrained.config_json import classes, parts
from mmjax.pretrained.family import Described
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

NAME = "llama"
MODEL_TYPES = ("llama", "qwen2")

SETTINGS = (
    *SIZES,
    Setting("num_key_value_heads", "kv_heads"),
    Setting("intermediate_size", "mlp_dim"),
    Setting("hidden_act", "activation", ACTIVATIONS),
    Setting("rms_norm_eps", "eps"),
    Setting("max_position_embeddings", "length"),
    Setting("tie_word_embeddings", "tie"),
)
OURS = {"memory": "prefix", "position": "rope", "norm": "rmsnorm", "gated": True}
BIASED = Setting("attention_bias", "attention_bias", {False: "none", True: "all"})
ROPE = {
    "default": (),
    "linear": (Setting("factor", "rope_factor"),),
    "llama3": (
        Setting("factor", "rope_factor"),
        Setting("low_freq_factor", "rope_low_factor"),
        Setting("high_freq_factor", "rope_high_factor"),
        Setting("original_max_position_embeddings", "rope_length"),
    ),
}


def layer(qkv: bool, out: bool, mlp: bool) -> Table:
    """One layer; which of its dense layers have a bias."""
    return (
        *norm("input_layernorm", "attention_norm", bias=False),
        *linear("self_attn.q_proj", "attention/query", bias=qkv),
        *linear("self_attn.k_proj", "attention/key", bias=qkv),
        *linear("self_attn.v_proj", "attention/value", bias=qkv),
        *linear("self_attn.o_proj", "attention/out", bias=out),
        *norm("post_attention_layernorm", "mlp_norm", bias=False),
        *linear("mlp.gate_proj", "mlp/gate", bias=mlp),
        *linear("mlp.up_proj", "mlp/up", bias=mlp),
        *linear("mlp.down_proj", "mlp/down", bias=mlp),
    )


def read_rope(config: Mapping[str, Any], where: str = WHERE) -> dict[str, Any]:
    """Base and scaling of the rotary positions, from `rope_parameters` (transformers fills it in from older keys)."""
    where, rope = f"{where}: rope_parameters", required(config, "rope_parameters", where)
    kind = rope.get("rope_type", "default")
    if kind not in ROPE:
        raise ConfigError(f"{where}.rope_type: found {kind!r}, can be read: {', '.join(map(repr, ROPE))}.")
    demand(rope, {"partial_rotary_factor": 1.0}, where)
    settings = read_settings((Setting("rope_theta", "rope_theta"), *ROPE[kind]), rope, where)
    return settings | ({} if kind == "default" else {"rope_scaling": kind})


def write_rope(part: Any) -> dict[str, Any]:
    """`rope_parameters` of a config of ours."""
    kind = "default" if part.rope_scaling == "none" else part.rope_scaling
    return {"rope_type": kind, **write_settings((Setting("rope_theta", "rope_theta"), *ROPE[kind]), part)}


def decoder_settings(config: Mapping[str, Any], where: str = WHERE) -> dict[str, Any]:
    """The language model. ConfigError where it is none of ours."""
    if config["model_type"] == "qwen2":
        kinds = sorted(set(config.get("layer_types") or ()) - {"full_attention"})
        if kinds:
            raise ConfigError(f"{where}: layer_types: found {', '.join(kinds)}, only full_attention can be read.")
        biases = {"attention_bias": "qkv"}
    else:
        biases = read_settings((BIASED,), config, where)
    model = read_settings(SETTINGS, config, where) | OURS | biases | read_rope(config, where)
    model["head_dim"] = config.get("head_dim") or model["width"] // model["heads"]
    model["bias"] = config.get("mlp_bias", False)
    return model


def decoder_table(model: Mapping[str, Any], prefix: str = "model.", head: str = "lm_head.weight") -> Table:
    """Names below prefix, and the head <-> below `decoder/`."""
    rows = layer(model["attention_bias"] in ("qkv", "all"), model["attention_bias"] == "all", model["bias"])
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
    model = decoder_settings(config)
    return Described(
        model={"decoder": model},
        tensors=decoder_table(model, prefix_of(keys, "model.", True)),
        aside={r".*\.rotary_emb\.inv_freq": "follows from rope_theta"},
        vocab_size=required(config, "vocab_size"),
        token_ids=ids(config, bos="bos_token_id", eos="eos_token_id", pad="pad_token_id"),
    )


def write_decoder(part: Any) -> dict[str, Any]:
    """What a config.json says of the language model, `model_type` included."""
    qwen = part.attention_bias == "qkv"
    biased = part.attention_bias == "all" or (not part.attention_bias and part.bias)
    return {
        "model_type": "qwen2" if qwen else "llama",
        **write_settings(SETTINGS, part),
        "head_dim": part.head_dim,
        "rope_parameters": write_rope(part),
        **({} if qwen else {"mlp_bias": part.bias, "attention_bias": biased}),
    }


def write(model: Multimodal, labels: Sequence[str] = (), aside: Collection[str] = ()) -> dict[str, Any]:
    (part,) = parts(model, "decoder")
    classes(model, "")
    settings = write_decoder(part)
    return {
        "architectures": ["Qwen2ForCausalLM" if settings["model_type"] == "qwen2" else "LlamaForCausalLM"],
        **settings,
        "vocab_size": model.tokens.vocab_size,
        "bos_token_id": model.tokens.bos,
        "eos_token_id": model.tokens.eos,
        "pad_token_id": model.tokens.pad,
    }
