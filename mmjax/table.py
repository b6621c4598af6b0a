"""Tables as text: cells in columns."""

from __future__ import annotations

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]], align: str = "", *, head: bool = True) -> str:
    """Rows of cells as text, two blanks between columns.

    Args:
      align: "<" or ">" for each column; without, all are left.
      head: whether the first row is a heading, which is underlined.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = align or "<" * len(widths)
    lines = ["  ".join(f"{c:{a}{w}}" for a, c, w in zip(align, row, widths, strict=True)).rstrip() for row in rows]
    if head:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
