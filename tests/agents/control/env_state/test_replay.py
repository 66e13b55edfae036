"""States that cannot be read are replayed, and a replay that ends elsewhere is refused."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from agents.algorithms.ppo import PPO
from agents.config import PPOConfig
from agents.control.env_state import snapshot as env_state
from agents.control.env_state.plain_state import hidden_in
from agents.runs import checkpoint


class Opaque(gym.Env):
    """A random walk whose place is hidden in an object; ``leak`` draws from elsewhere than ``np_random``."""

    observation_space = spaces.Box(-100, 100, (1,), np.float64)
    action_space = spaces.Discrete(2)

    class Engine:
        def __init__(self, place: float) -> None:
            self.place = place

    def __init__(self, leak: bool = False) -> None:
        self.leak, self.engine = leak, None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.engine = self.Engine(self.np_random.normal())
        return np.array([self.engine.place]), {}

    def step(self, action):
        noise = np.random.default_rng().normal() if self.leak else self.np_random.normal()
        self.engine.place += float(action) + noise
        return np.array([self.engine.place]), self.engine.place, bool(self.np_random.random() < 0.05), False, {}


def vector(*makers, mode=AutoresetMode.SAME_STEP) -> SyncVectorEnv:
    envs = SyncVectorEnv(list(makers), autoreset_mode=mode)
    env_state.record(envs)
    return envs


def through_a_file(state, folder):
    return checkpoint.load(checkpoint.save(folder / "state", state))


def go_on(envs, steps: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    seen = []
    for _ in range(steps):
        actions = rng.integers(envs.single_action_space.n, size=envs.num_envs)
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        seen += [observations, rewards, terminated, truncated]
    return seen


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("env_id", ["LunarLander-v3", None])
def test_a_hidden_state_goes_on_bit_for_bit_in_another_environment(env_id, mode, tmp_path):
    maker = Opaque if env_id is None else lambda: gym.make(env_id)
    envs, other = vector(maker, maker, mode=mode), vector(maker, maker, mode=mode)
    envs.reset(seed=3)
    go_on(envs, 130, seed=0)  # episodes ended meanwhile, so these do not begin at the seed
    assert hidden_in(envs.envs[0])
    state = through_a_file(env_state.capture(envs), tmp_path)
    expected = go_on(envs, 90, seed=1)
    other.reset(seed=99)
    go_on(other, 7, seed=2)
    env_state.restore(other, state)
    for one, same in zip(expected, go_on(other, 90, seed=1), strict=True):
        np.testing.assert_array_equal(one, same)


def test_lunar_lander_trains_on_in_mid_episode_as_if_undisturbed(tmp_path):
    config = PPOConfig(num_envs=2, num_steps=40, epochs=1, hidden=(8,), seed=4)
    straight = PPO("LunarLander-v3", config).learn(320)
    broken = PPO("LunarLander-v3", config).learn(320, lambda agent: agent.updates < 2)
    resumed = PPO.load(broken.save(tmp_path / "agent")).learn()
    for name, value in straight.policy.state_dict().items():
        assert (value == resumed.policy.state_dict()[name]).all(), name


def test_an_environment_that_does_not_repeat_itself_is_refused_with_the_reason():
    envs = vector(lambda: Opaque(leak=True))
    envs.reset(seed=0)
    go_on(envs, 3, seed=0)
    state = env_state.capture(envs)
    with pytest.raises(ValueError, match=r"Opaque cannot be resumed.* np_random"):
        env_state.restore(envs, state)


def test_a_vector_environment_whose_state_lies_elsewhere_is_refused_by_name():
    class Far(VectorEnv):
        def __init__(self) -> None:
            self.process = Opaque.Engine(0.0)
            self.clock = 3

    state = env_state.capture(Far())
    assert state["layers"][0]["attributes"] == {"clock": 3}
    with pytest.raises(ValueError, match=r"Far\.process"):
        env_state.restore(Far(), state)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1"])
def test_plain_environments_are_not_recorded(env_id):
    envs = vector(lambda: gym.make(env_id))
    envs.reset(seed=0)
    assert hidden_in(envs.envs[0]) == []
    assert envs.envs[0].recording is False
    assert env_state.capture(envs)["sub"][0]["layers"][0] == {"own": {"replay": None}}


class Far(VectorEnv):
    """Counts two episodes of 5 steps; its clock lies in an object."""

    def __init__(self) -> None:
        self.num_envs = 2
        self.single_observation_space, self.single_action_space = spaces.Box(0, 9, (1,)), spaces.Discrete(2)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.clock = Opaque.Engine(0.0)

    def reset(self, *, seed=None, options=None):
        self.clock.place = 0.0
        return np.zeros((2, 1), np.float32), {}

    def step(self, actions):
        self.clock.place = (self.clock.place + 1) % 6
        ended = np.full(2, self.clock.place == 5)
        return np.full((2, 1), self.clock.place, np.float32), np.ones(2), ended, ~ended & False, {}


def test_saving_says_what_a_checkpoint_lacks_and_loading_begins_with_fresh_resets(tmp_path):
    config = PPOConfig(num_steps=8, epochs=1, hidden=(4,), normalize_observations=True, normalize_rewards=True)
    agent = PPO(Far(), config).learn(32)
    with pytest.warns(UserWarning, match=r"not saved: Far\.clock.*fresh resets"):
        path = agent.save(tmp_path / "agent")
    with pytest.warns(UserWarning, match=r"lacks Far\.clock"):
        loaded = PPO.load(path, env=Far())
    assert loaded.steps == agent.steps
    assert loaded.learn(12).metrics["rollout/return_mean"] == 5.0  # no episode under way was continued


def test_a_loaded_agent_goes_on_in_another_number_of_environments_with_its_statistics(tmp_path):
    config = PPOConfig(num_steps=8, epochs=1, hidden=(4,), normalize_observations=True, normalize_rewards=True)
    agent = PPO(vector(Opaque, Opaque), config).learn(32)
    path = agent.save(tmp_path / "agent")
    with pytest.raises(checkpoint.CheckpointError, match="call set_env"):
        PPO.load(path, env=vector(Opaque))
    loaded = PPO.load(path)
    loaded.set_env(vector(Opaque, Opaque, Opaque))
    assert loaded.collector.reward_scaler.moments.count == agent.collector.reward_scaler.moments.count == 32
    assert loaded.collector.normalizer.moments.count == 32
    assert loaded.learn(24).steps == 56
