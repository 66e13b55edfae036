"""The fast gradient against autograd through the plain policy and the pure losses."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from gymnasium import spaces

from agents import PPO
from agents.config import UpdateConfig
from agents.control.fast_mlp import FastMLP, is_fast
from agents.control.mlp import MLPPolicy
from agents.rollout import Batch
from agents.update import ppo_objective

BOX = spaces.Box(-1, 1, (4,))
MASKED = spaces.Dict({"position": BOX, "action_mask": spaces.MultiBinary(3)})


def _batch(policy: MLPPolicy, number: int = 33) -> Batch:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    observations = draw(number, 1, 4)
    if policy.mask_size:
        allowed = (torch.rand(number, 1, 3, generator=generator) < 0.5).float()
        allowed[..., 0] = 1.0
        observations = torch.cat([observations, allowed], -1)
    actions, logprobs = policy.act(observations, generator=generator)
    old = logprobs + 0.3 * draw(number, 1)  # some ratios fall outside the interval, on both sides
    return Batch(observations, actions, old, draw(number, 1), draw(number, 1), draw(number, 1), draw(number, 1) < 9)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("hidden", [(8,), (16, 16), (8, 8, 8)])
@pytest.mark.parametrize("observations, actions", [(BOX, spaces.Discrete(3)), (BOX, BOX), (MASKED, spaces.Discrete(3))])
def test_fast_gradient_equals_autograd(observations, actions, hidden, activation):
    torch.manual_seed(1)
    plain = MLPPolicy(observations, actions, hidden=hidden, activation=activation, log_std=-0.3)
    for parameter in plain.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    flattened = copy.deepcopy(plain)
    fast = FastMLP(flattened)
    config = UpdateConfig(value_coef=0.7, entropy_coef=0.05)
    batch = _batch(plain)
    expected = plain.evaluate(batch.observations, batch.actions)
    loss, parts = ppo_objective(config, clip=0.2)(expected, batch, None)
    loss.backward()
    evaluation, fast_loss, fast_parts = fast.ppo_gradient(batch, config, 0.2)
    torch.testing.assert_close(fast_loss, loss.detach())
    assert set(parts) >= set(fast_parts)
    for one, other in zip(evaluation[:3], expected[:3], strict=True):
        torch.testing.assert_close(one, other.detach().view(-1), atol=2e-6, rtol=1e-5)
    for (name, view), reference in zip(flattened.named_parameters(), plain.parameters(), strict=True):
        start = (view.data_ptr() - fast.flat.data_ptr()) // 4
        assert fast.flat.grad is not None
        gradient = fast.flat.grad[start : start + view.numel()].view_as(view)
        torch.testing.assert_close(gradient, reference.grad, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("observations, actions", [(BOX, spaces.Discrete(3)), (BOX, BOX), (MASKED, spaces.Discrete(3))])
def test_fast_choice_equals_the_plain_one(observations, actions):
    plain = MLPPolicy(observations, actions)
    batch = _batch(plain)
    fast = FastMLP(copy.deepcopy(plain))
    noise = plain.draw_noise(1, 33, torch.Generator().manual_seed(3))[0]
    with torch.no_grad():
        torch.testing.assert_close(
            fast.choose(batch.observations[:, 0], noise), plain.choose(batch.observations[:, 0], noise)
        )


def test_layers_of_different_widths_learn_without_it():
    agent = PPO("CartPole-v1", num_envs=2, num_steps=8, hidden=(8, 4)).learn(16)
    assert agent.learner is agent.policy
    assert agent.updates == 1


def test_policies_of_another_kind_are_refused():
    assert not is_fast(MLPPolicy(BOX, spaces.MultiDiscrete([2, 3])))
    assert not is_fast(MLPPolicy(BOX, spaces.Discrete(2), hidden=()))
    assert not is_fast(MLPPolicy(BOX, spaces.Discrete(2)).double())
    with pytest.raises(ValueError, match="Discrete or Box"):
        FastMLP(MLPPolicy(BOX, spaces.MultiBinary(3)))


def test_ratios_beyond_all_numbers_have_the_gradient_of_the_definition():
    torch.manual_seed(1)
    plain = MLPPolicy(BOX, spaces.Discrete(3), hidden=(8,))
    fast = FastMLP(copy.deepcopy(plain))
    batch = _batch(plain, 4)
    batch.old_logprobs[:2] -= 100.0  # exp(100) overflows float32; advantages of 0 and less make that NaN
    batch.advantages[:2] = torch.tensor([[0.0], [-1.0]])
    config = UpdateConfig(entropy_coef=0.05)
    ppo_objective(config, clip=0.2)(plain.evaluate(batch.observations, batch.actions), batch, None)[0].backward()
    fast.ppo_gradient(batch, config, 0.2)
    assert fast.flat.grad is not None
    expected = torch.cat([p.grad.flatten() for p in plain.parameters()])
    torch.testing.assert_close(fast.flat.grad.sort()[0], expected.sort()[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda agent: pickle.loads(pickle.dumps(agent))], ids=["copy", "pickle"]
)
def test_a_copy_of_an_agent_trains_on_as_the_agent_does_and_apart_from_it(copied):
    """Its parameters were views of no vector of its own, and the update failed."""
    agent = PPO("CartPole-v1", num_envs=2, num_steps=16, minibatch_size=16, epochs=1, hidden=(8,), seed=0).learn(32)
    other = copied(agent)
    before = [parameter.clone() for parameter in other.policy.parameters()]
    agent.learn(32)
    assert all(map(torch.equal, other.policy.parameters(), before))
    other.learn(32)
    assert all(map(torch.equal, other.policy.parameters(), agent.policy.parameters()))
    assert not torch.equal(before[0], next(other.policy.parameters()))


def replace_data(policy):
    for parameter in policy.parameters():
        parameter.data = parameter.data + 1.0


def replace_a_parameter(policy):
    policy.actor[0].weight = torch.nn.Parameter(policy.actor[0].weight.detach() + 1.0)


@pytest.mark.parametrize("change", [replace_data, replace_a_parameter])
def test_parameters_that_were_replaced_are_refused_since_training_would_go_by_them(change):
    agent = PPO("CartPole-v1", num_envs=2, num_steps=16, minibatch_size=16, epochs=1, hidden=(8,), seed=0).learn(32)
    weights = {name: value + 1.0 for name, value in agent.policy.state_dict().items()}
    agent.policy.load_state_dict(weights)
    agent.learn(32)
    change(agent.policy)
    with pytest.raises(ValueError, match="change weights by load_state_dict or copy_"):
        agent.learn(32)
