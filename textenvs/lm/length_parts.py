"""Batches of rows of similar length, for models that need padding."""

from __future__ import annotations

from torch import Tensor

PART_OVERHEAD = 32
"""Cost of one more forward pass, in positions of a small model (measured on a CPU: 4 layers of width 192)."""


def length_parts(lengths: Tensor) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Group rows of similar length such that padding plus passes cost least (dynamic programming over lengths).

    Returns:
        ``order [B]``, the rows by length, and ``(begin, end, width)`` of each part in that order.
    """
    order = lengths.argsort(stable=True)
    ranked = lengths[order].tolist()
    borders = [i for i in range(1, len(ranked)) if ranked[i] != ranked[i - 1]] + [len(ranked)]
    cost, came_from = [0.0], [0]
    for j, end in enumerate(borders):
        begins = [0, *borders[:j]]
        options = [cost[i] + (end - begin) * ranked[end - 1] + PART_OVERHEAD for i, begin in enumerate(begins)]
        best = min(range(len(options)), key=options.__getitem__)
        cost.append(options[best])
        came_from.append(best)
    parts, j = [], len(borders)
    while j > 0:
        i = came_from[j]
        end = borders[j - 1]
        parts.append((borders[i - 1] if i > 0 else 0, end, max(1, ranked[end - 1])))
        j = i
    return order, parts[::-1]
