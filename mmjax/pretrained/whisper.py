"""Whisper (Radford et al., 2022): the encoder. The decoder's tensors are carried along."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmjax.errors import ConfigError
from mmjax.models.multimodal import Multimodal
from mmjax.pretrained.config_json import classes, parts
from mmjax.pretrained.family import Described
from mmjax.pretrained.layouts import Taps
from mmjax.pretrained.settings import ACTIVATIONS, Setting, read_settings, write_settings
from mmjax.pretrained.tables import chosen, layers, linear, norm, same, under

NAME = "whisper"
MODEL_TYPES = ("whisper",)

SETTINGS = (
    Setting("d_model", "width"),
    Setting("encoder_layers", "depth"),
    Setting("encoder_attention_heads", "heads"),
    Setting("encoder_ffn_dim", "mlp_dim"),
    Setting("activation_function", "activation", ACTIVATIONS),
    Setting("num_mel_bins", "mel"),
    Setting("max_source_positions", "length"),
)
OURS = {"eps": 1e-5, "attention_bias": "no_key"}

LAYER = (
    *norm("self_attn_layer_norm", "attention_norm"),
    *linear("self_attn.q_proj", "attention/query"),
    *linear("self_attn.k_proj", "attention/key", bias=False),
    *linear("self_attn.v_proj", "attention/value"),
    *linear("self_attn.out_proj", "attention/out"),
    *norm("final_layer_norm", "mlp_norm"),
    *linear("fc1", "mlp/up"),
    *linear("fc2", "mlp/down"),
)
PREFIXES = ("model.encoder.", "encoder.")


def read(config: Mapping[str, Any], keys: Collection[str] | None = None) -> Described:
    model = read_settings(SETTINGS, config) | OURS
    body = (
        *linear("conv1", "conv_0", layout=Taps(3)),
        *linear("conv2", "conv_1", layout=Taps(3)),
        *same("embed_positions.weight", "position"),
        *layers(LAYER, model["depth"], "layers.{}.", "transformer"),
        *norm("layer_norm", "transformer/final_norm"),
    )
    return Described(
        model={"sound_encoder": model},
        tensors=under(body, chosen(keys, *PREFIXES), "sound_encoder/"),
        aside={
            r"(model\.)?decoder\..*": "the decoder is not read",
            r"proj_out\.weight": "the decoder is not read",
            r"(projector|classifier)\..*|layer_weights": "the classifier is not read",
        },
    )


def write(model: Multimodal, labels: Sequence[str] = (), aside: Collection[str] = ()) -> dict[str, Any]:
    (part,) = parts(model, "sound_encoder")
    classes(model, "")
    if not any(key.startswith("model.decoder.") for key in aside):
        raise ConfigError("export: Whisper's folders hold a decoder too; this encoder did not come from one.")
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        **write_settings(SETTINGS, part),
    }
