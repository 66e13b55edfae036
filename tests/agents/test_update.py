"""The optimizer loop against a float64 numpy PPO and against Stable-Baselines3's own ``train``."""

from __future__ import annotations

import copy
from itertools import chain

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.algorithms.ppo import PPO
from agents.config import PPOConfig, UpdateConfig
from agents.control.mlp import MLPPolicy
from agents.functional.masked import explained_variance
from agents.interfaces import Evaluation
from agents.rollout import Batch
from agents.update import update
from agents.verification.proof.peers import NumpyPPO, update_difference

BOX = spaces.Box(-1, 1, (4,))
ACTIONS = {
    "discrete": spaces.Discrete(3, start=5),
    "box": spaces.Box(-1, 1, (2,)),
    "multidiscrete": spaces.MultiDiscrete([2, 3]),
    "multibinary": spaces.MultiBinary(3),
}


def make_batch(policy, rows: int = 6, steps: int = 5, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    observations = draw(rows, steps, 4).to(next(policy.parameters()).dtype)
    actions, logprobs = policy.act(observations, generator=generator)
    kind = observations.dtype
    mask = torch.ones(rows, steps, dtype=torch.bool)
    values, advantages, returns = (draw(rows, steps).to(kind) for _ in range(3))
    return Batch(observations, actions, logprobs.to(kind), values, advantages, returns, mask)


def adam(policy, rate: float = 1e-3) -> torch.optim.Adam:
    return torch.optim.Adam(policy.parameters(), lr=rate, eps=1e-5)


def test_update_equals_a_numpy_reference_in_float64():
    torch.manual_seed(0)
    policy = MLPPolicy(BOX, spaces.Discrete(3), hidden=(8, 8)).double()
    for parameter in policy.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    batch = make_batch(policy)
    reference = NumpyPPO(policy)
    config = UpdateConfig(
        epochs=3, minibatch_size=10, value_coef=0.7, entropy_coef=0.01, max_grad_norm=0.5, normalize_advantages="batch"
    )
    update(policy, adam(policy), batch, config, clip=0.05, generator=torch.Generator().manual_seed(7))
    flat = lambda x: x.flatten(0, 1).numpy()  # noqa: E731
    advantages = flat(batch.advantages)
    advantages = (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8)
    shuffles = torch.Generator().manual_seed(7)
    for _ in range(3):
        order = torch.randperm(30, generator=shuffles).numpy()
        for part in np.split(order, 3):
            reference.step(
                flat(batch.observations)[part],
                flat(batch.actions)[part],
                flat(batch.old_logprobs)[part],
                advantages[part],
                flat(batch.returns)[part],
                clip=0.05,
                value_coef=0.7,
                entropy_coef=0.01,
                max_norm=0.5,
                rate=1e-3,
            )
    for name, value in policy.named_parameters():
        np.testing.assert_allclose(value.detach().numpy(), reference.p[name], rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_update_equals_stable_baselines3(env_id, fast):
    """Same weights, same rollout, same minibatch order, value clipping off: parameters to 1e-6 after one ``train``."""
    assert update_difference(env_id, fast=fast) <= 1e-6


@pytest.mark.parametrize("kind", ACTIONS)
def test_nothing_moves_and_every_ratio_is_1_at_learning_rate_0(kind):
    torch.manual_seed(2)
    policy = MLPPolicy(BOX, ACTIONS[kind])
    batch = make_batch(policy)
    before = copy.deepcopy(policy.state_dict())
    config = UpdateConfig(epochs=2, minibatch_size=7)
    figures = update(policy, adam(policy, 0.0), batch, config, clip=1e-3, generator=torch.Generator())
    assert figures["train/clip_fraction"] == 0.0
    assert figures["train/approx_kl"] == pytest.approx(0.0, abs=1e-9)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, before[name])


class Recorder(torch.nn.Module):
    """Notes which observations it is asked about; two trainable numbers."""

    def __init__(self, keeps_rows: bool) -> None:
        super().__init__()
        self.keeps_rows = keeps_rows
        self.a, self.b = torch.nn.Parameter(torch.tensor(0.1)), torch.nn.Parameter(torch.tensor(0.2))
        self.seen: list[list[float]] = []

    def evaluate(self, observations, actions, mask):
        self.seen.append(observations.flatten().tolist())
        x = observations[..., 0]
        return Evaluation(-((x - self.a) ** 2), torch.ones_like(x), x * self.b)


def numbered(rows: int, steps: int, mask=None) -> Batch:
    x = torch.arange(rows * steps, dtype=torch.float32).view(rows, steps) / 10
    mask = torch.ones(rows, steps, dtype=torch.bool) if mask is None else mask
    return Batch(x[..., None], x, -(x**2), x, torch.sin(7 * x), torch.cos(3 * x), mask)


@pytest.mark.parametrize("keeps_rows", [False, True])
@pytest.mark.parametrize("size", [1, 4, 5, 11, 64])
def test_every_step_is_used_exactly_once_per_epoch_in_nearly_equal_minibatches(keeps_rows, size):
    policy, batch = Recorder(keeps_rows), numbered(11, 3)
    config = UpdateConfig(epochs=2, minibatch_size=size)
    update(policy, adam(policy), batch, config, clip=0.2, generator=torch.Generator().manual_seed(0))
    half = len(policy.seen) // 2
    for epoch in (policy.seen[:half], policy.seen[half:]):
        assert sorted(chain(*epoch)) == sorted(batch.observations.flatten().tolist())
        lengths = [len(part) for part in epoch]
        assert max(lengths) - min(lengths) <= (3 if keeps_rows else 1)
        assert max(lengths) <= size * (3 if keeps_rows else 1)


def test_masked_steps_are_never_trained_on():
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[1, 2] = mask[3, 0] = False
    batch = numbered(4, 3, mask)
    batch.observations[~mask] = float("nan")
    policy = Recorder(keeps_rows=False)
    update(policy, adam(policy), batch, UpdateConfig(epochs=1, minibatch_size=4), clip=0.2, generator=torch.Generator())
    seen = [*chain(*policy.seen)]
    assert len(seen) == 10
    assert not np.isnan(seen).any()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("normalize", ["batch", "minibatch", "none"])
def test_logged_ratios_advantages_and_returns_are_those_of_the_steps_that_count_before_whitening(masked, normalize):
    mask = torch.ones(4, 3, dtype=torch.bool)
    if masked:
        mask[1, 2] = mask[3, 0] = False
    batch = numbered(4, 3, mask)
    for values in (batch.old_logprobs, batch.advantages, batch.returns):
        values[~mask] = float("nan")
    policy = Recorder(keeps_rows=True)
    config = UpdateConfig(epochs=2, minibatch_size=2, normalize_advantages=normalize)
    figures = update(policy, adam(policy, 0.0), batch, config, clip=0.2, generator=torch.Generator())
    x = (torch.arange(12.0) / 10)[mask.flatten()].numpy()
    ratio = np.exp(x**2 - (x - 0.1) ** 2)  # a is 0.1 and stays there
    expected = {
        "ratio_mean": ratio.mean(),
        "ratio_max": ratio.max(),
        "advantage_mean": np.sin(7 * x).mean(),
        "advantage_std": np.sin(7 * x).std(),
        "return_mean": np.cos(3 * x).mean(),
        "return_std": np.cos(3 * x).std(),
    }
    assert {name: figures[f"train/{name}"] for name in expected} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_microbatches_add_up_to_the_minibatch_also_with_ragged_rows(size):
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 2, 4, 0])[:, None]  # one row counts for nothing at all
    whole, cut = Recorder(keeps_rows=True), Recorder(keeps_rows=True)
    for policy, micro in ((whole, None), (cut, size)):
        config = UpdateConfig(epochs=2, minibatch_size=6, microbatch_size=micro, entropy_coef=0.1)
        figures = update(policy, adam(policy), numbered(6, 5, mask), config, clip=0.2, generator=torch.Generator())
        policy.loss = figures["train/loss"]  # type: ignore[assignment]
    torch.testing.assert_close(cut.a, whole.a)
    torch.testing.assert_close(cut.b, whole.b)
    assert cut.loss == pytest.approx(whole.loss, rel=1e-5)


