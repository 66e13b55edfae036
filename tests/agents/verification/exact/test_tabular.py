import gymnasium as gym
import numpy as np
import pytest
import torch

import textenvs  # noqa: F401 (registers the ids)
from agents import PPO, Linear, PPOConfig
from agents.interfaces import Policy
from agents.verification.exact.tabular import TabularPolicy

STATES = np.array([[2, -1, -1], [2, 0, -1], [2, 1, -1], [3, -1, -1]])


def _policy():
    return TabularPolicy(
        STATES, 3, np.log(np.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8], [0.6, 0.2, 0.2], [0.5, 0.25, 0.25]]))
    )


def test_it_speaks_the_policy_protocol():
    assert isinstance(_policy(), Policy)
    assert not _policy().keeps_rows


def test_every_state_has_its_row_and_all_others_share_the_last():
    policy = _policy()
    for dtype in (torch.int64, torch.float32):
        assert policy.index(torch.tensor(STATES, dtype=dtype)).tolist() == [0, 1, 2, 3]
    strange = torch.tensor([[2, 1, 0], [3, 0, -1], [9, -1, -1], [-5, -1, -1]])
    assert policy.index(strange).tolist() == [4, 4, 4, 4]


def test_evaluate_reads_logprob_entropy_and_value_off_the_table():
    policy = _policy()
    with torch.no_grad():
        policy.value_table[:] = torch.arange(5.0)
    observations = torch.tensor(STATES[[[3, 0], [1, 2]]]).float()
    logprobs, entropy, values = policy.evaluate(observations, torch.tensor([[0, 2], [2, 0]]))[:3]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([[0.5, 0.5], [0.8, 0.6]]))
    torch.testing.assert_close(entropy[0, 0], torch.tensor(1.5 * np.log(2), dtype=torch.float32))
    assert values.tolist() == [[3.0, 0.0], [1.0, 2.0]]
    np.testing.assert_allclose(policy.acting(STATES[:2], np.array([1, 0])), np.log([0.3, 0.1]), rtol=1e-6)


def test_the_gradient_reaches_the_visited_rows_alone():
    policy = _policy()
    logprobs, _, values = policy.evaluate(torch.tensor(STATES[1:2])[None], torch.tensor([[2]]))[:3]
    (logprobs.sum() + values.sum()).backward()
    torch.testing.assert_close(policy.logits.grad[1], torch.tensor([-0.1, -0.1, 0.2]))
    assert policy.logits.grad[[0, 2, 3, 4]].abs().max() == 0
    assert policy.value_table.grad.tolist() == [0, 1, 0, 0, 0]


def test_actions_follow_the_table_and_the_greedy_one_is_its_largest():
    policy = _policy()
    assert policy.act(torch.tensor(STATES), deterministic=True)[0].tolist() == [2, 2, 0, 0]
    many = torch.tensor(STATES[:1]).expand(20000, 3)
    actions, logprobs = policy.act(many, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(actions, minlength=3) / 20000
    # 4 standard deviations of a share from 20,000 draws
    torch.testing.assert_close(shares, torch.tensor([0.2, 0.3, 0.5]), atol=0.015, rtol=0)
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.2, 0.3, 0.5])[actions])


@pytest.mark.parametrize(
    "states, message",
    [(STATES[[0, 0]], "twice"), (STATES[0], "expected states"), (np.arange(128).reshape(2, 64), "62 bits")],
)
def test_states_that_cannot_be_told_apart_are_refused(states, message):
    with pytest.raises(ValueError, match=message):
        TabularPolicy(states, 3)


def test_ppo_goes_most_of_the_way_to_the_known_optimum():
    policy = None
    envs = gym.make_vec("textenvs/ExactRandom-v0", num_envs=128, acting=lambda *asked: policy.acting(*asked))
    task = envs.unwrapped.task
    policy = TabularPolicy(task.states, 4, task.ref_logprobs.reshape(-1, 4))
    config = PPOConfig(
        num_steps=8, epochs=4, minibatch_size=512, learning_rate=Linear(0.1), gamma=1.0, lam=1.0, value_coef=1.0
    )
    PPO(envs, config, policy=policy).learn(20 * 128 * 8)
    trained = torch.log_softmax(policy.logits[:-1].detach().double(), -1).numpy().reshape(task.ref_logprobs.shape)
    assert 0 < task.gap(trained) < 0.15
