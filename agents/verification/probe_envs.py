"""The tasks of the probes, and their training and evaluation. Known answers are in ``probes``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents.config import PPOConfig
from agents.control.ppo import ControlPPO as PPO
from agents.functional.schedules import Linear

GAMMA = 0.9
"""Discount per step of the chains."""


class OneStep(gym.Env):
    """One step: a random observation, one action, ``reward(observation, action)``.

    Args:
        observation_space: what is drawn from.
        action_space: any.
        reward: ``(observation, action) -> reward units``.
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, reward: Callable[[Any, Any], float]
    ) -> None:
        self.observation_space, self.action_space, self.reward = observation_space, action_space, reward

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw an observation."""
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.seen = self.observation_space.sample()
        return self.seen, {}

    def step(self, action: object) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Return the reward and terminate."""
        assert self.action_space.contains(action), action
        return self.seen, float(self.reward(self.seen, action)), True, False, {}


class Chain(gym.Env):
    """A clock of ``length`` steps. Action 1 continues for a reward of ``pay``, action 0 takes ``cash`` and ends.

    Args:
        length: steps until the time is up.
        pay: reward units a step.
        cash: reward units for leaving; None: action 0 continues like action 1.
        pay_last: reward units of the last step, if it is another one.
        limit: whether the end of time is a time limit (truncated, and the clock is not seen) or the end of the task
            (terminated, and the clock is the observation).
    """

    def __init__(
        self, length: int, *, pay: float, cash: float | None, limit: bool, pay_last: float | None = None
    ) -> None:
        self.observation_space, self.action_space = spaces.Discrete(1 if limit else length + 1), spaces.Discrete(2)
        self.length, self.pay, self.cash, self.limit = length, pay, cash, limit
        self.pay_last = pay if pay_last is None else pay_last
        self.clock = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Back to 0."""
        super().reset(seed=seed)
        self.clock = 0
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """One step of the clock."""
        if action == 0 and self.cash is not None:
            return self._seen(), self.cash, True, False, {}
        self.clock += 1
        over = self.clock == self.length
        return self._seen(), self.pay_last if over else self.pay, over and not self.limit, over and self.limit, {}

    def _seen(self) -> int:
        return 0 if self.limit else self.clock


def trained(
    make: Callable[[], gym.Env],
    *,
    updates: int = 28,
    num_envs: int = 8,
    num_steps: int = 16,
    mode: AutoresetMode = AutoresetMode.SAME_STEP,
    **settings: Any,
) -> PPO:
    """The real agent, collector and update, on copies of ``make()``."""
    envs = SyncVectorEnv([make] * num_envs, autoreset_mode=mode)
    options: dict[str, Any] = {
        "learning_rate": Linear(1e-2),
        "epochs": 8,
        "minibatch_size": num_envs * num_steps,
        "gamma": GAMMA,
        "value_coef": 1.0,
        "max_grad_norm": 10.0,
        "hidden": (16,),
        "num_steps": num_steps,
    }
    agent = PPO(envs, PPOConfig(**(options | settings)))
    return agent.learn(updates * num_envs * num_steps)


@torch.no_grad()
def value_and_policy(agent: PPO, observations: object) -> tuple[np.ndarray, np.ndarray]:
    """V ``[N]`` and the action probabilities ``[N, A]`` (for Box, the means) of ``N`` observations."""
    encode, _ = agent._codecs()
    features = torch.from_numpy(encode(observations))
    outputs = agent.policy.outputs(features)
    if not isinstance(agent.spaces[1], spaces.Box):  # type: ignore[index]
        outputs = torch.cat([part.softmax(-1) for part in outputs.split(agent.policy.head.sizes, -1)], -1)
    return agent.policy.values(features).numpy(), outputs.numpy()
