"""The numbers of a folder, tensor by tensor into arrays that are born in their shardings; and back into tensors."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from mmjax.errors import ConfigError
from mmjax.models.multimodal import HeadSpec, ModelConfig, Multimodal, TokenIds, initialise
from mmjax.pretrained.family import Described, Shape, Tensor
from mmjax.pretrained.folder import Folder
from mmjax.pretrained.resizing import add_rows, resize_positions
from mmjax.pretrained.tensor_files import Stored

GRID = "patch_encoder/position"
_BLOCK = 2**24  # numbers of tied copies that are compared at a time


def described_model(described: Described) -> Multimodal:
    """The model that the folder itself describes."""
    from mmjax.config import build

    whole = {"patch_encoder": None, **described.model}
    return Multimodal(
        config=build(ModelConfig, whole, "the folder's model"),
        image_size=described.image_size or (224, 224),
        tokens=TokenIds(
            described.vocab_size, **{k: v for k, v in described.token_ids.items() if k in TokenIds._fields}
        ),
        heads=tuple(HeadSpec(name, outputs, source) for name, (outputs, source) in described.heads.items()),
        contrastive=described.contrastive,
    )


def described_shapes(described: Described) -> dict[str, Shape]:
    """{flat name: shape} of the parameters that the folder's tensors hold."""
    import flax.linen as nn

    from mmjax.train_step import flat_names

    model = described_model(described)
    traced = flat_names(nn.meta.unbox(jax.eval_shape(lambda key: initialise(model, key), jax.random.key(0))))
    held = [name for tensor in described.tensors for name in tensor.ours]
    if unknown := [name for name in held if name not in traced]:
        raise ValueError(f"family: no parameter {unknown[0]} in the model that it describes: {sorted(traced)}")
    return {name: tuple(traced[name].shape) for name in held}


class Weights:
    """The parameters that a folder gives.

    Attributes:
      shapes: {flat name: shape} of them, as in the folder.

    Raises:
      ConfigError: a tensor of another shape than config.json says.
    """

    def __init__(self, folder: Folder):
        self.folder, self.shapes = folder, described_shapes(folder.described)
        for tensor in folder.described.tensors:
            expected = tensor.layout.their_shape([self.shapes[name] for name in tensor.ours])
            for key in folder.keys[tensor.theirs]:
                stored = folder.tensors[key]
                if stored.shape != tuple(expected):
                    raise ConfigError(
                        f"{folder.where}: the tensor '{key}' of '{stored.file}' is {list(stored.shape)}, expected "
                        f"{list(expected)} by config.json (for {', '.join(tensor.ours)})."
                    )

    def adapts(self, name: str, shape: Shape) -> str:
        """How a parameter of the folder becomes one of another shape, in words; "" where it cannot."""
        own, vocabulary = self.shapes[name], self.folder.described.vocab_size
        if name == GRID and own[2] == shape[2]:
            return f"positions resized from {own[0]} x {own[1]} to {shape[0]} x {shape[1]}"
        axis = _grown(own, shape)
        if axis is not None and own[axis] == vocabulary:
            return f"{shape[axis] - vocabulary} rows added to {vocabulary}"
        return ""

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """wanted: {name: shape with a sharding} -> arrays of those types and shapes, each device's part read by itself.

        The largest come first: what one needs beside the weights (its mapped file, a copy) is then there while little
        else is.
        """
        given = {}
        for tensor in sorted(self.folder.described.tensors, key=lambda t: -self._stored(t).nbytes):
            if any(name in wanted for name in tensor.ours):
                given |= self._read(tensor, wanted)
        return given

    def _stored(self, tensor: Tensor) -> Stored:
        return self.folder.tensors[self.folder.keys[tensor.theirs][0]]

    def _read(self, tensor: Tensor, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        self._compare_copies(tensor)
        parts = tensor.layout.to_ours(self._stored(tensor).map(), [self.shapes[name] for name in tensor.ours])
        given = {}
        for name, part in zip(tensor.ours, parts, strict=True):
            if name in wanted:
                given[name] = _placed(self._fitted(name, part, tuple(wanted[name].shape)), wanted[name])
        return jax.block_until_ready(given)  # the file is mapped no longer than until here

    def _fitted(self, name: str, part: np.ndarray, shape: Shape) -> np.ndarray:
        if part.shape == shape:
            return part
        if not self.adapts(name, shape):
            raise ConfigError(
                f"{self.folder.where}: '{name}' is {list(part.shape)} in '{self.folder.path}', {shape} here."
            )
        if name == GRID:
            return resize_positions(part, shape[:2])
        axis = _grown(part.shape, shape)
        return add_rows(part, axis, shape[axis])

    def _compare_copies(self, tensor: Tensor) -> None:
        first, *others = self.folder.keys[tensor.theirs]
        one = self.folder.tensors[first].map().reshape(-1)
        for key in others:
            other = self.folder.tensors[key].map().reshape(-1)
            if not all(np.array_equal(one[i : i + _BLOCK], other[i : i + _BLOCK]) for i in range(0, one.size, _BLOCK)):
                raise ConfigError(
                    f"{self.folder.where}: '{first}' and '{key}' of '{self.folder.path}' are one parameter here, but "
                    "differ in the files."
                )


def _grown(old: Shape, new: Shape) -> int | None:
    """The one axis along which `new` is longer."""
    if len(old) != len(new):
        return None
    differing = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    return differing[0] if len(differing) == 1 and new[differing[0]] > old[differing[0]] else None


def _placed(whole: np.ndarray, spec: jax.ShapeDtypeStruct) -> jax.Array:
    """A copy of each device's part, one after another, so that few are in memory twice; nothing keeps the file mapped.

    (`jax.make_array_from_callback` makes all the parts first: a large table would be there three times.)
    """
    parts = []
    for device, index in spec.sharding.addressable_devices_indices_map(whole.shape).items():
        part = np.array(whole[index], dtype=spec.dtype, order="C")
        parts.append(jax.block_until_ready(jax.device_put(part, device)))
    return jax.make_array_from_single_device_arrays(whole.shape, spec.sharding, parts)