@pytest.mark.parametrize("keeps_rows", [False, True])
def test_logged_figures_do_not_see_masked_steps(keeps_rows):
    mask = torch.tensor([[True, True, False], [True, False, False]])
    figures = []
    for garbage in (0.0, 1e3):
        batch = numbered(2, 3, mask)
        batch = Batch(**{**vars(batch), "old_logprobs": batch.old_logprobs.masked_fill(~mask, garbage)})
        batch.returns[~mask] = batch.old_values[~mask] = garbage
        policy = Recorder(keeps_rows)
        config = UpdateConfig(epochs=2, minibatch_size=6)
        figures.append(update(policy, adam(policy), batch, config, clip=0.2, generator=torch.Generator()))
    assert figures[0] == figures[1]


def test_single_step_minibatches_make_no_nan():
    policy = MLPPolicy(BOX, spaces.Discrete(2))
    config = UpdateConfig(epochs=1, minibatch_size=1, normalize_advantages="minibatch")
    update(policy, adam(policy), make_batch(policy), config, clip=0.2, generator=torch.Generator())
    assert all(torch.isfinite(p).all() for p in policy.parameters())


def test_target_kl_ends_the_update_before_the_step_that_follows():
    torch.manual_seed(0)
    policy = MLPPolicy(BOX, spaces.Discrete(3))
    config = UpdateConfig(epochs=50, minibatch_size=30, target_kl=1e-3)
    figures = update(policy, adam(policy, 1e-2), make_batch(policy), config, clip=0.2, generator=torch.Generator())
    assert figures["train/early_stop"] == 1.0
    calm = UpdateConfig(epochs=2, minibatch_size=30, target_kl=1e9)
    figures = update(policy, adam(policy), make_batch(policy), calm, clip=0.2, generator=torch.Generator())
    assert figures["train/early_stop"] == 0.0


