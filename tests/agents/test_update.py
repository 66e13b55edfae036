"""The optimiser loop against a float64 numpy PPO and against Stable-Baselines3's own ``train``."""

from __future__ import annotations

import copy
from itertools import chain

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.config import PPOConfig, UpdateConfig
from agents.mlp import MLPPolicy
from agents.policy import Evaluation
from agents.ppo import PPO
from agents.rollout import Batch
from agents.update import explained_variance, update

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


class NumpyPPO:
    """PPO's update of a tanh actor and critic for a Discrete action, derived by hand, in float64 numpy."""

    def __init__(self, policy: MLPPolicy) -> None:
        self.p = {name: value.detach().double().numpy().copy() for name, value in policy.named_parameters()}
        self.m = {name: np.zeros_like(value) for name, value in self.p.items()}
        self.v = {name: np.zeros_like(value) for name, value in self.p.items()}
        self.t = 0

    def forward(self, net: str, x: np.ndarray) -> list[np.ndarray]:
        h1 = np.tanh(x @ self.p[f"{net}.0.weight"].T + self.p[f"{net}.0.bias"])
        h2 = np.tanh(h1 @ self.p[f"{net}.2.weight"].T + self.p[f"{net}.2.bias"])
        return [x, h1, h2, h2 @ self.p[f"{net}.4.weight"].T + self.p[f"{net}.4.bias"]]

    def backward(self, net: str, layers: list[np.ndarray], g: np.ndarray) -> dict[str, np.ndarray]:
        gradients = {}
        for number, below in ((4, layers[2]), (2, layers[1]), (0, layers[0])):
            gradients[f"{net}.{number}.weight"], gradients[f"{net}.{number}.bias"] = g.T @ below, g.sum(0)
            g = (g @ self.p[f"{net}.{number}.weight"]) * (1 - below**2)
        return gradients

    def step(self, x, actions, old, advantages, returns, *, clip, value_coef, entropy_coef, max_norm, rate) -> None:
        n, actor, critic = len(x), self.forward("actor", x), self.forward("critic", x)
        p = np.exp(actor[3] - actor[3].max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        logp, onehot = np.log(p), np.eye(p.shape[1])[actions]
        ratio = np.exp((logp * onehot).sum(1) - old)
        stopped = ((advantages > 0) & (ratio > 1 + clip)) | ((advantages < 0) & (ratio < 1 - clip))
        g_logp = np.where(stopped, 0.0, -advantages * ratio / n)
        entropy = -(p * logp).sum(1, keepdims=True)
        g = g_logp[:, None] * (onehot - p) + entropy_coef / n * p * (logp + entropy)
        gradients = self.backward("actor", actor, g)
        gradients |= self.backward("critic", critic, value_coef * (critic[3] - returns[:, None]) / n)
        norm = np.sqrt(sum((value**2).sum() for value in gradients.values()))
        scale = min(1.0, max_norm / (norm + 1e-6))
        self.t += 1
        for name, value in gradients.items():
            value = value * scale
            self.m[name] = 0.9 * self.m[name] + 0.1 * value
            self.v[name] = 0.999 * self.v[name] + 0.001 * value**2
            m, v = self.m[name] / (1 - 0.9**self.t), self.v[name] / (1 - 0.999**self.t)
            self.p[name] -= rate * m / (np.sqrt(v) + 1e-5)


def test_update_equals_a_numpy_reference_in_float64():
    torch.manual_seed(0)
    policy = MLPPolicy(BOX, spaces.Discrete(3), hidden=(8, 8)).double()
    for parameter in policy.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    batch = make_batch(policy)
    reference = NumpyPPO(policy)
    config = UpdateConfig(
        epochs=3, minibatch_size=10, value_coef=0.7, entropy_coef=0.01, max_grad_norm=0.5, normalise_advantages="batch"
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
@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_update_equals_stable_baselines3(kind, fast, monkeypatch):
    """Same weights, same rollout, same minibatch order, value clipping off: parameters to 1e-6 after one ``train``."""
    import gymnasium as gym
    from stable_baselines3 import PPO as Peer
    from stable_baselines3.common.logger import Logger

    from agents.fast_mlp import FastMLP

    env = "CartPole-v1" if kind == "discrete" else "Pendulum-v1"
    peer = Peer(
        "MlpPolicy",
        gym.make(env),
        n_steps=64,
        batch_size=16,
        n_epochs=3,
        ent_coef=0.01,
        vf_coef=0.4,
        seed=1,
        clip_range=0.1,
    )
    peer.set_logger(Logger(None, []))
    _, callback = peer._setup_learn(64)
    peer.collect_rollouts(peer.env, callback, peer.rollout_buffer, 64)
    buffer, space = peer.rollout_buffer, peer.env
    ours = MLPPolicy(space.observation_space, space.action_space)
    for net in ("policy", "value"):
        theirs = [*getattr(peer.policy.mlp_extractor, f"{net}_net")]
        theirs.append(peer.policy.action_net if net == "policy" else peer.policy.value_net)
        mine = ours.actor if net == "policy" else ours.critic
        for one, other in zip(mine, theirs, strict=True):
            one.load_state_dict(other.state_dict())
    if kind == "box":
        ours.head.log_std.data.copy_(peer.policy.log_std.data)
    cut = lambda x: torch.tensor(np.swapaxes(x, 0, 1).copy())  # noqa: E731
    actions = cut(buffer.actions)
    batch = Batch(
        observations=cut(buffer.observations),
        actions=actions[..., 0].long() if kind == "discrete" else actions,
        old_logprobs=cut(buffer.log_probs),
        old_values=cut(buffer.values),
        advantages=cut(buffer.advantages),
        returns=cut(buffer.returns),
        mask=torch.ones(1, 64, dtype=torch.bool),
    )
    orders = [torch.randperm(64, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    theirs_next, ours_next = iter(orders), iter(orders)
    monkeypatch.setattr(np.random, "permutation", lambda n: next(theirs_next).numpy())
    peer.train()
    monkeypatch.setattr(torch, "randperm", lambda n, generator: next(ours_next))
    config = UpdateConfig(
        epochs=3, minibatch_size=16, value_coef=0.8, entropy_coef=0.01, normalise_advantages="minibatch"
    )
    learner = FastMLP(ours) if fast else ours
    optimiser = torch.optim.Adam([learner.flat] if fast else ours.parameters(), lr=3e-4, eps=1e-5)
    update(learner, optimiser, batch, config, clip=0.1, generator=torch.Generator())
    theirs = [*peer.policy.mlp_extractor.policy_net.parameters(), *peer.policy.action_net.parameters()]
    theirs += [*peer.policy.mlp_extractor.value_net.parameters(), *peer.policy.value_net.parameters()]
    for one, other in zip([*ours.actor.parameters(), *ours.critic.parameters()], theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


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


def test_single_step_minibatches_make_no_nan():
    policy = MLPPolicy(BOX, spaces.Discrete(2))
    config = UpdateConfig(epochs=1, minibatch_size=1, normalise_advantages="minibatch")
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


def test_a_loss_that_is_not_finite_is_reported():
    policy = MLPPolicy(BOX, spaces.Discrete(3))
    batch = make_batch(policy)
    batch.returns[0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match="not finite"):
        update(policy, adam(policy), batch, UpdateConfig(epochs=1), clip=0.2, generator=torch.Generator())


def test_explained_variance_is_1_for_a_perfect_critic_and_0_for_a_constant_one():
    returns = torch.tensor([[1.0, 2.0, 4.0]])
    assert explained_variance(returns, returns, None).item() == 1.0
    assert explained_variance(torch.full((1, 3), 9.0), returns, None).item() == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(returns, torch.ones(1, 3), None).item() == 0.0


def test_the_metrics_are_all_explained():
    from agents.logging import METRICS

    agent = PPO("CartPole-v1", PPOConfig(num_envs=2, num_steps=64, epochs=1))
    agent.learn(128)
    assert set(agent.metrics) <= set(METRICS)
