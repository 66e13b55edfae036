"""Collapse after solving costs nothing: the weights that solved the task are what a run ends with."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents.algorithms.ppo import PPO
from agents.config import PPOConfig
from agents.control.best import BestKeeper
from agents.control.evaluation import evaluate


class Arms(gym.Env):
    """One step: action 1 pays 1, action 0 nothing."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), float(action), True, False, {}


def vector(number: int) -> SyncVectorEnv:
    return SyncVectorEnv([Arms] * number, autoreset_mode=AutoresetMode.SAME_STEP)


def set_preference(agent: PPO, logit: float) -> None:
    with torch.no_grad():
        agent.policy.actor[-1].bias.copy_(torch.tensor([-logit, logit]))


def weights(agent: PPO) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in agent.policy.state_dict().items()}


def test_a_policy_wrecked_after_solving_ends_with_the_weights_that_solved():
    config = PPOConfig(num_steps=8, epochs=1, learning_rate=1e-6, normalize_observations=True)
    agent = PPO(vector(2), config)
    keeper = BestKeeper(vector(5), every=16, episodes=20)
    seen: list[tuple[float, dict[str, torch.Tensor], int]] = []

    def callback(agent: PPO) -> bool:
        set_preference(agent, {1: -5.0, 3: 5.0, 5: -5.0}.get(agent.updates, agent.policy.actor[-1].bias[1].item()))
        keeper(agent)
        solved = float(evaluate(agent, keeper.envs, 20, seed=7)[0].mean())
        seen.append((solved, weights(agent), agent.collector.normalizer.moments.count))
        return True

    agent.learn(16 * 8, callback)
    returns = [figures[0] for figures in seen]
    assert returns == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]  # solved at update 3, wrecked at 5
    keeper.restore_best(agent)
    assert keeper.best_mean == 1.0
    assert keeper.best_steps == 4 * 16  # of two equal ones the later
    _, best, count = seen[3]
    for name, value in agent.policy.state_dict().items():
        assert torch.equal(value, best[name]), name
    assert agent.collector.normalizer.moments.count == count
    assert evaluate(agent, keeper.envs, 20, seed=8)[0].mean() == 1.0


def test_before_the_first_evaluation_nothing_is_given_back():
    agent = PPO(vector(2), PPOConfig(num_steps=8, epochs=1))
    keeper = BestKeeper(vector(5), every=10**6)
    before = weights(agent)
    keeper.restore_best(agent)
    assert keeper.best_mean == -math.inf
    assert all(torch.equal(value, before[name]) for name, value in agent.policy.state_dict().items())


def test_what_was_kept_survives_a_resumed_run():
    agent = PPO(vector(2), PPOConfig(num_steps=8, epochs=1))
    set_preference(agent, 5.0)
    keeper, other = BestKeeper(vector(5), every=16, stop_at_return=0.5), BestKeeper(vector(5), every=16)
    keeper.evaluate(agent)
    best = weights(agent)
    set_preference(agent, -5.0)
    other.load_state_dict(keeper.state_dict())
    assert other.reached
    other.restore_best(agent)
    assert all(torch.equal(value, best[name]) for name, value in agent.policy.state_dict().items())
