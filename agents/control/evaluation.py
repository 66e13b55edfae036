"""Evaluate an agent over whole episodes; nothing is trained and normalization statistics stay frozen."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from agents.control.environments import EnvLike, add_place, autoreset_mode, make_vector, reset


class Predictor(Protocol):
    """Our agents and those of Stable-Baselines3."""

    def predict(self, observation: Any, *, deterministic: bool = ...) -> tuple[NDArray[Any], object]:  # Any: SB3's type
        """Actions for a batch of observations, and a recurrent state."""


def evaluate(
    agent: Predictor, envs: EnvLike, episodes: int = 100, *, seed: int | None = None, deterministic: bool = True
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns ``[episodes]`` in reward units and lengths ``[episodes]`` in steps.

    Each environment plays a fixed share, so short episodes are not overrepresented. ``envs`` is a vector environment in
    any autoreset mode, an ``Env`` or an id; ``seed`` is of its first reset; ``deterministic``: act greedily.
    """
    if episodes < 1:
        raise ValueError(f"episodes: expected 1 or more, received {episodes}")
    envs = make_vector(envs, 1)
    mode, num_envs = autoreset_mode(envs), envs.num_envs
    left = np.array([(episodes + i) // num_envs for i in range(num_envs)])
    observations = reset(envs, seed)
    returns, lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
    resetting = np.zeros(num_envs, np.bool_)
    finished: list[tuple[float, int]] = []
    while left.any():
        actions, _ = agent.predict(observations, deterministic=deterministic)
        try:
            observations, rewards, terminated, truncated, _ = envs.step(actions)
        except Exception as fault:
            add_place(fault, envs, f"step {lengths.max()} of an episode of evaluation")
            raise
        returns += np.where(resetting, 0.0, rewards)
        lengths += ~resetting
        ended = (terminated | truncated) & ~resetting
        if ended.any():
            finished += [(returns[i], lengths[i]) for i in np.flatnonzero(ended & (left > 0))]
            left[ended & (left > 0)] -= 1
            returns[ended], lengths[ended] = 0.0, 0
            if mode is AutoresetMode.DISABLED:
                observations, _ = envs.reset(options={"reset_mask": ended})
        resetting = ended if mode is AutoresetMode.NEXT_STEP else resetting
    pairs = list(zip(*finished, strict=True))
    return np.array(pairs[0], np.float64), np.array(pairs[1], np.int64)
