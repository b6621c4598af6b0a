"""DINOv2 (Oquab et al., 2023): Dinov2Model and Dinov2ForImageClassification, whose classifier is carried aside."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmjax.errors import ConfigError
from mmjax.models.multimodal import Multimodal
from mmjax.pretrained import vit
from mmjax.pretrained.config_json import classes, label_names, labels_of, parts
from mmjax.pretrained.family import Described, Tensor
from mmjax.pretrained.layouts import JOINED, LINEAR
from mmjax.pretrained.settings import (
    ACTIVATIONS,
    SIZES,
    Setting,
    as_size,
    demand,
    patches,
    read_settings,
    required,
    side,
    write_settings,
)
from mmjax.pretrained.tables import Table, layers, linear, norm, prefix_of, same, under

NAME = "dinov2"
MODEL_TYPES = ("dinov2",)
CLASSIFIER = "Dinov2ForImageClassification"

SETTINGS = (
    *SIZES,
    Setting("layer_norm_eps", "eps"),
    Setting("qkv_bias", "attention_bias", {True: "", False: "out"}),
    Setting("use_swiglu_ffn", "gated"),
)
OURS = {"pool": "cls", "cls_position": True, "layer_scale": True}

LAYER = (
    *norm("norm1", "attention_norm"),
    *linear("attention.output.dense", "attention/out", "attention.o_proj"),
    *same("layer_scale1.lambda1", "attention_layer_scale"),
    *norm("norm2", "mlp_norm"),
    *same("layer_scale2.lambda1", "mlp_layer_scale"),
)
MLP = (*linear("mlp.fc1", "mlp/up"), *linear("mlp.fc2", "mlp/down"))
# Gate and up in one, as hub files have them; each by itself, as transformers 5 has them in memory.
FUSED = (
    Tensor("mlp.weights_in.weight", ("mlp/gate/kernel", "mlp/up/kernel"), LINEAR),
    Tensor("mlp.weights_in.bias", ("mlp/gate/bias", "mlp/up/bias"), JOINED),
    *linear("mlp.weights_out", "mlp/down"),
)
APART = (
    *linear("mlp.gate_proj", "mlp/gate"),
    *linear("mlp.up_proj", "mlp/up"),
    *linear("mlp.down_proj", "mlp/down"),
)


def mlp_dim(width: int, ratio: float, gated: bool) -> int:
    """Two thirds of width * ratio, up to a multiple of 8, where the MLP is gated."""
    wide = int(width * ratio)
    return (int(wide * 2 / 3) + 7) // 8 * 8 if gated else wide


def read(config: Mapping[str, Any], keys: Collection[str] | None = None) -> Described:
    demand(config, {"num_channels": 3})
    classifies = CLASSIFIER in (config.get("architectures") or ())
    size = side(config, "image_size")
    model = read_settings(SETTINGS, config) | OURS | patches(config)
    model["mlp_dim"] = mlp_dim(model["width"], required(config, "mlp_ratio"), model["gated"])
    own = read_settings((Setting("hidden_act", "activation", ACTIVATIONS),), config)
    model["activation"] = "silu" if model["gated"] else own["activation"]
    body = (
        *vit.embeddings(model["patch"]),
        *layers(
            (*vit.qkv(config["qkv_bias"]), *LAYER, *_mlp(model["gated"], keys)),
            model["depth"],
            "encoder.layer.{}.",
            "transformer",
            "layers.{}.",
            "encoder.layers.{}.",
        ),
        *norm("layernorm", "transformer/final_norm"),
    )
    return Described(
        model={"patch_encoder": model},
        tensors=under(body, prefix_of(keys, "dinov2.", classifies), "patch_encoder/"),
        aside={
            r"(dinov2\.)?embeddings\.mask_token": "stands for masked patches in pre-training",
            r"classifier\..*": "reads the class token beside the mean of the patches, which no head of ours does",
        },
        image_size=(size, size),
        labels=labels_of(config) if classifies else (),
    )


def _mlp(gated: bool, keys: Collection[str] | None) -> Table:
    if not gated:
        return MLP
    return APART if keys is not None and any(".mlp.gate_proj." in key for key in keys) else FUSED


def write(model: Multimodal, labels: Sequence[str] = (), aside: Collection[str] = ()) -> dict[str, Any]:
    (part,) = parts(model, "patch_encoder")
    if classes(model, "image"):
        raise ConfigError("export: dinov2: its classifier reads more than the class token. Export without the head.")
    classifies = "classifier.weight" in aside
    ratios = [r for r in range(1, 33) if mlp_dim(part.width, r, part.gated) == part.mlp_dim]
    if not ratios:
        raise ConfigError(f"export: dinov2: mlp_dim {part.mlp_dim} is no whole multiple of width {part.width}.")
    return {
        "architectures": [CLASSIFIER if classifies else "Dinov2Model"],
        "model_type": "dinov2",
        **write_settings(SETTINGS, part),
        **({} if part.gated else {"hidden_act": _spelled(part.activation)}),
        "mlp_ratio": ratios[0],
        "image_size": as_size(model.image_size),
        "patch_size": part.patch,
        "use_mask_token": any(key.endswith("mask_token") for key in aside),
        **(label_names(labels, len(labels)) if classifies else {}),
    }


def _spelled(activation: str) -> str:
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == activation)
