"""PaliGemma (Beyer et al., 2024) and PaliGemma 2 (Steiner et al., 2024): SigLIP's picture tower before Gemma.

The prompt is read both ways (`prefix_attention` "prompt"): `decode(placed=True, prefix=...)`,
`generate(placed=True, prefix_full=True)`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmjax.models.multimodal import Multimodal
from mmjax.pretrained import clip, gemma, siglip
from mmjax.pretrained.config_json import classes, parts
from mmjax.pretrained.family import Described
from mmjax.pretrained.settings import WHERE, demand, ids, required, side, write_settings
from mmjax.pretrained.tables import chosen, linear, under

NAME = "paligemma"
MODEL_TYPES = ("paligemma",)

# Of the hub's files, of what transformers 5 writes, and of its models in memory.
LANGUAGE = ("language_model.model.", "model.language_model.")
TOWER = ("vision_tower.vision_model.", "vision_tower.", "model.vision_tower.vision_model.", "model.vision_tower.")
PROJECTOR = ("multi_modal_projector.", "model.multi_modal_projector.")


def head_of(language: str) -> str:
    """Key of the table of logits that goes with a prefix of `LANGUAGE`."""
    return "language_model.lm_head.weight" if language == LANGUAGE[0] else "lm_head.weight"


def read(config: Mapping[str, Any], keys: Collection[str] | None = None) -> Described:
    text, vision = required(config, "text_config"), required(config, "vision_config")
    demand(text, {"use_bidirectional_attention": True}, f"{WHERE}: text_config")
    demand(config, {"projection_dim": required(text, "hidden_size")})
    demand(vision, {"model_type": "siglip_vision_model"}, f"{WHERE}: vision_config")
    decoder = gemma.decoder_settings(text, f"{WHERE}: text_config") | {"prefix_attention": "prompt"}
    # Whether it has a head or not, none is used.
    tower = siglip.vision_settings({**vision, "vision_use_head": False}, f"{WHERE}: vision_config")
    prefix, language = chosen(keys, *TOWER), chosen(keys, *LANGUAGE)
    size = side(vision, "image_size", f"{WHERE}: vision_config")
    return Described(
        model={"patch_encoder": tower, "decoder": decoder},
        tensors=(
            *under(siglip.vision_table(tower), prefix, "patch_encoder/"),
            *linear(f"{chosen(keys, *PROJECTOR)}linear", f"decoder/memory_projection_{tower['width']}"),
            *gemma.decoder_table(decoder, language, head_of(language)),
        ),
        aside={
            r".*\.rotary_emb\.inv_freq": "follows from rope_theta",
            r".*vision_tower\.(vision_model\.)?head\..*": "PaliGemma reads the patches, not the picture's one vector",
            **clip.POSITION_IDS,
        },
        image_size=(size, size),
        vocab_size=required(text, "vocab_size"),
        token_ids=ids(text, bos="bos_token_id", eos="eos_token_id", pad="pad_token_id")
        | ids(config, image="image_token_index"),
    )


def write(model: Multimodal, labels: Sequence[str] = (), aside: Collection[str] = ()) -> dict[str, Any]:
    tower, decoder = parts(model, "patch_encoder", "decoder")
    classes(model, "")
    demand({"image_size": model.image_size[1]}, {"image_size": model.image_size[0]}, "export")
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "image_token_index": model.tokens.image,
        "projection_dim": decoder.width,
        "hidden_size": decoder.width,
        "tie_word_embeddings": decoder.tie,
        "text_config": {**gemma.write_decoder(model, decoder), "use_bidirectional_attention": True},
        "vision_config": {
            "model_type": "siglip_vision_model",
            **write_settings(clip.VISION, tower),
            "image_size": model.image_size[0],
            "vision_use_head": any(".head." in key for key in aside),
            "projection_dim": decoder.width,
        },
    }
