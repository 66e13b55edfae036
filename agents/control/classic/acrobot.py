"""Acrobot as one array of environments. See `base` for what it shares with the other tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete

from agents.control.classic.base import ClassicVectorEnv

DT = 0.2  # s
MAX_SPEEDS = np.array([4 * np.pi, 9 * np.pi])  # rad/s
GRAVITY = 9.8  # m/s²; both links: 1 m, 1 kg, center of mass at 0.5 m, moment of inertia 1 kg m²
HALF_TURN = np.pi / 2.0
HIGH = np.array([1.0, 1.0, 1.0, 1.0, *MAX_SPEEDS], dtype=np.float32)


class AcrobotVectorEnv(ClassicVectorEnv):
    """Swing a two-link pendulum above the bar: `gymnasium.envs.classic_control.AcrobotEnv`, vectorized.

    | Observation | Box((6,), float32): cos and sin of both joints' angles, and their speeds (rad/s) |
    | Action      | Discrete(3): torque -1, 0 or +1 N m on the joint between the links |
    | Reward      | -1 each step, 0 on the step that reaches the bar |
    | Termination | the free end is above the bar: -cos(a) - cos(a + b) > 1 |
    | Truncation  | after ``max_episode_steps`` (the id's: 500) |

    The equations are the book's (Sutton & Barto 2018, section 11.3 of the first edition), integrated by one
    Runge-Kutta step of fourth order over 0.2 s, as in the original.
    """

    state_size, start = 4, (-0.1, 0.1)
    spaces = Box(-HIGH, HIGH, dtype=np.float32), Discrete(3)

    def __init__(self, num_envs: int, **shared: Any) -> None:
        super().__init__(num_envs, **shared)
        self._two = np.full((2, num_envs), 2.0)

    def _draw(self, generator: np.random.Generator, options: dict[str, Any] | None) -> np.ndarray:
        # the original starts, and observes its start, in float32; it leaves that at the first step
        return super()._draw(generator, options).astype(np.float32)

    def _observe(self, state: np.ndarray) -> np.ndarray:
        cosines, sines = np.cos(state[:2]), np.sin(state[:2])
        return np.stack((cosines[0], sines[0], cosines[1], sines[1], state[2], state[3]), axis=1)

    def _advance(self, state: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        torque = actions - 1.0
        k1 = self._derivative(state, torque)
        k2 = self._derivative(state + DT / 2.0 * k1, torque)
        k3 = self._derivative(state + DT / 2.0 * k2, torque)
        k4 = self._derivative(state + DT * k3, torque)
        state = state + DT / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4)
        _wrap(state[:2])
        np.clip(state[2:], -MAX_SPEEDS[:, None], MAX_SPEEDS[:, None], out=state[2:])
        terminated = -np.cos(state[0]) - np.cos(state[1] + state[0]) > 1.0
        return state, terminated - 1.0, terminated

    def _derivative(self, state: np.ndarray, torque: np.ndarray) -> np.ndarray:
        """The state's change per second, ``[4, N]``; factors that are 1 or powers of two are folded in."""
        sine, cosine = np.sin(state[1]), np.cos(state[1])
        # a vector of twos makes numpy call pow, as the original's `**` does; `x * x` differs in one of 1,200 cases
        squares = np.power(state[2:], self._two)
        d1 = 0.25 + (1.25 + cosine) + 1.0 + 1.0
        d2 = 0.25 + 0.5 * cosine + 1.0
        phi2 = 0.5 * GRAVITY * np.cos(state[0] + state[1] - HALF_TURN)
        phi1 = (
            -0.5 * squares[1] * sine - state[3] * state[2] * sine + 1.5 * GRAVITY * np.cos(state[0] - HALF_TURN) + phi2
        )
        derivative = np.empty_like(state)
        derivative[:2] = state[2:]
        derivative[3] = (torque + d2 / d1 * phi1 - 0.5 * squares[0] * sine - phi2) / (
            1.25 - np.power(d2, self._two[0]) / d1
        )
        derivative[2] = -(d2 * derivative[3] + phi1) / d1
        return derivative


def _wrap(angles: np.ndarray) -> None:
    """Bring angles into [-pi, pi] in place, a turn at a time as the original does (a modulus rounds otherwise)."""
    turn = np.pi - -np.pi
    while (over := angles > np.pi).any():
        angles[over] -= turn
    while (under := angles < -np.pi).any():
        angles[under] += turn
