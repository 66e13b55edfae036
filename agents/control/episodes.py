"""Returns and lengths of finished episodes; masked reset steps are not counted."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray


class EpisodeStatistics:
    """Running sums of every environment, and the last ``window`` finished episodes.

    Rewards are those of the environment: never normalized, never clipped, summed in float64.
    """

    def __init__(self, num_envs: int, *, window: int = 100) -> None:
        self.returns = np.zeros(num_envs, np.float64)
        self.lengths = np.zeros(num_envs, np.int64)
        self.finished: deque[tuple[float, int]] = deque(maxlen=window)
        self.count = 0

    def add(self, rewards: NDArray[Any], ended: NDArray[np.bool_], mask: NDArray[np.bool_]) -> None:
        """One step of every environment, ``[B]`` each; where ``mask`` is False the step is ignored."""
        self.returns += np.where(mask, rewards, 0.0)
        self.lengths += mask
        if ended.any():
            for i in np.flatnonzero(ended):
                self.finished.append((float(self.returns[i]), int(self.lengths[i])))
                self.count += 1
            self.returns[ended] = 0.0
            self.lengths[ended] = 0

    def abandon(self) -> None:
        """Forget the episodes under way."""
        self.returns[:], self.lengths[:] = 0.0, 0

    def metrics(self) -> dict[str, float]:
        """Mean return and length over the window, and the number of finished episodes."""
        if not self.finished:
            return {"rollout/episodes": 0.0}
        returns, lengths = zip(*self.finished, strict=True)
        return {
            "rollout/return_mean": float(np.mean(returns)),
            "rollout/length_mean": float(np.mean(lengths)),
            "rollout/episodes": float(self.count),
        }

    def state_dict(self) -> dict[str, Any]:
        """Exact state."""
        return {
            "returns": self.returns.copy(),
            "lengths": self.lengths.copy(),
            "finished": [list(episode) for episode in self.finished],
            "count": self.count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from ``state_dict``."""
        self.returns = np.array(state["returns"], np.float64)
        self.lengths = np.array(state["lengths"], np.int64)
        self.finished.clear()
        self.finished.extend((float(r), int(n)) for r, n in state["finished"])
        self.count = int(state["count"])
