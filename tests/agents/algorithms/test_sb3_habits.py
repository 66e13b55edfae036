"""What users of Stable-Baselines3 type works, or is answered with what to write."""

import inspect
import re

import gymnasium as gym
import pytest
from stable_baselines3 import PPO as SB3
from stable_baselines3.common.callbacks import BaseCallback

from agents import PPO, TextAgentConfig
from agents.config import SB3_NAMES, TRL_NAMES, check_settings
from agents.runs.checkpoint import CheckpointError

SMALL = dict(num_envs=2, num_steps=8, minibatch_size=8, epochs=1, hidden=(4,), seed=3)


def test_names_of_settings_are_answered_with_ours():
    assert SB3_NAMES.keys() - {"n_envs"} <= inspect.signature(SB3).parameters.keys()
    for name, here in SB3_NAMES.items():
        with pytest.raises(ValueError, match=re.escape(f"'{name}' is no setting of PPOConfig; here {here}")):
            PPO("CartPole-v1", **{name: 1})


def test_names_of_trls_settings_are_answered_with_ours():
    for name, here in TRL_NAMES.items():
        with pytest.raises(ValueError, match=re.escape(f"'{name}' is no setting of TextAgentConfig; here {here}")):
            check_settings(TextAgentConfig, [name])


def test_a_callback_knows_the_total_and_is_told_what_it_cannot_have():
    class Peek(BaseCallback):
        def _on_step(self):
            totals.append(self.locals["total_timesteps"])
            return len(self.locals["dones"]) > 0

    totals = []
    with pytest.raises(KeyError, match=r"called once a rollout is over; read self\.model\.metrics"):
        PPO("CartPole-v1", **SMALL).learn(64, callback=Peek())
    assert totals == [64]


@pytest.mark.parametrize(("verbose", "asked", "shown"), [(0, None, False), (1, None, True), (1, False, False)])
def test_progress_is_shown_where_it_is_asked_for(capsys, verbose, asked, shown):
    PPO("CartPole-v1", verbose=verbose, **SMALL).learn(16, progress_bar=asked)
    assert ("training 16/16 steps" in capsys.readouterr().err) is shown


@pytest.mark.parametrize("by_id", [True, False])
def test_one_environment_instead_of_several_is_answered_with_what_to_write(tmp_path, by_id):
    env = "CartPole-v1" if by_id else gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    path = PPO(env, **SMALL).learn(16).save(tmp_path / "agent.safetensors")
    with pytest.raises(CheckpointError, match="load without env= and call set_env"):
        PPO.load(path, env=gym.make("CartPole-v1"))
    agent = PPO.load(path)
    agent.set_env(gym.make("CartPole-v1"))
    assert agent.learn(8).steps == 24


def test_a_learn_that_ended_is_made_longer_to_what_one_of_that_length_is():
    whole, grown = PPO("CartPole-v1", **SMALL).learn(64), PPO("CartPole-v1", **SMALL).learn(32)
    assert grown.extend(64) == []
    grown.learn()
    assert grown.steps == 64
    for name, value in whole.policy.state_dict().items():
        assert (grown.policy.state_dict()[name] == value).all(), name
