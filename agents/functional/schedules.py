"""Schedules: a non-negative value as a function of training progress in ``[0, 1]``."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Linear:
    """A straight line from ``start`` at progress 0 to ``end`` at progress 1, both >= 0, and constant after that."""

    start: float
    end: float = 0.0

    def __str__(self) -> str:
        return f"{self.start:g}, in a straight line to {self.end:g}"

    def __post_init__(self) -> None:
        if not all(0 <= value < math.inf for value in (self.start, self.end)):
            raise ValueError(f"schedule: expected a start and an end that are finite and >= 0, received {self}")


Schedule = float | Linear
"""A constant is a schedule too."""


def value_at(schedule: Schedule, progress: float) -> float:
    """The value at ``progress``, the share of training done, clamped to ``[0, 1]``: the last rollout may overshoot."""
    if not isinstance(schedule, Linear):
        return max(float(schedule), 0.0)
    share = min(max(progress, 0.0), 1.0)
    return max(schedule.start + share * (schedule.end - schedule.start), 0.0)
