"""How the rows of a training stream lie in its batches, where not one by one: packed, or in buckets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mmjax.data import order
from mmjax.data.buckets import Buckets
from mmjax.data.lengths import Lengths, lengths_of, the_text
from mmjax.data.mixture import Mixture
from mmjax.data.packing import Packing
from mmjax.errors import ConfigError

if TYPE_CHECKING:
    from mmjax.data.processor import Processor
    from mmjax.data.sources import Source, SourceConfig


class Layout(Protocol):
    """A pure function of (seed, step), as the order of the rows is.

    Attributes:
      feature: the texts whose lengths it goes by. lengths: these.
      shapes: of batches there are at most.
      rows_a_place: the mean number of rows in a place of the batch.
    """

    feature: str
    lengths: Lengths
    shapes: int
    rows_a_place: float

    def rows_at(self, step: int, batch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and epochs [batch] or [batch, S] of the global batch; -1 where a place has fewer rows."""
        ...

    def lay(self, batch: Mapping[str, np.ndarray], rows: np.ndarray, here: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays of the rows of the places `here`, one after the other -> the batch. rows: of `rows_at`."""
        ...

    def describe(self, batch: int, seed: int) -> str:
        """A line for the start: what is padding, with it and without."""
        ...


def layout_of(
    config: SourceConfig, where: str, source: Source, processor: Processor, features: frozenset[str], seed: int
) -> Layout | None:
    """The layout that a stream's source asks for; None for rows one by one."""
    if config.pack_rows:
        feature = the_text(features, f"{where}.pack_rows")
        if feature == "text" and processor.captions != 1:
            raise ConfigError(
                f"config.processor.captions: found {processor.captions}, but a packed row has one. Set it to 1; "
                f"{where}.group=False makes a row of every caption."
            )
        lengths = lengths_of(source, processor, feature)
        pad = processor.tokenizer.pad
        return Packing(feature, lengths, config.pack_tokens, config.pack_rows, pad, seed, where)
    if config.buckets:
        feature = the_text(features, f"{where}.buckets")
        mixed = isinstance(source, Mixture)

        def rows_at(step: int, batch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
            return source.rows_at(step, batch, seed) if mixed else order.rows_at(step, batch, len(source), seed)

        return Buckets(feature, lengths_of(source, processor, feature), config.buckets, rows_at, f"{where}.buckets")
    return None
