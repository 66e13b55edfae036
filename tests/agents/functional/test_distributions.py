"""Distributions, heads, initialization and schedules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.control.heads import head_for
from agents.control.mlp import MLPPolicy
from agents.control.spaces import ActionDecoder
from agents.functional import distributions as d
from agents.functional.schedules import Linear, value_at

BOX = spaces.Box(-1, 1, (3,))


def test_categorical_agrees_with_torch_distributions():
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    actions = torch.tensor([0, 4, 2, 1])
    peer, ours = torch.distributions.Categorical(logits=logits), d.categorical_logprobs(logits)
    torch.testing.assert_close(d.categorical_logprob(ours, actions), peer.log_prob(actions))
    torch.testing.assert_close(d.categorical_entropy(ours), peer.entropy())


def test_gaussian_agrees_with_torch_distributions():
    generator = torch.Generator().manual_seed(1)
    mean, log_std, actions = (torch.randn(4, 3, generator=generator) for _ in range(3))
    peer = torch.distributions.Normal(mean, log_std.exp())
    torch.testing.assert_close(d.gaussian_logprob(actions, mean, log_std), peer.log_prob(actions).sum(-1))
    torch.testing.assert_close(d.gaussian_entropy(mean, log_std), peer.entropy().sum(-1))


def test_sampling_follows_the_probabilities():
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    noise = d.gumbel_noise((20_000, 3), torch.Generator().manual_seed(2))
    shares = torch.bincount((logits + noise).argmax(-1), minlength=3) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)  # 4 standard errors


@pytest.mark.parametrize("size", [4, 50_000])
def test_masked_actions_have_probability_0_and_finite_entropy_and_gradient(size):
    logits = torch.randn(6, size, generator=torch.Generator().manual_seed(3), requires_grad=True)
    allowed = torch.zeros(6, size, dtype=torch.bool)
    allowed[:, [1, size - 2]] = True
    logprobs = d.categorical_logprobs(d.mask_logits(logits, allowed))
    entropy = d.categorical_entropy(logprobs)
    assert (logprobs.exp()[~allowed] == 0).all()
    assert ((entropy >= 0) & (entropy <= math.log(2) + 1e-6)).all()
    (1000 * entropy.sum() + d.categorical_logprob(logprobs, torch.ones(6, dtype=torch.long)).sum()).backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[~allowed] == 0).all()
    noise = d.gumbel_noise((6, size), torch.Generator().manual_seed(4))
    chosen = (d.mask_logits(logits, allowed) + noise).argmax(-1)
    assert allowed.gather(1, chosen[:, None]).all()


def test_a_row_without_any_allowed_action_is_refused():
    with pytest.raises(ValueError, match="expected an allowed action in every row"):
        d.mask_logits(torch.zeros(2, 3), torch.tensor([[True, False, False], [False, False, False]]))


@pytest.mark.parametrize(
    "space, shape",
    [
        (spaces.Discrete(4, start=-2), ()),
        (spaces.MultiDiscrete([2, 3, 4]), (3,)),
        (spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 0], [2, 0]]), (4,)),
        (spaces.MultiBinary(5), (5,)),
        (spaces.Box(-2, 2, (2, 2)), (4,)),
    ],
)
def test_every_action_space_sums_to_one_logprob_a_row_and_reaches_the_environment_in_its_own_form(space, shape):
    policy = MLPPolicy(BOX, space)
    actions, logprobs = policy.act(torch.randn(7, 3), generator=torch.Generator().manual_seed(5))
    assert actions.shape == (7, *shape)
    assert logprobs.shape == (7,)
    evaluation = policy.evaluate(torch.randn(7, 2, 3), actions[:, None].expand(7, 2, *shape), None)
    assert all(x.shape == (7, 2) for x in (evaluation.logprobs, evaluation.entropy, evaluation.values))
    assert all(space.contains(action) for action in ActionDecoder(space)(actions.numpy()))


def test_a_multidiscrete_logprob_is_the_sum_of_its_parts():
    head = head_for(spaces.MultiDiscrete([2, 3]))
    outputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(6))
    actions = torch.tensor([[0, 2], [1, 0], [1, 1], [0, 0]])
    logprob, entropy = head.evaluate(outputs, actions)
    parts = [torch.distributions.Categorical(logits=x) for x in outputs.split([2, 3], -1)]
    torch.testing.assert_close(logprob, sum(p.log_prob(actions[:, i]) for i, p in enumerate(parts)))
    torch.testing.assert_close(entropy, sum(p.entropy() for p in parts))


def test_a_box_action_is_scored_unclipped_and_clipped_for_the_environment():
    space = spaces.Box(-0.1, 0.1, (1,))
    policy = MLPPolicy(BOX, space, log_std=1.0)
    actions, logprobs = policy.act(torch.zeros(50, 3), generator=torch.Generator().manual_seed(7))
    assert (actions.abs() > 0.1).any()
    peer = torch.distributions.Normal(torch.zeros(1), math.e)
    torch.testing.assert_close(logprobs, peer.log_prob(actions).sum(-1))
    sent = ActionDecoder(space)(actions.numpy())
    np.testing.assert_array_equal(sent, np.clip(actions.numpy(), -0.1, 0.1).astype(np.float32))


def test_initialization_is_orthogonal_with_the_gains_of_baselines_and_nearly_uniform():
    policy = MLPPolicy(spaces.Box(-1, 1, (4,)), spaces.Discrete(6))
    for net, last in ((policy.actor, 0.01), (policy.critic, 1.0)):
        for layer, gain in zip((net[0], net[2], net[4]), (math.sqrt(2), math.sqrt(2), last), strict=True):
            weight = layer.weight.detach()
            gram = weight.T @ weight if weight.shape[0] >= weight.shape[1] else weight @ weight.T
            torch.testing.assert_close(gram, gain**2 * torch.eye(len(gram)), atol=1e-5, rtol=0)
            assert (layer.bias == 0).all()
    observations = torch.randn(100, 1, 4)
    entropy = policy.evaluate(observations, torch.zeros(100, 1, dtype=torch.long), None).entropy
    assert (entropy >= 0.99 * math.log(6)).all()


def test_schedules_never_go_below_0_also_beyond_their_end():
    line = Linear(1e-3)
    assert [value_at(line, x) for x in (0.0, 0.5, 1.0, 1.7)] == pytest.approx([1e-3, 5e-4, 0.0, 0.0])
    assert value_at(0.2, 3.0) == 0.2
    with pytest.raises(ValueError, match="finite and >= 0"):
        Linear(1.0, -1.0)
