"""Running mean and variance, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class RunningMoments:
    """Mean and variance of all samples ``[*shape]`` so far, merged batch by batch.

    Source: Chan, Golub & LeVeque 1979 (the parallel form of Welford's update).
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.mean = np.zeros(shape, np.float64)
        self.squares = np.zeros(shape, np.float64)
        self.count = 0

    @property
    def variance(self) -> NDArray[np.float64]:
        """Population variance; 1 before the second sample."""
        return np.ones_like(self.squares) if self.count < 2 else self.squares / self.count

    def update(self, samples: NDArray[Any]) -> None:
        """Update with ``samples`` ``[N, *shape]``; an empty batch changes nothing."""
        number = len(samples)
        if number == 0:
            return
        samples = np.asarray(samples, np.float64)
        mean = samples.mean(0)
        gap = mean - self.mean
        total = self.count + number
        self.squares = self.squares + np.square(samples - mean).sum(0) + gap**2 * (self.count * number / total)
        self.mean = self.mean + gap * (number / total)
        self.count = total

    def state_dict(self) -> dict[str, Any]:
        """Exact state."""
        return {"mean": self.mean.copy(), "squares": self.squares.copy(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from ``state_dict``."""
        self.mean = np.array(state["mean"], np.float64)
        self.squares = np.array(state["squares"], np.float64)
        self.count = int(state["count"])
