"""The names users know: learn, predict, save, load; other people's tools take the agent."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents.algorithms.ppo import PPO
from agents.config import PPOConfig
from agents.control.best import BestKeeper
from agents.control.environments import make_vector
from agents.control.evaluation import evaluate
from agents.control.presets import preset_for
from agents.functional.schedules import Linear
from agents.interfaces import Evaluation

TINY = PPOConfig(num_envs=2, num_steps=16, epochs=1, hidden=(8,))


class AnySpaces(gym.Env):
    """Takes what it is told to; ends every five steps."""

    def __init__(self, observation_space, action_space) -> None:
        self.observation_space, self.action_space, self.clock = observation_space, action_space, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.clock = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.clock += 1
        return self.observation_space.sample(), 1.0, False, self.clock == 5, {}


OBSERVATIONS = [
    spaces.Box(-1, 1, (2, 3)),
    spaces.Discrete(4, start=2),
    spaces.MultiDiscrete([2, 3]),
    spaces.Dict({"b": spaces.Box(0, 255, (2, 2), np.uint8), "a": spaces.Discrete(3), "c": spaces.MultiBinary(2)}),
    spaces.Tuple([spaces.Box(-1, 1, (1,)), spaces.Discrete(2)]),
]
ACTIONS = [
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([2, 3], start=[1, 0]),
    spaces.MultiBinary(2),
    spaces.Box(-1, 1, (2, 1)),
]


@pytest.mark.parametrize("observation_space", OBSERVATIONS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("action_space", ACTIONS, ids=lambda s: type(s).__name__)
def test_learns_predicts_saves_and_loads_with_any_spaces(observation_space, action_space, tmp_path):
    env = AnySpaces(observation_space, action_space)
    agent = PPO(env, TINY).learn(32)
    observation, _ = env.reset(seed=0)
    action, state = agent.predict(observation, deterministic=True)
    assert state is None
    assert action_space.contains(action)
    loaded = PPO.load(agent.save(tmp_path / "agent"))  # no environment: it predicts all the same
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], action)
    with pytest.raises(ValueError, match="no environment"):
        loaded.learn(32)


def test_stable_baselines3_evaluates_our_agent():
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor

    agent = PPO("CartPole-v1", TINY)
    mean, _ = evaluate_policy(agent, Monitor(gym.make("CartPole-v1")), n_eval_episodes=3)
    assert 1 <= mean <= 500


def test_loads_by_id_and_goes_on(tmp_path):
    path = PPO("CartPole-v1", TINY).learn(64).save(tmp_path / "agent")
    agent = PPO.load(path)
    assert agent.steps == 64
    assert agent.learn(32).steps == 96


def test_a_policy_of_ones_own_learns_through_act_values_and_evaluate_alone():
    class Own(torch.nn.Module):
        keeps_rows = False

        def __init__(self) -> None:
            super().__init__()
            self.logits, self.value = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(()))

        @torch.no_grad()
        def act(self, observations, *, deterministic=False, generator=None):
            p = self.logits.softmax(-1).expand(len(observations), 2)
            actions = torch.multinomial(p, 1, generator=generator).squeeze(-1)
            return actions, p.log().gather(-1, actions[:, None]).squeeze(-1)

        def values(self, observations):
            return self.value.expand(observations.shape[:-1])

        def evaluate(self, observations, actions, mask):
            logp = self.logits.log_softmax(-1)
            entropy = -(logp.exp() * logp).sum().expand(actions.shape)
            return Evaluation(logp[actions], entropy, self.values(observations))

    policy = Own()
    agent = PPO("CartPole-v1", TINY, policy).learn(64)
    assert policy.value.item() != 0.0
    assert agent.metrics["rollout/episodes"] > 0


class Batched(torch.nn.Module):
    """Its values are ``[B]`` of observations ``[B, 4]``, as in docs; with dropout and statistics of a batch."""

    keeps_rows = False

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))
        self.actor, self.critic = torch.nn.Linear(8, 2), torch.nn.Linear(8, 1)

    @torch.no_grad()
    def act(self, observations, *, deterministic=False, generator=None):
        logprobs = self.actor(self.body(observations)).log_softmax(-1)
        actions = torch.multinomial(logprobs.exp(), 1, generator=generator)
        return actions[:, 0], logprobs.gather(1, actions)[:, 0]

    def values(self, observations):
        return self.critic(self.body(observations))[:, 0]

    def evaluate(self, observations, actions, mask):
        hidden = self.body(observations[:, 0])
        logprobs = self.actor(hidden).log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1, keepdim=True)
        return Evaluation(logprobs.gather(1, actions), entropy, self.critic(hidden))


def test_a_policy_of_rows_acts_as_it_is_evaluated_dropout_and_batch_statistics_are_off():
    agent = PPO("CartPole-v1", TINY, Batched()).learn(64)
    assert agent.metrics["train/logprob_drift"] < 1e-5
    with pytest.raises(ValueError, match=r"docs/howto/policy.md, received Linear, which lacks act, values, evaluate"):
        PPO("CartPole-v1", TINY, torch.nn.Linear(4, 2))


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_evaluation_counts_the_same_episodes_in_every_autoreset_mode(mode):
    agent = PPO("Pendulum-v1", TINY)
    envs = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3, autoreset_mode=mode)
    actor = PPO("CartPole-v1", TINY)
    returns, lengths = evaluate(actor, envs, 7, seed=3)
    assert len(returns) == 7
    np.testing.assert_array_equal(returns, lengths)
    reference = evaluate(actor, make_vector("CartPole-v1", 3), 7, seed=3)[0]
    np.testing.assert_array_equal(np.sort(returns), np.sort(reference))
    assert agent.env is not None


def test_the_best_weights_are_kept_and_given_back():
    agent = PPO("CartPole-v1", TINY)
    seen = []
    keeper = BestKeeper(make_vector("CartPole-v1", 5), every=32, episodes=5, on_best=lambda a: seen.append(a.steps))
    agent.learn(320, keeper)
    assert keeper.best_steps == seen[-1]
    keeper.restore_best(agent)
    assert evaluate(agent, keeper.envs, 5, seed=0)[0].mean() == keeper.best_mean


def test_training_ends_once_the_return_is_reached():
    agent = PPO("CartPole-v1", TINY)
    keeper = BestKeeper(make_vector("CartPole-v1", 5), every=32, episodes=5, stop_at_return=1.0)
    agent.learn(3200, keeper)
    assert keeper.reached
    assert agent.steps == 32


@pytest.mark.parametrize("false", [False, np.bool_(False)])
def test_any_false_from_the_callback_ends_the_training(false):
    assert PPO("CartPole-v1", TINY).learn(3200, lambda _: false).steps == 32


def test_steps_count_transitions_not_phantoms():
    envs = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="vector_entry_point")
    agent = PPO(envs, PPOConfig(num_envs=2, num_steps=200, epochs=1))
    agent.learn(1)
    assert agent.steps == 400 - agent.metrics["rollout/episodes"] + int(agent.collector._resetting.sum())


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"num_envs": 0}, "num_envs"),
        ({"gamma": 1.5}, "gamma"),
        ({"minibatch_size": 0}, "minibatch_size"),
        ({"normalize_advantages": "row"}, "normalize_advantages"),
        ({"target_kl": 0.0}, "target_kl"),
        ({"learning_rate": -1.0}, "learning_rate"),
    ],
)
def test_bad_settings_are_refused_by_name(bad, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**bad)


def test_unknown_environments_and_spaces_are_refused():
    with pytest.raises(gym.error.Error, match="CartPol"):
        PPO("CartPol-v1", TINY)
    with pytest.raises(ValueError, match="received int"):
        PPO(3, TINY)
    with pytest.raises(ValueError, match="do not flatten"):
        PPO(AnySpaces(spaces.Text(3), spaces.Discrete(2)), TINY)


def test_the_learning_rate_follows_its_schedule_and_ends_above_0_where_the_last_rollout_is_cut():
    config = PPOConfig(num_envs=2, num_steps=16, epochs=1, learning_rate=Linear(1e-3), clip=Linear(0.2))
    agent, rates = PPO("CartPole-v1", config), []

    def callback(agent: PPO) -> bool:
        assert agent.optimizer.param_groups[0]["lr"] == agent.metrics["train/learning_rate"]
        rates.append((agent.metrics["train/learning_rate"], agent.metrics["train/clip"]))
        return True

    agent.learn(72, callback)  # 2 1/4 rollouts
    expected = [1.0 - 32 * i / 72 for i in range(3)]
    assert rates == [(pytest.approx(1e-3 * share), pytest.approx(0.2 * share)) for share in expected]


def test_predict_sees_observations_as_training_does_and_teaches_the_normalizer_nothing():
    config = PPOConfig(num_envs=2, num_steps=64, epochs=1, normalize_observations=True)
    agent = PPO("Pendulum-v1", config).learn(128)
    before = agent.collector.normalizer.state_dict()
    observations = agent.env.reset(seed=5)[0]
    actions, _ = agent.predict(observations, deterministic=True)
    seen = (observations - before["mean"]) / np.sqrt(before["squares"] / before["count"])
    with torch.no_grad():
        expected = agent.policy.actor(torch.tensor(seen, dtype=torch.float32)).clamp(-2, 2)
    np.testing.assert_allclose(actions, expected.numpy(), atol=1e-5)
    after = agent.collector.normalizer.state_dict()
    assert before["count"] == after["count"]
    np.testing.assert_array_equal(before["mean"], after["mean"])


def test_adams_epsilon_is_that_of_baselines_in_config_and_optimizer():
    agent = PPO("CartPole-v1", TINY)
    assert agent.optimizer.param_groups[0]["eps"] == agent.config.adam_eps == 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_cart_pole_is_solved_by_the_default_preset(seed):
    from dataclasses import replace

    preset = preset_for("CartPole-v1")
    agent = PPO("CartPole-v1", replace(preset.config, seed=seed))
    keeper = BestKeeper(make_vector("CartPole-v1", 100), every=preset.evaluate_every, seed=77)
    agent.learn(preset.total_steps, keeper)
    keeper.restore_best(agent)
    assert evaluate(agent, make_vector("CartPole-v1", 100), 100, seed=99)[0].mean() >= 475
