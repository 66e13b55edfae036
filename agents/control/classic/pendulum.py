"""Pendulum as one array of environments. See `base` for what it shares with the other tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.envs.classic_control.utils import verify_number_and_cast
from gymnasium.spaces import Box

from agents.control.classic.base import ClassicVectorEnv

MAX_SPEED = 8.0  # rad/s
MAX_TORQUE = 2.0  # N m
DT = 0.05  # s
HIGH = np.array([1.0, 1.0, MAX_SPEED], dtype=np.float32)
START = {"x_init": np.pi, "y_init": 1.0}  # rad, rad/s: half-widths of the start


class PendulumVectorEnv(ClassicVectorEnv):
    """Swing a pendulum up and hold it: `gymnasium.envs.classic_control.PendulumEnv`, vectorized.

    | Observation | Box((3,), float32): cos and sin of the angle, angular velocity (rad/s) |
    | Action      | Box(-2, 2, (1,), float32): torque (N m), clipped to the bounds |
    | Reward      | -(angle² + 0.1 velocity² + 0.001 torque²), the angle in [-pi, pi] from upright |
    | Termination | never |
    | Truncation  | after ``max_episode_steps`` (the id's: 200) |
    """

    state_size = 2
    spaces = Box(-HIGH, HIGH, dtype=np.float32), Box(-MAX_TORQUE, MAX_TORQUE, shape=(1,), dtype=np.float32)

    def __init__(self, num_envs: int, *, g: float = 10.0, **shared: Any) -> None:
        super().__init__(num_envs, **shared)
        self._pull = 3 * g / 2.0  # rad/s²: 3 g / (2 l) of a rod of 1 m and 1 kg
        self._two = np.full(num_envs, 2.0)

    def _draw(self, generator: np.random.Generator, options: dict[str, Any] | None) -> np.ndarray:
        highs = [verify_number_and_cast((options or {}).get(key, default)) for key, default in START.items()]
        return np.array([generator.uniform(-high, high) for high in highs])

    def _observe(self, state: np.ndarray) -> np.ndarray:
        return np.stack((np.cos(state[0]), np.sin(state[0]), state[1]), axis=1)

    def _advance(self, state: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        angle, velocity = state
        torque = np.clip(actions[:, 0].astype(np.float32), -MAX_TORQUE, MAX_TORQUE)
        from_upright = (angle + np.pi) % (2 * np.pi) - np.pi
        # pow with a vector of twos, because the original's `**` is pow; see `acrobot`
        squares = np.power(from_upright, self._two) + 0.1 * np.power(velocity, self._two)
        costs = squares + 0.001 * np.power(torque, self._two.astype(np.float32))
        velocity = velocity + (self._pull * np.sin(angle) + 3.0 * torque) * DT
        velocity = np.clip(velocity, -MAX_SPEED, MAX_SPEED)
        state = np.stack((angle + velocity * DT, velocity))
        return state, -costs, np.zeros(self.num_envs, dtype=np.bool_)
