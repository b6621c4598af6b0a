"""Alignment: pictures and captions meet in one space (CLIP, SigLIP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import choice
from mmjax.evaluators.figure import Both
from mmjax.evaluators.retrieval import Retrieval
from mmjax.evaluators.zero_shot import ZeroShot
from mmjax.losses.contrastive import positives_from_keys, sigmoid_contrastive, softmax_contrastive
from mmjax.models.forward import Forward
from mmjax.tasks.task import SumWeight, Task


@dataclass(frozen=True, kw_only=True)
class Contrastive(Task):
    """Pairwise sigmoid (Zhai et al., 2023) or softmax (Radford et al., 2021) loss over the whole batch.

    Every caption of a picture, of an identical picture, and every identical caption is a positive. Judged by retrieval,
    and by zero-shot accuracy on sets whose captions are their class names in words (`prompt="a photo of a {label}."`).

    Attributes:
      loss_kind: "sigmoid" or "softmax".
      chunk: texts at a time in the sigmoid loss; 0 holds all [B, B*K] logits at once.
      gallery: retrieval is judged among this many pictures; 0 is the whole set.
    """

    loss_kind: str = choice("sigmoid", "softmax")
    chunk: int = 0
    gallery: int = 0

    couples_rows: ClassVar[bool] = True
    packs: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"patch_encoder", "text_encoder", "contrastive"})

    @property
    def features(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def embed(self, forward: Forward) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Row by row: unit embeddings {image [B, E], text [B, K, E]}, and the keys that the loss compares. Of packed
        rows B * S, with one text each.
        """
        batch = forward.batch
        images, texts = forward.image().embedding, forward.text("text").embedding
        keys = {k: batch[k].reshape(len(images)) for k in ("valid", "image_key")} | {
            k: batch[k].reshape(len(images), -1) for k in ("text_valid", "text_key")
        }
        embeddings = {"image": images, "text": texts.reshape(*keys["text_valid"].shape, texts.shape[-1])}
        return embeddings, keys | {"pictured": forward.pictured().reshape(-1)}

    def couple(
        self, embeddings: dict[str, jax.Array], keys: dict[str, jax.Array], scale: tuple[jax.Array, jax.Array]
    ) -> dict[str, SumWeight]:
        """The loss over the whole batch from `embed`'s outputs; `scale` is (log scale, bias)."""
        log_scale, bias = scale
        rows, texts = keys["text_valid"].shape
        text = embeddings["text"].reshape(rows * texts, -1)
        of_row = jnp.repeat(jnp.arange(rows), texts)
        text_valid = (keys["text_valid"] & keys["valid"][:, None]).reshape(-1)
        positives = positives_from_keys(keys["image_key"], of_row, keys["text_key"].reshape(-1), text_valid)
        common = {"positives": positives, "image_valid": keys["pictured"], "text_valid": text_valid}
        if self.loss_kind == "softmax":
            loss = softmax_contrastive(embeddings["image"], text, scale=jnp.exp(log_scale), **common)
        else:
            loss = sigmoid_contrastive(
                embeddings["image"], text, scale=jnp.exp(log_scale), bias=bias, chunk=self.chunk, **common
            )
        return {"loss": loss, "scale": (jnp.exp(log_scale), jnp.ones(()))}

    def loss(self, forward: Forward) -> dict[str, SumWeight]:
        return self.couple(*self.embed(forward), forward.scale())

    def predict(self, forward: Forward) -> dict[str, jax.Array]:
        embeddings, _ = self.embed(forward)
        return {"image_embedding": embeddings["image"], "text_embedding": embeddings["text"]}

    def evaluator(self, processor: Any, train: Any) -> Both:
        return Both(Retrieval(self.name, gallery=self.gallery), ZeroShot(self.name))

    def describe(
        self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]
    ) -> list[tuple[str, bool | None]]:
        """The caption that this batch's captions hold nearest to the picture."""
        images, texts = outputs["image_embedding"], outputs["text_embedding"]
        valid = outputs["text_valid"]
        scores = np.where(valid, np.einsum("e,bke->bk", images[row], texts), -np.inf)
        nearest, which = np.unravel_index(np.argmax(scores), scores.shape)
        caption = outputs["texts"][nearest][which]
        return [(f"nearest caption of its batch: {caption}", caption in record.get("texts", ()))]
