"""Device layouts: the mesh, the rules from logical axis names to mesh axes, and everything derived from them.

The one place that knows how arrays lie on devices. Models name the axes of their parameters and activations ("embed",
"mlp", "batch"); `RULES` says which mesh axis splits each name. A layout that cannot be is an error here, never a silent
replication.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.errors import ConfigError

# Logical name -> mesh axes. Only data x fsdp split the batch; tensor splits widths inside a layer (Megatron's
# column-row pairing).
RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "length": None,
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv": "tensor",
    "vocab": "tensor",
    "patch": None,
    "act_embed": None,
    "act_mlp": "tensor",
    "act_heads": "tensor",
}


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes. `data=0` takes every device that fsdp and tensor leave."""

    data: int = 0
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over `devices` (all by default). Axes are Auto: linen's constraints need it."""
    devices = jax.devices() if devices is None else devices
    inner = config.fsdp * config.tensor
    if inner < 1 or config.data < 0:
        raise ConfigError(f"config.mesh: found {config}, expected axes of size 1 or more (data=0: what is left).")
    data = config.data or max(1, len(devices) // inner)
    if data * inner != len(devices):
        raise ConfigError(
            f"config.mesh: data={data} x fsdp={config.fsdp} x tensor={config.tensor} = {data * inner} devices, but "
            f"there are {len(devices)}. Expected the product to be {len(devices)}; "
            f"data=0 fills up what fsdp and tensor leave."
        )
    return jax.make_mesh(
        (data, config.fsdp, config.tensor),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=devices,
    )


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Makes mesh and rules visible while a function is traced: outside it logical constraints vanish silently."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(RULES.items())):
        yield


def jit(mesh: Mesh, function: Callable[..., Any], *, versions: int = 0, **options: Any) -> Callable[..., Any]:
    """`jax.jit` closed over the mesh and the rules, in whatever thread it is called; `.lower` likewise.

    Args:
      versions: the most that may be compiled, 0 for any number. One more, for a shape that was not foreseen, is a
        RuntimeError: a step that compiles again and again would only look slow.
    """
    jitted = jax.jit(function, **options)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        with on_mesh(mesh):
            result = jitted(*args)
        if versions and jitted._cache_size() > versions:
            raise RuntimeError(
                f"{function.__name__}: compiled {jitted._cache_size()} versions, expected at most {versions}: a shape "
                "of its inputs varies."
            )
        return result

    def lower(*args: Any) -> Any:
        with on_mesh(mesh):
            return jitted.lower(*args)

    call.lower = lower
    return call


def parameter_shardings(boxed: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """Shardings of a flat {name: abstract parameter, boxed with its logical axis names}.

    Raises ConfigError for a name without a rule, two dimensions on one mesh axis, and a dimension that its axis does
    not divide.
    """
    return {name: NamedSharding(mesh, _spec(name, leaf, mesh)) for name, leaf in boxed.items()}


def _spec(name: str, leaf: Any, mesh: Mesh) -> PartitionSpec:
    logical = leaf.names if hasattr(leaf, "names") else (None,) * len(leaf.shape)
    shape = leaf.value.shape if hasattr(leaf, "value") else leaf.shape
    axes, used = [], {}
    for size, label in zip(shape, logical, strict=True):
        if label is not None and label not in RULES:
            raise ConfigError(f"parameter '{name}': no rule for its axis '{label}'. Known: {', '.join(RULES)}.")
        axis = RULES[label] if label is not None else None
        axes.append(axis)
        for one in (axis,) if isinstance(axis, str) else axis or ():
            if used.setdefault(one, label) != label or (logical.count(label) > 1 and mesh.shape[one] > 1):
                raise ConfigError(
                    f"parameter '{name}' {shape}: two of its axes {logical} fall on the mesh axis '{one}'."
                )
            if size % mesh.shape[one]:
                raise ConfigError(
                    f"parameter '{name}' {tuple(shape)}: its axis '{label}' ({size}) does not divide by "
                    f"config.mesh.{one}={mesh.shape[one]}. Choose a {label} width that does, or config.mesh.{one}=1."
                )
    return PartitionSpec(*axes)


def like_parameters(tree: Any, shardings: Mapping[str, NamedSharding], shapes: Mapping[str, Any], mesh: Mesh) -> Any:
    """Shardings for a tree that holds per-parameter leaves (optimizer state, EMA).

    A leaf lies as the parameter does where name and shape agree.
    """
    replicated = NamedSharding(mesh, PartitionSpec())

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        for key in reversed(path):
            name = getattr(key, "key", None)
            if name in shardings and leaf.shape == shapes[name].shape:
                return shardings[name]
        return replicated

    return jax.tree_util.tree_map_with_path(of, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis of every batch array is split over data x fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def check_batch(batch: int, accumulate: int, mesh: Mesh, where: str) -> None:
    """A microbatch must split evenly over the data-like axes."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch % (ways * accumulate):
        raise ConfigError(
            f"{where}: batch_size {batch} does not divide by mesh data x fsdp ({ways}) times "
            f"train.accumulate ({accumulate}). "
            f"The nearest that does is {max(1, round(batch / (ways * accumulate))) * ways * accumulate}."
        )


def local_rows(mesh: Mesh, batch: int) -> np.ndarray:
    """Positions in the global batch that this process's devices hold. Independent of how processes are numbered."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    return np.array(sorted({row for index in slices for row in range(*index[0].indices(batch))}), dtype=np.int64)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, size: int) -> dict[str, jax.Array]:
    """Host arrays with this process's rows -> global arrays of `size` rows."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v, (size, *v.shape[1:])) for k, v in batch.items()}
