"""LLaVA 1.5 (Liu et al., 2023b): CLIP's picture tower before a Llama (or Qwen 2), through a connector of two layers.

The picture's tokens take the places of `<image>` tokens: `decode(placed=True)`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmjax.errors import ConfigError
from mmjax.models.multimodal import Multimodal
from mmjax.pretrained import clip, llama
from mmjax.pretrained.config_json import classes, parts
from mmjax.pretrained.family import Described
from mmjax.pretrained.paligemma import LANGUAGE, PROJECTOR, TOWER, head_of
from mmjax.pretrained.settings import WHERE, demand, ids, required, side, write_settings
from mmjax.pretrained.tables import chosen, linear, under

NAME = "llava"
MODEL_TYPES = ("llava",)

STRATEGY = {"default": False, "full": True}  # whether the class token is among the tokens


def layers_before_the_end(config: Mapping[str, Any], depth: int) -> int:
    """`tokens_layer` of `vision_feature_layer`, which counts hidden states, the embeddings' first."""
    layer = required(config, "vision_feature_layer")
    before = depth - layer if isinstance(layer, int) and layer >= 0 else -1 - layer if isinstance(layer, int) else 0
    if not 1 <= before <= depth:
        raise ConfigError(
            f"{WHERE}: vision_feature_layer: found {layer!r}, expected one layer before the last of {depth}."
        )
    return before


def read(config: Mapping[str, Any], keys: Collection[str] | None = None) -> Described:
    text, vision = required(config, "text_config"), required(config, "vision_config")
    demand(config, {"projector_hidden_act": "gelu", "multimodal_projector_bias": True})
    demand(vision, {"model_type": "clip_vision_model"}, f"{WHERE}: vision_config")
    if text["model_type"] not in llama.MODEL_TYPES:
        raise ConfigError(f"{WHERE}: text_config: model_type: found '{text['model_type']}', expected llama or qwen2.")
    strategy = required(config, "vision_feature_select_strategy")
    if strategy not in STRATEGY:
        raise ConfigError(f"{WHERE}: vision_feature_select_strategy: found '{strategy}', expected default or full.")
    tower = clip.vision_settings(vision, f"{WHERE}: vision_config")
    tower |= {"tokens_layer": layers_before_the_end(config, tower["depth"]), "tokens_cls": STRATEGY[strategy]}
    tied = bool(config.get("tie_word_embeddings"))
    decoder = llama.decoder_settings({**text, "tie_word_embeddings": tied}, f"{WHERE}: text_config")
    decoder |= {"prefix_attention": "causal", "connector": "mlp"}
    language, projector = chosen(keys, *LANGUAGE), chosen(keys, *PROJECTOR)
    connector = f"decoder/memory_projection_{tower['width']}"
    size = side(vision, "image_size", f"{WHERE}: vision_config")
    return Described(
        model={"patch_encoder": tower, "decoder": decoder},
        tensors=(
            *under(clip.vision_table(tower["depth"], tower["patch"]), chosen(keys, *TOWER), "patch_encoder/"),
            *linear(f"{projector}linear_1", connector),
            *linear(f"{projector}linear_2", f"{connector}_out"),
            *llama.decoder_table(decoder, language, head_of(language)),
        ),
        aside={r".*\.rotary_emb\.inv_freq": "follows from rope_theta", **clip.POSITION_IDS},
        image_size=(size, size),
        vocab_size=required(text, "vocab_size"),
        token_ids=ids(text, bos="bos_token_id", eos="eos_token_id", pad="pad_token_id")
        | ids(config, image="image_token_index"),
    )


def write(model: Multimodal, labels: Sequence[str] = (), aside: Collection[str] = ()) -> dict[str, Any]:
    tower, decoder = parts(model, "patch_encoder", "decoder")
    classes(model, "")
    demand({"image_size": model.image_size[1]}, {"image_size": model.image_size[0]}, "export")
    tokens = (model.image_size[0] // tower.patch) ** 2 + tower.tokens_cls
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": model.tokens.image,
        "image_seq_length": tokens,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": -1 - tower.tokens_layer,
        "vision_feature_select_strategy": "full" if tower.tokens_cls else "default",
        "tie_word_embeddings": decoder.tie,
        "text_config": {
            **llama.write_decoder(decoder),
            "vocab_size": model.tokens.vocab_size,
            "bos_token_id": model.tokens.bos,
            "eos_token_id": model.tokens.eos,
            "pad_token_id": model.tokens.pad,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            **write_settings(clip.VISION, tower),
            "image_size": model.image_size[0],
        },
    }
