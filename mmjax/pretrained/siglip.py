"""SigLIP (Zhai et al., 2023) and SigLIP 2 of fixed resolution (Tschannen et al., 2025): SiglipModel, and each tower."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmjax.models.multimodal import Multimodal
from mmjax.pretrained import clip
from mmjax.pretrained.config_json import classes, parts
from mmjax.pretrained.family import Described, Tensor
from mmjax.pretrained.layouts import JOINED, LINEAR, Patches, Same
from mmjax.pretrained.settings import WHERE, demand, patches, read_settings, required, side, write_settings
from mmjax.pretrained.tables import Table, layers, linear, norm, prefix_of, same, under

NAME = "siglip"
MODEL_TYPES = ("siglip", "siglip_vision_model", "siglip_text_model")

# The text is padded to one length, the padding is read, and the last token stands for all.
TEXT_OURS = {"pool": "last", "read_padding": True}

QKV = ("attention/query", "attention/key", "attention/value")
HEAD = (
    *same("probe", "probe"),
    Tensor("attention.in_proj_weight", tuple(f"{name}/kernel" for name in QKV), LINEAR),
    Tensor("attention.in_proj_bias", tuple(f"{name}/bias" for name in QKV), JOINED),
    *linear("attention.out_proj", "attention/out"),
    *norm("layernorm", "norm"),
    *linear("mlp.fc1", "mlp/up"),
    *linear("mlp.fc2", "mlp/down"),
)


def vision_settings(config: Mapping[str, Any], where: str = WHERE) -> dict[str, Any]:
    """The picture tower. ConfigError where it is none of ours."""
    demand(config, {"num_channels": 3}, where)
    pool = "attention" if config.get("vision_use_head", True) else "none"
    return read_settings(clip.VISION, config, where) | patches(config, where) | {"pool": pool}


def vision_table(settings: Mapping[str, Any]) -> Table:
    """Names below `vision_model.` <-> below `patch_encoder/`."""
    return (
        *linear("embeddings.patch_embedding", "stem", layout=Patches(settings["patch"])),
        *same("embeddings.position_embedding.weight", "position", layout=Same(theirs=(-1, settings["width"]))),
        *layers(clip.LAYER, settings["depth"], "encoder.layers.{}.", "transformer"),
        *norm("post_layernorm", "transformer/final_norm"),
        *(under(HEAD, "head.", "pool/pool/") if settings["pool"] == "attention" else ()),
    )


def read(config: Mapping[str, Any], keys: Collection[str] | None = None) -> Described:
    kind = config["model_type"]
    both = kind == "siglip"
    vision = (config["vision_config"] if both else config) if kind != "siglip_text_model" else None
    text = (config["text_config"] if both else config) if kind != "siglip_vision_model" else None
    model: dict[str, Any] = {}
    tensors: Table = ()
    if vision is not None:
        part = model["patch_encoder"] = vision_settings(vision, f"{WHERE}: vision_config" if both else WHERE)
        tensors += under(vision_table(part), prefix_of(keys, "vision_model.", True), "patch_encoder/")
    if text is not None:
        where = f"{WHERE}: text_config" if both else WHERE
        part = model["text_encoder"] = read_settings(clip.TEXT, text, where) | TEXT_OURS
        prefix = prefix_of(keys, "text_model.", True)
        tensors += under(clip.text_table(part["depth"]), prefix, "text_encoder/")
        tensors += linear(f"{prefix}head", "text_projection")
        model |= {"projection": "text", "projection_bias": True, "embed_dim": required(text, "projection_size", where)}
    if both:
        demand(vision, {"hidden_size": model["embed_dim"], "vision_use_head": True}, f"{WHERE}: vision_config")
        scalar = Same(theirs=(1,))
        tensors += same("logit_scale", "contrastive_log_scale", layout=scalar)
        tensors += same("logit_bias", "contrastive_bias", layout=scalar)
    size = None if vision is None else side(vision, "image_size")
    return Described(
        model=model,
        tensors=tensors,
        aside=clip.POSITION_IDS,
        image_size=size and (size, size),
        vocab_size=0 if text is None else required(text, "vocab_size"),
        # The ids of config.json are CLIP's, whatever the tokenizer.
        contrastive="" if text is None else "sigmoid",
    )


def write(model: Multimodal, labels: Sequence[str] = (), aside: Collection[str] = ()) -> dict[str, Any]:
    names = [n for n in ("patch_encoder", "text_encoder") if getattr(model.config, n) is not None]
    towers = dict(zip(names, parts(model, *names), strict=True))
    classes(model, "")
    written = {}
    if part := towers.get("patch_encoder"):
        demand({"image_size": model.image_size[1]}, {"image_size": model.image_size[0]}, "export")
        written["vision"] = write_settings(clip.VISION, part) | {
            "image_size": model.image_size[0],
            "vision_use_head": part.pool == "attention",
        }
    if part := towers.get("text_encoder"):
        written["text"] = write_settings(clip.TEXT, part) | {
            "vocab_size": model.tokens.vocab_size,
            "projection_size": model.config.embed_dim or next(iter(towers.values())).width,
            "pad_token_id": model.tokens.pad,
            "bos_token_id": model.tokens.bos,
            "eos_token_id": model.tokens.eos,
        }
    if len(written) == 2:
        settings = {f"{tower}_config": settings for tower, settings in written.items()}
        return {"architectures": ["SiglipModel"], "model_type": "siglip", **settings}
    ((tower, settings),) = written.items()
    return {
        "architectures": [f"Siglip{tower.title()}Model"],
        "model_type": f"siglip_{tower}_model",
        **settings,
    }
