"""BLIP (Li et al., 2022): captions, answers to questions, and whether text and picture match.

Its text encoder is one BERT that reads a picture or none: embeddings in our text encoder, all blocks in our fusion.
Captions are written by a decoder that reads the picture, answers by one that reads the fused question.

Padding of a question is hidden from the answer, as in BLIP's own code; transformers 5.23 drops that mask.

Ids go in as they are: what is claimed is parity with transformers. The published weights were trained with another
first token than the tokenizer's [CLS] (101): [DEC] (30522, what transformers calls bos) before captions and answers,
and [ENC] (30523), which transformers leaves to the caller, before questions and texts that are matched.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmjax.errors import ConfigError
from mmjax.models.multimodal import Multimodal
from mmjax.pretrained import bert, clip
from mmjax.pretrained.config_json import parts
from mmjax.pretrained.family import Described, Tensor
from mmjax.pretrained.layouts import JOINED, LINEAR, Patches, Positions
from mmjax.pretrained.settings import WHERE, demand, ids, patches, read_settings, required, side, write_settings
from mmjax.pretrained.tables import Table, layers, linear, norm, same, under

NAME = "blip"
MODEL_TYPES = ("blip",)
CAPTIONS, ANSWERS, MATCHES = (
    "BlipForConditionalGeneration",
    "BlipForQuestionAnswering",
    "BlipForImageTextRetrieval",
)

VISION_OURS = {"pool": "cls", "cls_position": True}
TEXT_OURS = {"norm_first": False, "norm_input": True}
HEAD = ("matching", 2, "fused")

QKV = ("attention/query", "attention/key", "attention/value")
PICTURE_LAYER = (
    *norm("layer_norm1", "attention_norm"),
    Tensor("self_attn.qkv.weight", tuple(f"{name}/kernel" for name in QKV), LINEAR),
    Tensor("self_attn.qkv.bias", tuple(f"{name}/bias" for name in QKV), JOINED),
    *linear("self_attn.projection", "attention/out"),
    *norm("layer_norm2", "mlp_norm"),
    *linear("mlp.fc1", "mlp/up"),
    *linear("mlp.fc2", "mlp/down"),
)
TEXT_LAYER = (
    *bert.LAYER,
    *linear("crossattention.self.query", "cross_attention/query"),
    *linear("crossattention.self.key", "cross_attention/key"),
    *linear("crossattention.self.value", "cross_attention/value"),
    *linear("crossattention.output.dense", "cross_attention/out"),
    *norm("crossattention.output.LayerNorm", "cross_norm"),
)


def vision_table(depth: int, patch: int) -> Table:
    """Names below `vision_model.` <-> below `patch_encoder/`."""
    return (
        *same("embeddings.class_embedding", "cls"),
        *linear("embeddings.patch_embedding", "stem", layout=Patches(patch)),
        Tensor("embeddings.position_embedding", ("cls_position", "position"), Positions(leading=True)),
        *layers(PICTURE_LAYER, depth, "encoder.layers.{}.", "transformer"),
        *norm("post_layernorm", "transformer/final_norm"),
    )


def text_table(depth: int, embed: str, stack: str, *tied: str) -> Table:
    """One BERT <-> our embeddings below `embed` and blocks below `stack`. tied: other keys of its table of words."""
    return (
        *same("embeddings.word_embeddings.weight", f"{embed}embedding", *tied),
        *same("embeddings.position_embeddings.weight", f"{embed}position"),
        *norm("embeddings.LayerNorm", f"{stack}input_norm"),
        *layers(TEXT_LAYER, depth, "encoder.layer.{}.", stack.removesuffix("/")),
    )


def decoder_table(depth: int) -> Table:
    """Names below `text_decoder.` <-> below `decoder/`."""
    body = under(text_table(depth, "decoder/embed/", "decoder/transformer/"), "bert.", "")
    words, *others = body
    return (
        words._replace(also=(*words.also, "cls.predictions.decoder.weight")),
        *others,
        *linear("cls.predictions.transform.dense", "decoder/head_dense"),
        *norm("cls.predictions.transform.LayerNorm", "decoder/head_norm"),
        *same("cls.predictions.bias", "decoder/head_bias", "cls.predictions.decoder.bias"),
    )


def kind_of(config: Mapping[str, Any], keys: Collection[str] | None) -> str:
    """Which of the three a folder holds."""
    if keys is None:
        return config["architectures"][0]
    held = {key.partition(".")[0] for key in keys}
    if "itm_head" in held:
        return MATCHES
    if "text_decoder" in held:
        return ANSWERS if "text_encoder" in held else CAPTIONS
    raise ConfigError(
        f"{WHERE}: found tensors of {', '.join(sorted(held))}; expected one of {CAPTIONS}, {ANSWERS}, {MATCHES}."
    )


def read(config: Mapping[str, Any], keys: Collection[str] | None = None) -> Described:
    kind = kind_of(config, keys)
    text, vision = required(config, "text_config"), required(config, "vision_config")
    where = f"{WHERE}: text_config"
    demand(text, {"is_decoder": True, "tie_word_embeddings": True}, where)
    demand(config, {"tie_word_embeddings": True})
    where_vision = f"{WHERE}: vision_config"
    tower = read_settings(clip.VISION, vision, where_vision) | VISION_OURS | patches(vision, where_vision)
    stack = read_settings(bert.ENCODER, text, where) | TEXT_OURS
    length = required(text, "max_position_embeddings", where)
    model: dict[str, Any] = {"patch_encoder": tower}
    tensors = under(vision_table(tower["depth"], tower["patch"]), "vision_model.", "patch_encoder/")
    if kind != CAPTIONS:
        model["text_encoder"] = {"width": stack["width"], "length": length, "pool": "cls", "embed_only": True}
        model["fusion"] = {"name": "cross_attention", "project_image": False, **stack}
        rows = text_table(stack["depth"], "text_encoder/embed/", "fusion/transformer/")
        tensors += under(rows, "text_encoder.", "")
    if kind != MATCHES:
        model["decoder"] = {"length": length, "head": "mlm", **stack}
        tensors += under(decoder_table(stack["depth"]), "text_decoder.", "")
    if kind == MATCHES:
        model |= {
            "embed_dim": required(config, "image_text_hidden_size"),
            "projection_bias": True,
            "text_vector": "fusion",
        }
        tensors += linear("vision_proj", "image_projection")
        tensors += linear("text_proj", "text_projection")
        tensors += linear("itm_head", f"head_{HEAD[0]}/logits")
    size = side(vision, "image_size", where_vision)
    return Described(
        model=model,
        tensors=tensors,
        aside={r"(.*\.)?position_ids": "counts 0, 1, 2, ..."},
        image_size=(size, size),
        vocab_size=required(text, "vocab_size", where),
        token_ids=ids(text, bos="bos_token_id", eos="sep_token_id", pad="pad_token_id"),
        contrastive="softmax" if kind == MATCHES else "",
        # The temperature of training, which transformers leaves out.
        dropped=("contrastive_log_scale",) if kind == MATCHES else (),
        heads={HEAD[0]: HEAD[1:]} if kind == MATCHES else {},
    )


def write(model: Multimodal, labels: Sequence[str] = (), aside: Collection[str] = ()) -> dict[str, Any]:
    has = model.config
    kind = MATCHES if not has.decoder else ANSWERS if has.text_encoder else CAPTIONS
    names = {
        CAPTIONS: ("patch_encoder", "decoder"),
        ANSWERS: ("patch_encoder", "text_encoder", "fusion", "decoder"),
        MATCHES: ("patch_encoder", "text_encoder", "fusion"),
    }[kind]
    found = dict(zip(names, parts(model, *names), strict=True))
    if [tuple(head) for head in model.heads] != ([HEAD] if kind == MATCHES else []):
        raise ConfigError(f"export: found the heads {list(model.heads)}; only {MATCHES} has one, {HEAD}.")
    demand({"image_size": model.image_size[1]}, {"image_size": model.image_size[0]}, "export")
    stack = found.get("fusion", found.get("decoder"))
    return {
        "architectures": [kind],
        "model_type": "blip",
        **({"image_text_hidden_size": has.embed_dim or found["patch_encoder"].width} if kind == MATCHES else {}),
        "text_config": {
            **write_settings(bert.ENCODER, stack),
            "max_position_embeddings": found.get("text_encoder", found.get("decoder")).length,
            "encoder_hidden_size": found["patch_encoder"].width,
            "vocab_size": model.tokens.vocab_size,
            "bos_token_id": model.tokens.bos,
            "sep_token_id": model.tokens.eos,
            "pad_token_id": model.tokens.pad,
        },
        "vision_config": {**write_settings(clip.VISION, found["patch_encoder"]), "image_size": model.image_size[0]},
    }
