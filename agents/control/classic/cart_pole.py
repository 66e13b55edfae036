"""CartPole as one array of environments. See `base` for what it shares with the other tasks.

Gymnasium has a vector CartPole, but only with ``NEXT_STEP`` autoreset, whose reset rows are not transitions, with one
generator for all, and without a state that can be saved; hence this one. Its dynamics are the same.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete

from agents.control.classic.base import ClassicVectorEnv

GRAVITY = 9.8  # m/s²
MASS_POLE = 0.1  # kg
MASS = MASS_POLE + 1.0  # kg, pole and cart
HALF_LENGTH = 0.5  # m
POLE_MOMENT = MASS_POLE * HALF_LENGTH  # kg m
FORCES = np.array([-10.0, 10.0])  # N, by action
TAU = 0.02  # s
MAX_POSITION = 2.4  # m
MAX_ANGLE = 12 * 2 * math.pi / 360  # rad
LIMITS = np.array([[MAX_POSITION], [MAX_ANGLE]])
HIGH = np.array([2 * MAX_POSITION, np.inf, 2 * MAX_ANGLE, np.inf], dtype=np.float32)


class CartPoleVectorEnv(ClassicVectorEnv):
    """Balance a pole on a cart: `gymnasium.envs.classic_control.CartPoleEnv`, vectorized.

    | Observation | Box((4,), float32): position (m), velocity (m/s), angle (rad), angular velocity (rad/s) |
    | Action      | Discrete(2): push left, push right, with 10 N |
    | Reward      | 1 each step; with ``sutton_barto_reward`` 0, and -1 when the pole has fallen |
    | Termination | position beyond 2.4 m or angle beyond 12 degrees |
    | Truncation  | after ``max_episode_steps`` (the id's: 500) |
    """

    state_size, start = 4, (-0.05, 0.05)
    spaces = Box(-HIGH, HIGH, dtype=np.float32), Discrete(2)

    def __init__(self, num_envs: int, *, sutton_barto_reward: bool = False, **shared: Any) -> None:
        super().__init__(num_envs, **shared)
        self._sutton_barto_reward = sutton_barto_reward

    def _advance(self, state: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        sine, cosine = np.sin(state[2]), np.cos(state[2])
        swing = POLE_MOMENT * np.square(state[3])
        swing *= sine
        swing += FORCES.take(actions)
        swing /= MASS
        inertia = np.square(cosine)
        inertia *= MASS_POLE
        inertia /= MASS
        np.subtract(4.0 / 3.0, inertia, out=inertia)
        inertia *= HALF_LENGTH
        change = np.empty_like(state)
        change[0], change[2] = state[1], state[3]
        angular = np.multiply(GRAVITY, sine, out=change[3])
        angular -= cosine * swing
        angular /= inertia
        pull = POLE_MOMENT * angular
        pull *= cosine
        pull /= MASS
        np.subtract(swing, pull, out=change[1])
        change *= TAU
        change += state
        terminated = (np.abs(change[::2]) > LIMITS).any(axis=0)
        rewards = -terminated.astype(np.float64) if self._sutton_barto_reward else np.ones(self.num_envs)
        return change, rewards, terminated
