"""Floating point operations of a function, the peak of a device, and the memory of a compiled function.

FLOPs are counted by walking the jaxpr. XLA's own `cost_analysis()` counts the body of a scan once, whatever its length.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

# Dense bf16 FLOP/s of one chip by the vendors' data sheets (no sparsity), by `device.device_kind` in full. Other kinds
# are unknown rather than guessed; TPU v7x is left out because a jax device may be half a chip.
_PEAKS = (
    (r"TPU v4", 275e12),
    (r"TPU (v5 ?lite|v5e)", 197e12),
    (r"TPU (v5|v5p)", 459e12),
    (r"TPU (v6 ?lite|v6e)", 918e12),
    (r"NVIDIA A100\b.*", 312e12),
    (r"NVIDIA H100 80GB HBM3", 989e12),  # SXM; the PCIe and NVL cards are slower and report other names
    (r"NVIDIA H200", 989e12),
    (r"NVIDIA B200", 2250e12),
)


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 FLOP/s of one device, None when the kind is unknown (all CPUs are)."""
    return next((peak for pattern, peak in _PEAKS if re.fullmatch(pattern, device_kind)), None)


def count(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs (2 a multiply-add) of the matrix products and convolutions in `function(*args)`, over all devices.

    Exact through jit, scan, remat, custom derivatives; products with zeros of padding and dilation do not count.
    Of a `cond` the dearest branch counts. A `while` counts once, with a warning, as its length is unknown. A kernel
    that is a custom call holds no product that can be seen: count the model built with XLA's attention.

    Args:
      args: arrays or `jax.ShapeDtypeStruct`s.
    """
    return _walk(jax.make_jaxpr(function)(*args).jaxpr)


def _walk(jaxpr: Any) -> float:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    inner = [_walk(jaxpr) for jaxpr in _jaxprs(params)]
    if name == "cond":
        return max(inner)
    if name == "while" and sum(inner):
        warnings.warn("count: a while loop does matrix products; it is counted as if it ran once.", stacklevel=2)
    times = 1
    if name == "scan":
        times = params["length"]
    elif name == "shard_map":  # its body is what one device does
        axes = params["newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"]  # renamed in jax 0.10
        times = math.prod(params["mesh"].shape[axis] for axis in axes)
    return times * sum(inner)


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(item, "jaxpr") and hasattr(item.jaxpr, "eqns"):
                yield item.jaxpr


def _dot(equation: Any) -> float:
    """2 * (elements of the result) * (length of the contraction)."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval, equation.outvars[0].aval
    return 2.0 * math.prod(out.shape) * math.prod(left.shape[d] for d in contracted)


def _convolution(equation: Any) -> float:
    """2 * batch * features out * features in (of a group) * pairs of (output place, kernel tap) on a real input."""
    params = equation.params
    left, right, out = equation.invars[0].aval, equation.invars[1].aval, equation.outvars[0].aval
    numbers = params["dimension_numbers"]
    pairs = 1
    for i, (low, _) in enumerate(params["padding"]):
        size, taps = left.shape[numbers.lhs_spec[2 + i]], right.shape[numbers.rhs_spec[2 + i]]
        dilation = params["lhs_dilation"][i]
        start = np.arange(out.shape[numbers.out_spec[2 + i]])[:, None] * params["window_strides"][i] - low
        place = start + np.arange(taps) * params["rhs_dilation"][i]
        pairs *= int(np.sum((place >= 0) & (place <= (size - 1) * dilation) & (place % dilation == 0)))
    batch, features = out.shape[numbers.out_spec[0]], out.shape[numbers.out_spec[1]]
    return 2.0 * batch * features * right.shape[numbers.rhs_spec[1]] * pairs


def memory_table(compiled: Any) -> dict[str, int]:
    """Bytes a device of a compiled function, by use; `peak` leaves out outputs that are written over donated arguments.

    compiled: the result of `jax.jit(...).lower(...).compile()`.
    """
    analysis = compiled.memory_analysis()
    table = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "aliased": analysis.alias_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
    }
    return table | {"peak": table["arguments"] + table["outputs"] - table["aliased"] + table["temporary"]}