def test_no_step_follows_the_minibatch_that_went_too_far():
    policies = []
    for settings in ({"epochs": 50, "target_kl": 1e-9}, {"epochs": 1}):  # the first minibatch is at KL 0, exactly
        torch.manual_seed(0)
        policies.append(MLPPolicy(BOX, spaces.Discrete(3)))
        config = UpdateConfig(minibatch_size=30, **settings)
        batch = make_batch(policies[-1])
        update(policies[-1], adam(policies[-1], 1e-2), batch, config, clip=0.2, generator=torch.Generator())
    for one, other in zip(*(policy.parameters() for policy in policies), strict=True):
        assert torch.equal(one, other)


def test_the_logged_kl_and_clip_fraction_by_hand():
    policy, batch = Recorder(keeps_rows=False), numbered(1, 4)
    change = torch.tensor([[0.5, 0.4, 0.1, -0.1]])  # log pi - log pi_old
    now = policy.evaluate(batch.observations, batch.actions, None).logprobs.detach()
    batch = Batch(**{**vars(batch), "old_logprobs": now - change})
    config = UpdateConfig(epochs=1)
    figures = update(policy, adam(policy, 0.0), batch, config, clip=0.2, generator=torch.Generator())
    assert figures["train/approx_kl"] == pytest.approx(float((change.exp() - 1 - change).mean()), rel=1e-5)
    assert figures["train/clip_fraction"] == 0.5


def test_a_loss_that_is_not_finite_is_reported():
    policy = MLPPolicy(BOX, spaces.Discrete(3))
    batch = make_batch(policy)
    batch.returns[0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match="not finite"):
        update(policy, adam(policy), batch, UpdateConfig(epochs=1), clip=0.2, generator=torch.Generator())


def test_a_gradient_that_is_not_finite_moves_nothing_although_the_loss_is():
    policy = MLPPolicy(BOX, spaces.Discrete(3))
    batch = make_batch(policy)
    next(policy.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    before = copy.deepcopy(policy.state_dict())
    with pytest.raises(FloatingPointError, match="the gradient is not finite, its norm"):
        update(policy, adam(policy), batch, UpdateConfig(epochs=1), clip=0.2, generator=torch.Generator())
    torch.testing.assert_close(policy.state_dict(), before, rtol=0, atol=0)


def test_explained_variance_is_1_for_a_perfect_critic_and_0_for_a_constant_one():
    returns = torch.tensor([[1.0, 2.0, 4.0]])
    assert explained_variance(returns, returns, None).item() == 1.0
    assert explained_variance(torch.full((1, 3), 9.0), returns, None).item() == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(returns, torch.ones(1, 3), None).item() == 0.0


def test_the_metrics_are_all_explained():
    from agents.runs.logging import METRICS

    agent = PPO("CartPole-v1", PPOConfig(num_envs=2, num_steps=64, epochs=1))
    agent.learn(128)
    assert set(agent.metrics) <= set(METRICS)
