"""Rows of the families' tables of tensors: a module of theirs and one of ours at a time, a layer at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from mmjax.pretrained.family import Layout, Tensor
from mmjax.pretrained.layouts import LINEAR, SAME

Table = tuple[Tensor, ...]


def same(theirs: str, ours: str, *older: str, layout: Layout = SAME) -> Table:
    """One tensor that is one parameter."""
    return (Tensor(theirs, (ours,), layout, older),)


def linear(theirs: str, ours: str, *older: str, bias: bool = True, layout: Layout = LINEAR) -> Table:
    """torch.nn.Linear <-> Dense. older: names that the module had in other releases."""
    weight = Tensor(f"{theirs}.weight", (f"{ours}/kernel",), layout, tuple(f"{o}.weight" for o in older))
    return (weight, *(same(f"{theirs}.bias", f"{ours}/bias", *(f"{o}.bias" for o in older)) if bias else ()))


def norm(theirs: str, ours: str, *older: str, bias: bool = True) -> Table:
    """torch.nn.LayerNorm, or an RMSNorm without bias <-> Norm."""
    weight = same(f"{theirs}.weight", f"{ours}/scale", *(f"{o}.weight" for o in older))
    return weight + (same(f"{theirs}.bias", f"{ours}/bias", *(f"{o}.bias" for o in older)) if bias else ())


def under(table: Iterable[Tensor], theirs: str, ours: str, *older: str) -> Table:
    """The table with prefixes, "" or such as "encoder.layer.0." and "transformer/block_00/". older: their prefixes in
    other releases; any of them may stand before any name of a tensor.
    """

    def placed(tensor: Tensor) -> Tensor:
        names = [f"{prefix}{name}" for prefix in (theirs, *older) for name in (tensor.theirs, *tensor.also)]
        return tensor._replace(theirs=names[0], ours=tuple(f"{ours}{o}" for o in tensor.ours), also=tuple(names[1:]))

    return tuple(map(placed, table))


def layers(table: Sequence[Tensor], depth: int, theirs: str, ours: str, *older: str) -> Table:
    """The table of one layer -> of all. theirs, older: their prefixes, {} for the number; ours: our stack."""
    return tuple(
        tensor
        for i in range(depth)
        for tensor in under(table, theirs.format(i), f"{ours}/block_{i:02d}/", *(o.format(i) for o in older))
    )


def prefix_of(keys: Collection[str] | None, prefix: str, written: bool) -> str:
    """The prefix that the keys of a file have, or "". Without keys, what an export writes."""
    if keys is None:
        return prefix if written else ""
    return prefix if any(key.startswith(prefix) for key in keys) else ""


def chosen(keys: Collection[str] | None, *prefixes: str) -> str:
    """The first of the prefixes that a key of a file has; else the first, which an export writes."""
    return next((p for p in prefixes if any(key.startswith(p) for key in keys or ())), prefixes[0])


def holds(keys: Collection[str] | None, key: str, written: bool) -> bool:
    """Whether an optional tensor is in the files. Without keys, whether an export writes it."""
    return written if keys is None else key in keys
