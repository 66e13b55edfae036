"""Schedules: a non-negative value as a function of training progress in ``[0, 1]``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Linear:
    """A straight line from ``start`` at progress 0 to ``end`` at progress 1, both >= 0, and constant after that."""

    start: float
    end: float = 0.0

    def __post_init__(self) -> None:
        if self.start < 0 or self.end < 0:
            raise ValueError(f"schedule: expected start and end >= 0, received {self}")


Schedule = float | Linear
"""A constant is a schedule too."""


def value_at(schedule: Schedule, progress: float) -> float:
    """The value at ``progress``, the share of training done, clamped to ``[0, 1]``: the last rollout may overshoot."""
    if not isinstance(schedule, Linear):
        return max(float(schedule), 0.0)
    share = min(max(progress, 0.0), 1.0)
    return max(schedule.start + share * (schedule.end - schedule.start), 0.0)
