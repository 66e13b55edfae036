"""How good is an agent? Whole episodes in fresh environments; nothing is learned, normalized statistics stay frozen."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from agents.control.environments import autoreset_mode


def evaluate(
    agent: Any, envs: VectorEnv, episodes: int = 100, *, seed: int | None = None, deterministic: bool = True
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns and lengths of ``episodes`` episodes.

    Each environment plays a share fixed beforehand, so short episodes are not counted more often than long ones.

    Args:
        agent: has ``predict(observations, deterministic=...)``, as ours and SB3's do.
        envs: in any autoreset mode.
        episodes: how many, >= 1.
        seed: of the environments' first reset.
        deterministic: act greedily.

    Returns:
        returns ``[episodes]`` in reward units, and lengths ``[episodes]`` in steps.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, received {episodes}")
    mode, num_envs = autoreset_mode(envs), envs.num_envs
    left = np.array([(episodes + i) // num_envs for i in range(num_envs)])
    observations, _ = envs.reset(seed=seed)
    returns, lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
    resetting = np.zeros(num_envs, np.bool_)
    finished: list[tuple[float, int]] = []
    while left.any():
        actions, _ = agent.predict(observations, deterministic=deterministic)
        observations, rewards, terminated, truncated, _ = envs.step(actions)
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
