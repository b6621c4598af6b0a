"""How PyTorch arranges the numbers of a tensor, and how we do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmjax.pretrained.family import Shape


@dataclass(frozen=True)
class Same:
    """The same numbers in the same order; only the grouping into dimensions may differ. theirs: the shape in the file
    where it is not ours, such as (1, 1, -1).
    """

    theirs: Shape = ()

    def their_shape(self, shapes: Sequence[Shape]) -> Shape:
        (own,) = shapes
        if not self.theirs:
            return tuple(own)
        rest = math.prod(own) // math.prod(d for d in self.theirs if d != -1)
        return tuple(rest if d == -1 else d for d in self.theirs)

    def to_ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [tensor.reshape(shapes[0])]

    def to_theirs(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return arrays[0].reshape(self.their_shape([a.shape for a in arrays]))


@dataclass(frozen=True)
class Linear:
    """torch.nn.Linear's weight [out, in] <-> kernels [in, out]; several kernels lie one after another along `out`
    (fused qkv, MultiheadAttention's in_proj).
    """

    def their_shape(self, shapes: Sequence[Shape]) -> Shape:
        return (sum(s[1] for s in shapes), shapes[0][0])

    def to_ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        ends = np.cumsum([s[1] for s in shapes])
        return [tensor[end - s[1] : end].T for s, end in zip(shapes, ends, strict=True)]

    def to_theirs(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([a.T for a in arrays], axis=0)


@dataclass(frozen=True)
class Joined:
    """Arrays of ours one after another along `axis`, not transposed: fused biases (axis 0), GPT-2's Conv1D (axis 1)."""

    axis: int = 0

    def their_shape(self, shapes: Sequence[Shape]) -> Shape:
        whole = list(shapes[0])
        whole[self.axis] = sum(s[self.axis] for s in shapes)
        return tuple(whole)

    def to_ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        cuts = np.cumsum([s[self.axis] for s in shapes])[:-1]
        return np.split(tensor, cuts, axis=self.axis)

    def to_theirs(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(list(arrays), axis=self.axis)


@dataclass(frozen=True)
class Patches:
    """torch.nn.Conv2d's weight [out, channels, p, p] of a patch projection <-> kernel [p * p * channels, out], pixels
    of a patch row by row, channels last.
    """

    patch: int
    channels: int = 3

    def their_shape(self, shapes: Sequence[Shape]) -> Shape:
        return (shapes[0][1], self.channels, self.patch, self.patch)

    def to_ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [tensor.transpose(2, 3, 1, 0).reshape(shapes[0])]

    def to_theirs(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        whole = arrays[0].reshape(self.patch, self.patch, self.channels, -1)
        return np.ascontiguousarray(whole.transpose(3, 2, 0, 1))


@dataclass(frozen=True)
class Taps:
    """torch.nn.Conv1d's weight [out, in, taps] <-> kernel [taps * in, out], tap by tap."""

    taps: int

    def their_shape(self, shapes: Sequence[Shape]) -> Shape:
        return (shapes[0][1], shapes[0][0] // self.taps, self.taps)

    def to_ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [tensor.transpose(2, 1, 0).reshape(shapes[0])]

    def to_theirs(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        whole = arrays[0].reshape(self.taps, -1, arrays[0].shape[1])
        return np.ascontiguousarray(whole.transpose(2, 1, 0))


@dataclass(frozen=True)
class Positions:
    """A table of positions, the class token's first: [1 + h * w, D] (or with a leading 1) <-> cls_position [1, 1, D]
    and position [h, w, D].
    """

    leading: bool = False

    def their_shape(self, shapes: Sequence[Shape]) -> Shape:
        (_, _, width), (h, w, _) = shapes
        return (1, 1 + h * w, width) if self.leading else (1 + h * w, width)

    def to_ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        rows = tensor.reshape(-1, tensor.shape[-1])
        return [rows[:1].reshape(shapes[0]), rows[1:].reshape(shapes[1])]

    def to_theirs(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        cls, grid = arrays
        rows = np.concatenate([cls.reshape(1, -1), grid.reshape(-1, grid.shape[-1])])
        return rows[None] if self.leading else rows


SAME, LINEAR, JOINED, CONV1D = Same(), Linear(), Joined(), Joined(axis=1)
