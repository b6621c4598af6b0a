"""Retrieval: texts find pictures, pictures find texts; recall at 1, 5 and 10, with several captions a picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from mmjax.errors import ConfigError
from mmjax.evaluators.figure import Figure, Record, Tally

RECALLS = (1, 5, 10)
_TIE = 1e-6  # two float32 dot products of unit vectors that are this close are equal up to the order of summing
_BLOCK = 4_000_000  # similarities held at a time


def ranks(queries: np.ndarray, gallery: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Rank of the best right item for each query: 1 + wrong items above it + half of the wrong items that tie with it.

    A model that gives everything one score thus ends in the middle, neither first nor last.

    Args:
      queries, gallery: [Q, E], [G, E], unit length.
      right: [Q, G] bool, at least one in each row.

    Returns:
      [Q] float64.
    """
    scores = queries @ gallery.T
    best = np.max(scores, axis=1, where=right, initial=-np.inf)[:, None]
    above = scores > best + _TIE  # never a right one
    ties = (scores >= best - _TIE) & ~above & ~right
    return 1 + above.sum(axis=1) + ties.sum(axis=1) / 2


def chance(right: np.ndarray, size: int, k: int) -> np.ndarray:
    """Probability that the first k of a random order of `size` items hold one of `right` [Q] right ones."""
    miss = np.ones(len(right))
    for drawn in range(min(k, size)):
        miss *= np.maximum(size - right - drawn, 0) / (size - drawn)
    return 1 - miss


class Retrieval:
    """`task/text_to_image_r{1,5,10}` and `task/image_to_text_r{1,5,10}`.

    Every caption is a query for its picture; a picture has found a text when any of its captions is in the first k (the
    five-caption protocol of Flickr8k and COCO; Hodosh et al., 2013; Karpathy and Fei-Fei, 2015). A picture and a text
    are right for each other if the test set says so in some row, equal keys being one thing: an identical picture or
    caption is no mistake.

    With a `gallery` of G, each query searches among G consecutive pictures, and the names end in `_of_G`. When the
    number of pictures is no multiple of G, the last gallery is the last G pictures, and only those not asked before ask
    there.

    Reads outputs `image_embedding` [B, E], `text_embedding` [B, K, E] (unit length) and batch `image_key`, `text_key`,
    `text_valid`. Keeps the embeddings; similarities exist a block at a time.
    """

    def __init__(self, task: str, *, gallery: int = 0):
        """gallery: pictures that a query searches; 0 is the whole test set."""
        self.task, self.gallery = task, gallery
        self._image: list[np.ndarray] = []
        self._image_key: list[np.ndarray] = []
        self._text: list[np.ndarray] = []
        self._text_key: list[np.ndarray] = []
        self._owner: list[np.ndarray] = []  # the picture of each text, counted over the test set
        self._records: list[Record] = []  # of the pictures, their names alone
        self._pictures = 0

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        valid = np.asarray(batch["valid"], bool) & batch.get("image_valid", True)
        texts = np.asarray(batch["text_valid"], bool)[valid]
        self._image.append(np.asarray(outputs["image_embedding"], np.float32)[valid])
        self._image_key.append(np.asarray(batch["image_key"])[valid])
        self._text.append(np.asarray(outputs["text_embedding"], np.float32)[valid][texts])
        self._text_key.append(np.asarray(batch["text_key"])[valid][texts])
        self._owner.append(self._pictures + np.nonzero(texts)[0])
        self._records += [
            {k: annotations[row][k] for k in ("id", "key") if k in annotations[row]} for row in np.flatnonzero(valid)
        ]
        self._pictures += int(valid.sum())

    def figures(self) -> list[Figure]:
        size = self.gallery or self._pictures
        if not self._pictures or not sum(map(len, self._owner)):
            raise ConfigError(f"{self.task}: no picture of the test set has a caption. Expected a 'texts' field.")
        if size > self._pictures:
            raise ConfigError(
                f"tasks.{self.task}.gallery: {size} pictures, but the test set has {self._pictures}. "
                f"Set it to {self._pictures} or fewer, or to 0 for the whole set."
            )
        suffix = f"_of_{size}" if self.gallery else ""
        figures = []
        for way, found in self._search(size).items():
            for k, expected in zip(RECALLS, found.chance.T, strict=True):
                tally = Tally(f"chance, {size} pictures")
                for hit, chance_of, picture in zip(found.rank <= k, expected, found.picture, strict=True):
                    tally.add(self._records[picture], hit, chance_of)
                figures.append(tally.figure(f"{self.task}/{way}_r{k}{suffix}"))
        return figures

    def _search(self, size: int) -> dict[str, _Found]:
        """{direction: what its queries found}."""
        image, text, owner = np.concatenate(self._image), np.concatenate(self._text), np.concatenate(self._owner)
        _, image_id = np.unique(np.concatenate(self._image_key), return_inverse=True)
        _, text_id = np.unique(np.concatenate(self._text_key), return_inverse=True)
        # said[t, i] > 0: some row of the test set pairs the text t with the picture i
        shape = int(text_id.max()) + 1, int(image_id.max()) + 1
        said = csr_array((np.ones(len(owner), np.int32), (text_id, image_id[owner])), shape=shape)
        said_of = said.T.tocsr()
        found: dict[str, list[_Found]] = {"text_to_image": [], "image_to_text": []}
        for images, asking in _galleries(self._pictures, size):
            texts = np.flatnonzero((owner >= images[0]) & (owner <= images[-1]))
            for block in _blocks(texts[owner[texts] >= asking], size):
                right = said[text_id[block]][:, image_id[images]].toarray() > 0
                found["text_to_image"].append(_find(text[block], image[images], right, owner[block]))
            # a picture without captions cannot ask
            for block in _blocks(np.intersect1d(images[images >= asking], owner[texts]), len(texts)):
                right = said_of[image_id[block]][:, text_id[texts]].toarray() > 0
                found["image_to_text"].append(_find(image[block], text[texts], right, block))
        return {way: _Found(*map(np.concatenate, zip(*parts, strict=True))) for way, parts in found.items()}


class _Found(NamedTuple):
    """Of Q queries: rank [Q], what chance gives at each of RECALLS [Q, 3], and the picture that they belong to [Q]."""

    rank: np.ndarray
    chance: np.ndarray
    picture: np.ndarray


def _find(queries: np.ndarray, gallery: np.ndarray, right: np.ndarray, picture: np.ndarray) -> _Found:
    expected = [chance(right.sum(axis=1), len(gallery), k) for k in RECALLS]
    return _Found(ranks(queries, gallery, right), np.stack(expected, axis=1), picture)


def _galleries(pictures: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """(the pictures of a gallery, the first of them that asks)."""
    for start in range(0, pictures, size):
        stop = min(start + size, pictures)
        yield np.arange(stop - size, stop), start


def _blocks(rows: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """The rows in pieces whose similarities to `width` items fit the block."""
    step = max(1, _BLOCK // max(width, 1))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
