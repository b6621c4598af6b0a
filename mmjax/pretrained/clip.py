"""CLIP (Radford et al., 2021): CLIPModel, and each tower by itself with or without its projection."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmjax.errors import ConfigError
from mmjax.models.multimodal import Multimodal
from mmjax.pretrained.config_json import classes, parts
from mmjax.pretrained.family import Described, Tensor
from mmjax.pretrained.layouts import Patches, Positions, Same
from mmjax.pretrained.settings import (
    ENCODER,
    WHERE,
    Setting,
    demand,
    ids,
    patches,
    read_settings,
    required,
    side,
    write_settings,
)
from mmjax.pretrained.tables import Table, holds, layers, linear, norm, prefix_of, same, under

NAME = "clip"
MODEL_TYPES = ("clip", "clip_vision_model", "clip_text_model")

VISION = (*ENCODER, Setting("patch_size", "patch"))
VISION_OURS = {"pool": "cls", "cls_position": True, "norm_input": True, "stem_bias": False}
TEXT = (*ENCODER, Setting("max_position_embeddings", "length"))
TEXT_OURS = {"causal": True}
# What config.json says where the token at the end is the one with the highest id: written before that was right.
LEGACY_EOS = 2

LAYER = (
    *norm("layer_norm1", "attention_norm"),
    *linear("self_attn.q_proj", "attention/query"),
    *linear("self_attn.k_proj", "attention/key"),
    *linear("self_attn.v_proj", "attention/value"),
    *linear("self_attn.out_proj", "attention/out"),
    *norm("layer_norm2", "mlp_norm"),
    *linear("mlp.fc1", "mlp/up"),
    *linear("mlp.fc2", "mlp/down"),
)
POSITION_IDS = {r"(.*\.)?position_ids": "counts 0, 1, 2, ..."}


def vision_settings(config: Mapping[str, Any], where: str = WHERE) -> dict[str, Any]:
    """The picture tower. ConfigError where it is none of ours."""
    demand(config, {"num_channels": 3}, where)
    return read_settings(VISION, config, where) | VISION_OURS | patches(config, where)


def vision_table(depth: int, patch: int) -> Table:
    """Names below `vision_model.` <-> below `patch_encoder/`."""
    return (
        *same("embeddings.class_embedding", "cls", layout=Same(theirs=(-1,))),
        *linear("embeddings.patch_embedding", "stem", bias=False, layout=Patches(patch)),
        Tensor("embeddings.position_embedding.weight", ("cls_position", "position"), Positions()),
        *norm("pre_layrnorm", "transformer/input_norm"),
        *layers(LAYER, depth, "encoder.layers.{}.", "transformer"),
        *norm("post_layernorm", "transformer/final_norm"),
    )


def text_table(depth: int) -> Table:
    """Names below `text_model.` <-> below `text_encoder/`."""
    return (
        *same("embeddings.token_embedding.weight", "embed/embedding"),
        *same("embeddings.position_embedding.weight", "embed/position"),
        *layers(LAYER, depth, "encoder.layers.{}.", "transformer"),
        *norm("final_layer_norm", "transformer/final_norm"),
    )


def read(config: Mapping[str, Any], keys: Collection[str] | None = None) -> Described:
    kind = config["model_type"]
    both = kind == "clip"
    projected = both or any(a.endswith("WithProjection") for a in config.get("architectures") or ())
    vision = (config["vision_config"] if both else config) if kind != "clip_text_model" else None
    text = (config["text_config"] if both else config) if kind != "clip_vision_model" else None
    model: dict[str, Any] = {}
    tensors: Table = ()
    if vision is not None:
        part = model["patch_encoder"] = vision_settings(vision, f"{WHERE}: vision_config" if both else WHERE)
        tensors += under(
            vision_table(part["depth"], part["patch"]), prefix_of(keys, "vision_model.", True), "patch_encoder/"
        )
        projects = holds(keys, "visual_projection.weight", projected)
        tensors += linear("visual_projection", "image_projection", bias=False) if projects else ()
    if text is not None:
        where = f"{WHERE}: text_config" if both else WHERE
        legacy = required(text, "eos_token_id", where) == LEGACY_EOS
        part = model["text_encoder"] = read_settings(TEXT, text, where) | TEXT_OURS
        part["pool"] = "highest_id" if legacy else "eos"
        tensors += under(text_table(part["depth"]), prefix_of(keys, "text_model.", True), "text_encoder/")
        projects = holds(keys, "text_projection.weight", projected)
        tensors += linear("text_projection", "text_projection", bias=False) if projects else ()
    if both:
        tensors += same("logit_scale", "contrastive_log_scale")
    if both or projects:
        model["embed_dim"] = required(config, "projection_dim")
    size = None if vision is None else side(vision, "image_size")
    return Described(
        model=model,
        tensors=tensors,
        aside=POSITION_IDS,
        image_size=size and (size, size),
        vocab_size=0 if text is None else required(text, "vocab_size"),
        # The legacy eos comes with a bos that is as wrong.
        token_ids={}
        if text is None or legacy
        else ids(text, bos="bos_token_id", eos="eos_token_id", pad="pad_token_id"),
        contrastive="softmax" if both or projects else "",
    )


def write(model: Multimodal, labels: Sequence[str] = (), aside: Collection[str] = ()) -> dict[str, Any]:
    names = [n for n in ("patch_encoder", "text_encoder") if getattr(model.config, n) is not None]
    towers = dict(zip(names, parts(model, *names), strict=True))
    classes(model, "")
    written = {}
    if part := towers.get("patch_encoder"):
        written["vision"] = write_settings(VISION, part) | {"image_size": model.image_size[0]}
        demand({"image_size": model.image_size[1]}, {"image_size": model.image_size[0]}, "export")
    if part := towers.get("text_encoder"):
        tokens = model.tokens
        if part.pool == "eos" and tokens.eos == LEGACY_EOS:
            raise ConfigError(
                "export: eos is token 2, by which Hugging Face's CLIP means the token with the highest id."
            )
        eos = LEGACY_EOS if part.pool == "highest_id" else tokens.eos
        written["text"] = write_settings(TEXT, part) | {
            "vocab_size": tokens.vocab_size,
            "bos_token_id": tokens.bos,
            "eos_token_id": eos,
            "pad_token_id": tokens.pad,
        }
    width = model.config.embed_dim or next(iter(towers.values())).width
    projection = {"projection_dim": width} if model.contrastive else {}
    if len(written) == 2:
        return {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            **{f"{tower}_config": settings | projection for tower, settings in written.items()},
            **projection,
        }
    ((tower, settings),) = written.items()
    return {
        "architectures": [f"CLIP{tower.title()}Model{'WithProjection' if projection else ''}"],
        "model_type": f"clip_{tower}_model",
        **settings,
        **projection,
    }
