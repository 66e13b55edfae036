"""Both mountain cars as arrays of environments. See `base` for what they share with the other tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.envs.classic_control.utils import maybe_parse_reset_bounds
from gymnasium.spaces import Box, Discrete

from agents.control.classic.base import ClassicVectorEnv

MIN_POSITION, MAX_POSITION, MAX_SPEED = -1.2, 0.6, 0.07
GRAVITY = 0.0025
LOW, HIGH = np.array([[MIN_POSITION, -MAX_SPEED], [MAX_POSITION, MAX_SPEED]], dtype=np.float32)
OBSERVATIONS = Box(LOW, HIGH, dtype=np.float32)


class _MountainCar(ClassicVectorEnv):
    """What both have in common: state, start and goal."""

    state_size, start = 2, (-0.6, -0.4)

    def __init__(self, num_envs: int, *, goal_velocity: float = 0.0, **shared: Any) -> None:
        super().__init__(num_envs, **shared)
        self._goal_velocity = goal_velocity

    def _draw(self, generator: np.random.Generator, options: dict[str, Any] | None) -> np.ndarray:
        return np.array([generator.uniform(*maybe_parse_reset_bounds(options, *self.start)), 0.0])


class MountainCarVectorEnv(_MountainCar):
    """Rock a weak car out of a valley: `gymnasium.envs.classic_control.MountainCarEnv`, vectorized.

    | Observation | Box((2,), float32): position in [-1.2, 0.6], velocity in [-0.07, 0.07] |
    | Action      | Discrete(3): push left, do nothing, push right |
    | Reward      | -1 each step |
    | Termination | position >= 0.5 with velocity >= ``goal_velocity`` |
    | Truncation  | after ``max_episode_steps`` (the id's: 200) |
    """

    spaces = OBSERVATIONS, Discrete(3)

    def _advance(self, state: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        change = (actions - 1.0) * 0.001 + np.cos(3 * state[0]) * -GRAVITY
        state = _roll(state[0], state[1] + change)
        terminated = (state[0] >= 0.5) & (state[1] >= self._goal_velocity)
        return state, np.full(self.num_envs, -1.0), terminated


class MountainCarContinuousVectorEnv(_MountainCar):
    """The same with a throttle: `gymnasium.envs.classic_control.Continuous_MountainCarEnv`, vectorized.

    | Observation | Box((2,), float32): position in [-1.2, 0.6], velocity in [-0.07, 0.07] |
    | Action      | Box(-1, 1, (1,), float32): the force, clipped to the bounds |
    | Reward      | -0.1 a², of the action as it came, plus 100 on reaching the goal |
    | Termination | position >= 0.45 with velocity >= ``goal_velocity`` |
    | Truncation  | after ``max_episode_steps`` (the id's: 999) |

    The original draws a start in float64 and computes in float32 from the first step's result on; so does this.
    """

    spaces = OBSERVATIONS, Box(-1.0, 1.0, shape=(1,), dtype=np.float32)
    power = 0.0015

    def _advance(self, state: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        throttle = actions[:, 0].astype(np.float32)
        moved, terminated = self._move(state.astype(np.float32), throttle)
        first = (self._steps == 0).nonzero()[0]
        if len(first):
            moved[:, first], terminated[first] = self._move(state[:, first], throttle[first])
        rewards = np.where(terminated, 100.0, 0.0) - np.square(throttle.astype(np.float64)) * 0.1
        return moved.astype(np.float64), rewards, terminated

    def _move(self, state: np.ndarray, throttle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One step in the state's own precision: the new state ``[2, N]``, and where it is the goal."""
        slope = GRAVITY * np.cos((3 * state[0]).astype(np.float64))
        clipped = np.clip(throttle, -1.0, 1.0)
        change = (clipped * self.power - slope.astype(np.float32)).astype(np.float64)
        outside = clipped != throttle  # a bound replaced the action by a Python float: the original is in float64
        change[outside] = clipped[outside].astype(np.float64) * self.power - slope[outside]
        state = _roll(state[0], state[1] + change.astype(state.dtype))
        return state, (state[0] >= 0.45) & (state[1] >= self._goal_velocity)


def _roll(position: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    """The new state ``[2, N]`` after moving at ``velocity``: speed-limited, and stopped by the wall on the left."""
    velocity = np.clip(velocity, -MAX_SPEED, MAX_SPEED)
    position = np.clip(position + velocity, MIN_POSITION, MAX_POSITION)
    velocity[(position == position.dtype.type(MIN_POSITION)) & (velocity < 0)] = 0.0
    return np.stack((position, velocity))
