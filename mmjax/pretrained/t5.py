"""T5 v1.0 (Raffel et al., 2020), v1.1 and Flan-T5: the encoder alone, or encoder and decoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmjax.errors import ConfigError
from mmjax.models.multimodal import Multimodal
from mmjax.pretrained.config_json import classes, parts
from mmjax.pretrained.family import Described
from mmjax.pretrained.settings import (
    ACTIVATIONS,
    WHERE,
    Setting,
    demand,
    ids,
    read_settings,
    required,
    write_settings,
)
from mmjax.pretrained.tables import Table, layers, linear, norm, same, under

NAME = "t5"
MODEL_TYPES = ("t5",)
ENCODER = "T5EncoderModel"

SETTINGS = (
    Setting("d_model", "width"),
    Setting("d_kv", "head_dim"),
    Setting("d_ff", "mlp_dim"),
    Setting("num_heads", "heads"),
    Setting("layer_norm_epsilon", "eps"),
    Setting("relative_attention_num_buckets", "relative_buckets"),
    Setting("relative_attention_max_distance", "relative_distance"),
)
OURS = {"position": "relative", "norm": "rmsnorm", "bias": False, "attention_scale": 1.0}
# One name of `feed_forward_proj` means another function than it says.
GATED_GELU = "gated-gelu"


def attention(theirs: str, ours: str) -> Table:
    return tuple(
        row
        for short, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out"))
        for row in linear(f"{theirs}.{short}", f"{ours}/{name}", bias=False)
    )


def stack(depth: int, gated: bool, crosses: bool) -> Table:
    """Names below `encoder.` or `decoder.` <-> below our `transformer/`."""
    last = f"layer.{2 if crosses else 1}"
    mlp = (("wi_0", "gate"), ("wi_1", "up")) if gated else (("wi", "up"),)
    rows = (
        *attention("layer.0.SelfAttention", "attention"),
        *norm("layer.0.layer_norm", "attention_norm", bias=False),
        *(attention("layer.1.EncDecAttention", "cross_attention") if crosses else ()),
        *(norm("layer.1.layer_norm", "cross_norm", bias=False) if crosses else ()),
        *(r for t, o in (*mlp, ("wo", "down")) for r in linear(f"{last}.DenseReluDense.{t}", f"mlp/{o}", bias=False)),
        *norm(f"{last}.layer_norm", "mlp_norm", bias=False),
    )  # fmt: skip
    return (
        *same("block.0.layer.0.SelfAttention.relative_attention_bias.weight", "transformer/relative_bias"),
        *layers(rows, depth, "block.{}.", "transformer"),
        *norm("final_layer_norm", "transformer/final_norm", bias=False),
    )


def read_mlp(config: Mapping[str, Any], where: str = WHERE) -> dict[str, Any]:
    proj = required(config, "feed_forward_proj", where)
    kind, _, name = proj.rpartition("-")
    name = "gelu_new" if proj == GATED_GELU else name
    if kind not in ("", "gated") or name not in ACTIVATIONS:
        raise ConfigError(f"{where}: feed_forward_proj: found '{proj}', expected an activation, or gated-ACTIVATION.")
    return {"gated": bool(kind), "activation": ACTIVATIONS[name]}


def write_mlp(part: Any) -> dict[str, Any]:
    name = ACTIVATIONS.get(part.activation, part.activation)
    if part.gated and name == "gelu":
        raise ConfigError(f"export: activation: found 'gelu' in a gated layer; '{GATED_GELU}' of T5 means gelu_tanh.")
    name = {"gelu_tanh": "gelu" if part.gated else "gelu_new"}.get(name, name)
    return {"feed_forward_proj": f"gated-{name}" if part.gated else name}


def read(config: Mapping[str, Any], keys: Collection[str] | None = None) -> Described:
    common = read_settings(SETTINGS, config) | OURS | read_mlp(config)
    depth, gated = required(config, "num_layers"), common["gated"]
    model: dict[str, Any] = {"text_encoder": common | {"depth": depth, "pool": "mean"}}
    tensors = under(stack(depth, gated, False), "encoder.", "text_encoder/")
    if keys is None:
        decodes = ENCODER not in (config.get("architectures") or ())
    else:
        decodes = any(key.startswith("decoder.") for key in keys)
    copies = ["encoder.embed_tokens.weight"]
    if decodes:
        scaled = required(config, "scale_decoder_outputs")
        # v1.0 has a tied head, v1.1 one of its own; config.json says it by the scale alone.
        tied = scaled or (keys is not None and "lm_head.weight" not in keys)
        below = required(config, "num_decoder_layers")
        model["decoder"] = common | {"depth": below, "tie": tied, "scale_output": scaled}
        model["share_embedding"] = True
        tensors += under(stack(below, gated, True), "decoder.", "decoder/")
        tensors += () if tied else same("lm_head.weight", "decoder/output")
        copies += ["decoder.embed_tokens.weight", *(["lm_head.weight"] if tied else [])]
    return Described(
        model=model,
        tensors=(*same("shared.weight", "text_encoder/embed/embedding", *copies), *tensors),
        aside={r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight": "never read"},
        vocab_size=required(config, "vocab_size"),
        token_ids=ids(config, eos="eos_token_id", pad="pad_token_id", start="decoder_start_token_id"),
    )


def write(model: Multimodal, labels: Sequence[str] = (), aside: Collection[str] = ()) -> dict[str, Any]:
    both = model.config.decoder is not None
    encoder, *rest = parts(model, "text_encoder", *(("decoder",) if both else ()))
    classes(model, "")
    demand({"scale_embedding": encoder.scale_embedding}, {"scale_embedding": False}, "export")
    written = {
        "architectures": ["T5ForConditionalGeneration" if both else ENCODER],
        "model_type": "t5",
        **write_settings(SETTINGS, encoder),
        **write_mlp(encoder),
        "num_layers": encoder.depth,
        "vocab_size": model.tokens.vocab_size,
        "eos_token_id": model.tokens.eos,
        "pad_token_id": model.tokens.pad,
    }
    for decoder in rest:
        written |= {
            "num_decoder_layers": decoder.depth,
            "decoder_start_token_id": model.tokens.pad,
            # The first is what older releases read.
            "tie_word_embeddings": decoder.scale_output,
            "scale_decoder_outputs": decoder.scale_output,
        }
    return written
