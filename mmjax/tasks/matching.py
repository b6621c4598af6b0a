"""Does this caption belong to this picture? Negatives come from the batch (ALBEF, BLIP: Li et al., 2021, 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.evaluators.matching import PairAccuracy
from mmjax.losses.contrastive import positives_from_keys
from mmjax.losses.matching import hard_negatives, matching_accuracy, matching_loss, nearest_negatives
from mmjax.models.forward import Forward
from mmjax.models.multimodal import HeadSpec
from mmjax.tasks.task import SumWeight, Task


@dataclass(frozen=True, kw_only=True)
class Matching(Task):
    """A binary head on the fused pair: the true caption, a hard wrong caption, and a hard wrong picture for each row.
    It is judged with the caption and the picture of the row before, whatever the model finds hard.

    Attributes:
      temperature: of the softmax over similarities from which negatives are drawn; small is harder.
    """

    temperature: float = 0.1

    couples_rows: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"patch_encoder", "text_encoder", "fusion", "contrastive"})

    @property
    def features(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def heads(self, processor: Any) -> Sequence[HeadSpec]:
        return (HeadSpec(self.name, 2, "fused"),)

    def _pairs(self, forward: Forward) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits [3B, 2], labels [3B], valid [3B].

        In thirds: (picture, own caption), (picture, other caption), (other picture, own caption).
        """
        batch = forward.batch
        rows, texts = batch["text_valid"].shape
        image, text = forward.image(), forward.text("text")
        first = jnp.arange(rows) * texts  # the first drawn caption of each picture
        own = jax.tree.map(lambda x: x[first], text.tokens)
        usable = forward.pictured() & batch["text_valid"][:, 0]
        positives = positives_from_keys(batch["image_key"], jnp.arange(rows), batch["text_key"][:, 0], usable)
        both = usable[:, None] & usable
        if forward.train:
            similarity = jnp.where(both, image.embedding @ text.embedding[first].T, -jnp.inf)
            negative = hard_negatives(similarity, positives, forward.rng("matching"), self.temperature)
        else:  # the same pairs for every model that is judged
            negative = nearest_negatives(both & ~positives)
        pick = lambda tokens, index: jax.tree.map(lambda x: x[index], tokens)  # noqa: E731
        stack = lambda *parts: jax.tree.map(lambda *x: jnp.concatenate(x), *parts)  # noqa: E731
        fused = forward.fuse_tokens(
            stack(own, pick(own, negative.text), own),
            stack(image.tokens, image.tokens, pick(image.tokens, negative.image)),
        )
        labels = jnp.concatenate([jnp.ones(rows, jnp.int32), jnp.zeros(2 * rows, jnp.int32)])
        valid = jnp.concatenate([usable, negative.text_valid, negative.image_valid])
        return forward.head(self.name, fused.pooled), labels, valid

    def loss(self, forward: Forward) -> dict[str, SumWeight]:
        logits, labels, valid = self._pairs(forward)
        return {
            "loss": matching_loss(logits, labels, valid),
            "accuracy": matching_accuracy(logits, labels, valid),
        }

    def predict(self, forward: Forward) -> dict[str, jax.Array]:
        logits, labels, valid = self._pairs(forward)
        rows = forward.batch["valid"].shape[0]
        return {
            "match": jnp.argmax(logits, -1).reshape(3, rows).T,
            "match_truth": labels.reshape(3, rows).T,
            "match_valid": valid.reshape(3, rows).T,
        }

    def evaluator(self, processor: Any, train: Any) -> PairAccuracy:
        return PairAccuracy(self.name)

    def describe(
        self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]
    ) -> list[tuple[str, bool | None]]:
        says, truth = bool(outputs["match"][row][0]), bool(outputs["match_truth"][row][0])
        return [("its caption matches" if says else "its caption does not match", says == truth)]
