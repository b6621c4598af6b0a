"""Durations: "100 steps", "2 epochs", "5000 examples", "5%" or a plain number of steps, turned into steps."""

from __future__ import annotations

import math
import re

from mmjax.errors import ConfigError, did_you_mean

UNITS = ("steps", "epochs", "examples", "%")
_FORM = re.compile(r"\s*(\d[\d_]*(?:\.\d+)?(?:e\d+)?)\s*([a-z%]*)\s*", re.IGNORECASE)


def steps(
    value: str | int | float, *, total: int = 0, batch_size: int = 0, rows: int = 0, where: str = "duration"
) -> int:
    """Number of steps that `value` stands for.

    Args:
      value: a number (steps), or text with one unit of `UNITS` (singular or plural).
      total: steps of the run; "N%" is a share of it, rounded to the nearest step.
      batch_size: rows a step; rows: rows an epoch. Epochs and examples round up to whole steps.
      where: config path for messages.

    Raises:
      ConfigError: no number, an unknown unit, two units, a part of a step, or a unit that has no meaning here.
    """
    found = _FORM.fullmatch(str(value))
    if isinstance(value, bool) or not found:
        raise ConfigError(
            f"{where}: found {value!r}, expected one number with one unit, as in '100 steps', '2 epochs' or '5%'."
        )
    number, unit = float(found[1].replace("_", "")), found[2].lower() or "steps"
    unit = unit if unit == "%" or unit.endswith("s") else unit + "s"
    if unit not in UNITS:
        raise ConfigError(
            f"{where}: found unit '{found[2]}', expected one of {', '.join(UNITS)}.{did_you_mean(unit, UNITS)}"
        )
    if unit == "steps":
        if not number.is_integer():
            raise ConfigError(f"{where}: found {value!r}, expected a whole number of steps.")
        return int(number)
    if unit == "%":
        _need(total, where, value, "the number of steps of the run")
        return math.floor(number / 100 * total + 0.5)
    _need(batch_size, where, value, "a batch size")
    if unit == "epochs":
        _need(rows, where, value, "a data set of known length")
    # Rounded before ceil: 0.1 * 30 is 3.0000000000000004 and must not become 4.
    return math.ceil(round(number * (rows if unit == "epochs" else 1) / batch_size, 9))


def _need(known: int, where: str, value: object, what: str) -> None:
    if known <= 0:
        raise ConfigError(f"{where}: {value!r} needs {what}, which is not known here. Give it in steps.")
