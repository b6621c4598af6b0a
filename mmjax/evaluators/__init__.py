"""Evaluators: from predictions to figures, each with a baseline beside it and a 95 % interval.

An evaluator is made for one pass over a test set: `update` once a batch, then `figures`. It keeps what the figures need
(hits, embeddings), never logits, and drops the rows that only pad the last batch.
"""

from mmjax.evaluators.figure import Evaluator, Figure, as_json

__all__ = ["Evaluator", "Figure", "as_json"]
