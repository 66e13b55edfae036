"""A loss of one's own in place of the algorithm's, on control tasks and on text."""

import copy

import gymnasium as gym
import pytest
import torch

from agents import PPO, TRPO, PPOConfig
from agents.functional.masked import masked_mean
from agents.runs.checkpoint import CheckpointError
from agents.text.objective import text_objective
from agents.update import ppo_objective

SMALL = dict(num_envs=2, num_steps=8, minibatch_size=8, epochs=2, hidden=(4,), seed=3)


def text_envs(model_dir):
    score = lambda prompts, completions: [float(len(text)) for text in completions]  # noqa: E731
    parts = dict(rows=["good film", "a"], max_new_tokens=4, scorer=score, reference=str(model_dir))
    return gym.make_vec("textenvs/TextGeneration-v0", num_envs=4, **parts)


def half(evaluation, batch, mask):
    """Nothing of the policy, and half the mean of V: its derivative by the critic's last bias is 1/2."""
    return 0.5 * masked_mean(evaluation.values, mask), {"value_loss": evaluation.values.mean()}


def test_ppos_own_loss_as_an_objective_is_ppo_on_a_control_task():
    config = PPOConfig(**SMALL)
    one, other = PPO("CartPole-v1", config), PPO("CartPole-v1", config, objective=ppo_objective(config, clip=0.2))
    one.learn(32)
    other.learn(32)
    for name, value in one.policy.state_dict().items():
        torch.testing.assert_close(other.policy.state_dict()[name], value)


def test_the_texts_own_loss_as_an_objective_is_the_same_bit_for_bit(model_dir):
    one = PPO(text_envs(model_dir), seed=1)
    loss = text_objective(one.config, clip=one.config.clip, beta=0.0)
    other = PPO(text_envs(model_dir), seed=1, objective=lambda *args: loss(*args)).learn(8)
    one.learn(8)
    for name, value in one.policy.state_dict().items():
        assert torch.equal(other.policy.state_dict()[name], value), name


def test_an_objective_is_minimized_and_its_parts_are_logged():
    settings = SMALL | {"epochs": 1, "minibatch_size": None, "learning_rate": 1e-2, "objective": half}
    agent = PPO("CartPole-v1", **settings)
    before = copy.deepcopy(agent.policy.state_dict())
    agent.learn(16)
    after = agent.policy.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("actor"))
    # Adam's first step is the learning rate, against the sign of the gradient.
    assert float(after["critic.2.bias"] - before["critic.2.bias"]) == pytest.approx(-1e-2, rel=1e-3)
    assert agent.metrics["train/loss"] == pytest.approx(0.5 * agent.metrics["train/value_loss"])


@pytest.mark.parametrize("kind", ["control", "text"])
def test_who_was_trained_with_an_objective_does_not_go_on_without(model_dir, tmp_path, kind):
    make = {"control": lambda: "CartPole-v1", "text": lambda: text_envs(model_dir)}[kind]
    settings = SMALL if kind == "control" else {"policy": str(model_dir)}
    path = PPO(make(), objective=half, **settings).save(tmp_path / "agent.safetensors")
    again = PPO.load(path, env=make())
    with pytest.raises(ValueError, match="trained with an objective, half: pass objective= to load"):
        again.learn(16)
    assert again.predict(again.get_env().reset()[0])[0].shape == (again.get_env().num_envs,)
    again.save(path)
    assert PPO.load(path, env=make(), objective=half).learn(16).steps == 16
    path = PPO(make(), **settings).save(path)
    with pytest.raises(CheckpointError, match="as the agent was trained without one"):
        PPO.load(path, env=make(), objective=half)


@pytest.mark.parametrize("kind", ["control", "text"])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda evaluation, batch, mask: evaluation.logprobs.sum(),
        lambda evaluation, batch, mask: (evaluation.logprobs, {}),
        lambda evaluation, batch, mask: (torch.tensor(1.0), {}),
        lambda evaluation, batch, mask: (evaluation.logprobs.sum(), {"kl": 0.0}),
    ],
)
def test_another_answer_is_refused(model_dir, kind, wrong):
    env, settings = ("CartPole-v1", SMALL) if kind == "control" else (text_envs(model_dir), {})
    with pytest.raises(ValueError, match=r"objective: expected \(scalar loss with a gradient, dict of scalars\), rec"):
        PPO(env, objective=wrong, **settings).learn(8)


def test_what_is_no_objective_and_who_takes_none():
    with pytest.raises(ValueError, match=r"objective: expected a function .*, received 'mine'"):
        PPO("CartPole-v1", objective="mine")
    with pytest.raises(ValueError, match="objective: expected None, as TRPO"):
        TRPO("CartPole-v1", objective=half)
