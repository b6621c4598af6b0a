"""BERT (Devlin et al., 2019) and MiniLM: the encoder, with or without pooler and classifier of sentences; as
sentence-transformers keeps them, too (`sentences.py`): the pooler is then set aside.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmjax.models.multimodal import Multimodal
from mmjax.pretrained.config_json import classes, label_names, labels_of, parts
from mmjax.pretrained.family import Described
from mmjax.pretrained.sentences import POOLING
from mmjax.pretrained.settings import ENCODER, Setting, demand, ids, read_settings, required, write_settings
from mmjax.pretrained.tables import Table, holds, layers, linear, prefix_of, same, under

NAME = "bert"
MODEL_TYPES = ("bert",)
CLASSIFIER = "BertForSequenceClassification"

SETTINGS = (*ENCODER, Setting("max_position_embeddings", "length"), Setting("type_vocab_size", "token_types"))
OURS = {"norm_first": False, "norm_input": True, "pool": "cls"}


def layer_norm(theirs: str, ours: str) -> Table:
    """LayerNorm, whose tensors are called gamma and beta in files that come from TensorFlow."""
    return (
        *same(f"{theirs}.weight", f"{ours}/scale", f"{theirs}.gamma"),
        *same(f"{theirs}.bias", f"{ours}/bias", f"{theirs}.beta"),
    )


LAYER = (
    *linear("attention.self.query", "attention/query"),
    *linear("attention.self.key", "attention/key"),
    *linear("attention.self.value", "attention/value"),
    *linear("attention.output.dense", "attention/out"),
    *layer_norm("attention.output.LayerNorm", "attention_norm"),
    *linear("intermediate.dense", "mlp/up"),
    *linear("output.dense", "mlp/down"),
    *layer_norm("output.LayerNorm", "mlp_norm"),
)


def read(config: Mapping[str, Any], keys: Collection[str] | None = None) -> Described:
    demand(config, {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False})
    written = (config.get("architectures") or ["BertModel"])[0]
    prefix = prefix_of(keys, "bert.", written != "BertModel")
    sentence = config.get(POOLING)
    pools = written in ("BertModel", "BertForPreTraining", CLASSIFIER) and config.get("has_pooler", True)
    pooled = not sentence and holds(keys, f"{prefix}pooler.dense.weight", pools)
    classifies = written == CLASSIFIER and pooled
    labels = labels_of(config) if classifies else ()
    model = (
        read_settings(SETTINGS, config)
        | OURS
        | {"pooler": "tanh" if pooled else "none", "pool": sentence or OURS["pool"]}
    )
    tied = ("cls.predictions.decoder.weight",)
    body = (
        *same("embeddings.position_embeddings.weight", "embed/position"),
        *same("embeddings.token_type_embeddings.weight", "embed/token_type"),
        *layer_norm("embeddings.LayerNorm", "transformer/input_norm"),
        *layers(LAYER, model["depth"], "encoder.layer.{}.", "transformer"),
        *(linear("pooler.dense", "pooler") if pooled else ()),
    )
    return Described(
        model={"text_encoder": model},
        tensors=(
            *same(f"{prefix}embeddings.word_embeddings.weight", "text_encoder/embed/embedding", *tied),
            *under(body, prefix, "text_encoder/"),
            *(linear("classifier", "head_classification/logits") if classifies else ()),
        ),
        aside={
            r"cls\..*": "guesses masked words and next sentences in pre-training",
            r"(.*\.)?position_ids": "counts 0, 1, 2, ...",
            **({r"(.*\.)?pooler\.dense\..*": "not read where tokens are pooled otherwise"} if sentence else {}),
        },
        vocab_size=required(config, "vocab_size"),
        token_ids=ids(config, bos="bos_token_id", eos="eos_token_id", pad="pad_token_id"),
        heads={"classification": (len(labels), "text")} if classifies else {},
        labels=labels,
    )


def write(model: Multimodal, labels: Sequence[str] = (), aside: Collection[str] = ()) -> dict[str, Any]:
    (part,), outputs = parts(model, "text_encoder"), classes(model, "text")
    pretrains, guesses = (
        any(key.startswith(f"cls.{n}.") for key in aside) for n in ("seq_relationship", "predictions")
    )
    sentence = part.pool == "mean" or any("pooler.dense." in key for key in aside)
    named = (
        CLASSIFIER if outputs else "BertForPreTraining" if pretrains else "BertForMaskedLM" if guesses else "BertModel"
    )
    return {
        "architectures": [named],
        "model_type": "bert",
        **write_settings(SETTINGS, part),
        "vocab_size": model.tokens.vocab_size,
        "bos_token_id": model.tokens.bos,
        "eos_token_id": model.tokens.eos,
        "pad_token_id": model.tokens.pad,
        **label_names(labels, outputs),
        # transformers ignores it; one has to tell `BertModel.from_pretrained` add_pooling_layer=False.
        **({"has_pooler": False} if named == "BertModel" and part.pooler == "none" else {}),
        **({POOLING: part.pool} if sentence else {}),
    }
