"""Running statistics for observations and rewards: one for all environments, in float64, frozen in evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.functional.running_moments import RunningMoments

LIMIT = 10.0
"""Of what is normalized, in standard deviations."""


class ObservationNormalizer:
    """Observations to mean 0 and standard deviation 1, clipped; the statistics grow only when ``update`` is called.

    The collector calls ``update`` once a rollout with the observations that were acted on; everything seen during a
    rollout, final observations included, is therefore normalized alike, and evaluation changes nothing. Of ``size``
    columns the last ``free`` pass unchanged (an action mask).
    """

    def __init__(self, size: int, *, free: int = 0) -> None:
        self.moments = RunningMoments((size - free,))
        self.free = free
        self._refresh()

    def _refresh(self) -> None:
        self._shift = self.moments.mean.astype(np.float32)
        self._scale = (1.0 / np.sqrt(self.moments.variance + 1e-8)).astype(np.float32)

    def update(self, observations: NDArray[np.float32]) -> None:
        """Update the statistics from raw ``observations`` ``[N, size]``."""
        self.moments.update(observations[:, : self.moments.mean.shape[0]])
        self._refresh()

    def __call__(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalized copy of raw ``observations`` ``[..., size]``."""
        width = self.moments.mean.shape[0]
        scaled: NDArray[np.float32] = np.clip((observations[..., :width] - self._shift) * self._scale, -LIMIT, LIMIT)
        if self.free == 0:
            return scaled
        return np.concatenate([scaled, observations[..., width:]], axis=-1)

    def state_dict(self) -> dict[str, Any]:
        """Exact state."""
        return self.moments.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from ``state_dict``."""
        self.moments.load_state_dict(state)
        self._refresh()


class RewardScaler:
    """Rewards divided by the standard deviation of the discounted return; never shifted, so signs keep their meaning.

    Source: Engstrom et al. 2020 (arXiv:2005.12729), sec. 3, as OpenAI baselines' VecNormalize does it, with the
    accumulator zeroed at every end of an episode, termination or time limit. The accumulators are those of ``num_envs``
    environments, the statistic is shared.
    """

    def __init__(self, num_envs: int, gamma: float, moments: RunningMoments | None = None) -> None:
        self.moments = RunningMoments() if moments is None else moments
        self.running = np.zeros(num_envs, np.float64)
        self.gamma = gamma

    def __call__(
        self, rewards: NDArray[np.float32], ended: NDArray[np.bool_], mask: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Scale ``rewards [T, B]``, reward units, by statistics that they join where ``mask [T, B]`` is True."""
        seen = np.empty(rewards.shape, np.float64)
        for t in range(len(rewards)):
            self.running = np.where(mask[t], self.running * self.gamma + rewards[t], self.running)
            seen[t] = self.running
            self.running = np.where(mask[t] & ended[t], 0.0, self.running)
        self.moments.update(seen[mask])
        scaled = rewards / np.sqrt(self.moments.variance + 1e-8)
        return np.clip(scaled, -LIMIT, LIMIT).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Exact state."""
        return {"moments": self.moments.state_dict(), "running": self.running.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from ``state_dict``."""
        self.moments.load_state_dict(state["moments"])
        self.running = np.array(state["running"], np.float64)
