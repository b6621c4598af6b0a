"""ViT (Dosovitskiy et al., 2021): ViTModel and ViTForImageClassification."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmjax.models.multimodal import Multimodal
from mmjax.pretrained.config_json import classes, label_names, labels_of, parts
from mmjax.pretrained.family import Described, Tensor
from mmjax.pretrained.layouts import Patches, Positions
from mmjax.pretrained.settings import ENCODER, Setting, as_size, demand, pair, patches, read_settings, write_settings
from mmjax.pretrained.tables import Table, holds, layers, linear, norm, prefix_of, same, under

NAME = "vit"
MODEL_TYPES = ("vit",)

SETTINGS = (*ENCODER, Setting("qkv_bias", "attention_bias", {True: "", False: "out"}))
OURS = {"pool": "cls", "cls_position": True}

# The names that hub files have and transformers writes, then those that transformers 5 has in memory.
LAYER = (
    *norm("layernorm_before", "attention_norm"),
    *linear("attention.output.dense", "attention/out", "attention.o_proj"),
    *norm("layernorm_after", "mlp_norm"),
    *linear("intermediate.dense", "mlp/up", "mlp.fc1"),
    *linear("output.dense", "mlp/down", "mlp.fc2"),
)


def qkv(bias: bool) -> Table:
    return (
        *linear("attention.attention.query", "attention/query", "attention.q_proj", bias=bias),
        *linear("attention.attention.key", "attention/key", "attention.k_proj", bias=bias),
        *linear("attention.attention.value", "attention/value", "attention.v_proj", bias=bias),
    )


def embeddings(patch: int) -> Table:
    return (
        *same("embeddings.cls_token", "cls"),
        *linear("embeddings.patch_embeddings.projection", "stem", layout=Patches(patch)),
        Tensor("embeddings.position_embeddings", ("cls_position", "position"), Positions(leading=True)),
    )


def read(config: Mapping[str, Any], keys: Collection[str] | None = None) -> Described:
    demand(config, {"num_channels": 3, "pooler_act": "tanh", "pooler_output_size": config["hidden_size"]})
    classifies = "ViTForImageClassification" in (config.get("architectures") or ())
    prefix = prefix_of(keys, "vit.", classifies)
    pooled = not classifies and holds(keys, f"{prefix}pooler.dense.weight", config.get("has_pooler", True))
    model = read_settings(SETTINGS, config) | OURS | patches(config) | {"pooler": "tanh" if pooled else "none"}
    body = (
        *embeddings(model["patch"]),
        *layers((*qkv(config["qkv_bias"]), *LAYER), model["depth"], "encoder.layer.{}.", "transformer", "layers.{}."),
        *norm("layernorm", "transformer/final_norm"),
        *(linear("pooler.dense", "pooler") if pooled else ()),
    )
    labels = labels_of(config) if classifies else ()
    return Described(
        model={"patch_encoder": model},
        tensors=under(body, prefix, "patch_encoder/")
        + (linear("classifier", "head_classification/logits") if classifies else ()),
        aside={
            r"(vit\.)?embeddings\.mask_token": "stands for masked patches in pre-training",
            r"(vit\.)?pooler\..*": "the classifier reads the class token itself",
            r"decoder\..*": "draws masked patches in pre-training",
        },
        image_size=pair(config, "image_size"),
        heads={"classification": (len(labels), "image")} if classifies else {},
        labels=labels,
    )


def write(model: Multimodal, labels: Sequence[str] = (), aside: Collection[str] = ()) -> dict[str, Any]:
    (part,), outputs = parts(model, "patch_encoder"), classes(model, "image")
    return {
        "architectures": ["ViTForImageClassification" if outputs else "ViTModel"],
        "model_type": "vit",
        **write_settings(SETTINGS, part),
        "image_size": as_size(model.image_size),
        "patch_size": part.patch,
        **label_names(labels, outputs),
        # transformers ignores it; one has to tell `ViTModel.from_pretrained` add_pooling_layer=False.
        **({} if outputs or part.pooler == "tanh" else {"has_pooler": False}),
    }
