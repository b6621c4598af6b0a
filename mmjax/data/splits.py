"""Train against validation: a side for each picture, and the pictures that two sets share."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mmjax.data.index import index
from mmjax.data.mixture import Mixture
from mmjax.data.sources import Source, Subset
from mmjax.errors import ConfigError
from mmjax.metrics import progress

READ_ALL = 200_000  # rows up to which every picture is read to know its content; above, a picture is its name


def contents(source: Source) -> np.ndarray:
    """[N] uint64: a hash of what is in each row's picture; rows that may not part from each other have equal ones.

    Read once and kept by the source's fingerprint (6,000 pictures of 8 KB: 0.6 to 1.4 s). A picture that cannot be
    read, and every picture of a source with more than READ_ALL rows, counts by its name instead; a row without a
    picture by its id.
    """
    if isinstance(source, Mixture):
        return np.concatenate([contents(part) for part in source.sources.values()])
    if isinstance(source, Subset):
        return contents(source.source)[source.rows]
    return index(f"contents of {source.fingerprint}", [], lambda: {"hash": _contents(source)})["hash"]


def _contents(source: Source) -> np.ndarray:
    def of(i: int) -> int:
        record = source.annotations(i)
        data = f"name {record.get('key') or record['id']}".encode()
        if len(source) <= READ_ALL and not record.get("key"):
            with contextlib.suppress(OSError, ConfigError):  # the pipeline counts it when it reads it
                data = source[i].get("image") or data
        return _hash(data)

    if len(source) > READ_ALL:
        print(f"{source.name}: {len(source):,} rows, too many to read each picture: equal names count as equal ones.")
    with ThreadPoolExecutor(4) as pool:
        hashes = pool.map(of, range(len(source)))
        bar = progress(range(len(source)), f"pictures of {source.name}", unit="row")
        return np.fromiter((next(hashes) for _ in bar), np.uint64, len(source))


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def holdout(source: Source, share: float, seed: int = 0) -> tuple[Subset, Subset]:
    """Splits off about `share` of the pictures for validation -> (train, validation).

    The side is a hash of the picture's content and the seed: identical pictures land on one side, whatever their names,
    and a row keeps its side when others are added. Rows with a `key` (sentences that stand over several pictures) stay
    with the rows of that key.
    """
    if not 0 < share < 1:
        raise ConfigError(f"holdout: found a share of {share}, expected a number between 0 and 1.")
    known, inverse = np.unique(contents(source), return_inverse=True)
    salt = f"holdout:{seed}:".encode()
    drawn = np.array([_hash(salt + int(h).to_bytes(8, "big")) for h in known], np.uint64)
    side = (drawn < np.uint64(share * 2.0**64))[inverse]
    if side.all() or not side.any():
        raise ConfigError(
            f"{source.name}: holding out {share:.0%} of {len(source)} rows leaves {int((~side).sum())} to train on and "
            f"{int(side.sum())} to validate on. Give a separate validation file, or another share."
        )
    train, validation = np.flatnonzero(~side), np.flatnonzero(side)
    return Subset(source, train, f"{source.name} (train)"), Subset(source, validation, f"{source.name} (validation)")


def overlap(
    train: Mapping[str, Source], others: Mapping[str, Source], say: Callable[[str], None] = print
) -> dict[tuple[str, str], int]:
    """{(training set, other set): rows of the other whose picture is in the training set}; says each that is not 0."""
    found = {}
    seen = {name: np.unique(contents(source)) for name, source in train.items()}
    for other, source in others.items():
        for name, pictures in seen.items():
            rows = np.flatnonzero(np.isin(contents(source), pictures))
            found[name, other] = len(rows)
            if len(rows):
                first = ", ".join(repr(source.annotations(int(i))["id"]) for i in rows[:3])
                say(
                    f"warning: {len(rows)} of {len(source)} rows of {source.name} ({other}) show pictures that "
                    f"{train[name].name} trains on: {first}, ... Figures on them are too good."
                )
    return found
