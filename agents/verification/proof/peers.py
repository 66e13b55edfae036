"""Peers of our update and advantages: independent float64 numpy, and Stable-Baselines3's own on the same rollout.

The numpy implementation shares nothing with ``agents``: no autograd, no torch optimizer, no recursion over time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from agents.config import UpdateConfig
from agents.control.fast_mlp import FastMLP
from agents.control.mlp import MLPPolicy
from agents.functional.advantages import generalized_advantages
from agents.rollout import Batch
from agents.update import update

Array = NDArray[np.float64]
STEPS, MINIBATCH, EPOCHS, CLIP, ENTROPY_COEF, VALUE_COEF = 64, 16, 3, 0.1, 0.01, 0.4


class NumpyPPO:
    """PPO's update of a tanh actor and critic of two hidden layers, ``policy``'s at first, for a Discrete action."""

    def __init__(self, policy: MLPPolicy) -> None:
        self.p = {name: value.detach().double().numpy().copy() for name, value in policy.named_parameters()}
        self.m = {name: np.zeros_like(value) for name, value in self.p.items()}
        self.v = {name: np.zeros_like(value) for name, value in self.p.items()}
        self.t = 0

    def forward(self, net: str, x: Array) -> list[Array]:
        """Inputs, hidden layers and outputs of "actor" or "critic" for ``x`` ``[N, D]``."""
        h1 = np.tanh(x @ self.p[f"{net}.0.weight"].T + self.p[f"{net}.0.bias"])
        h2 = np.tanh(h1 @ self.p[f"{net}.2.weight"].T + self.p[f"{net}.2.bias"])
        return [x, h1, h2, h2 @ self.p[f"{net}.4.weight"].T + self.p[f"{net}.4.bias"]]

    def backward(self, net: str, layers: list[Array], g: Array) -> dict[str, Array]:
        """Gradients of all weights and biases, from those of the outputs ``[N, K]``."""
        gradients = {}
        for number, below in ((4, layers[2]), (2, layers[1]), (0, layers[0])):
            gradients[f"{net}.{number}.weight"], gradients[f"{net}.{number}.bias"] = g.T @ below, g.sum(0)
            g = (g @ self.p[f"{net}.{number}.weight"]) * (1 - below**2)
        return gradients

    def step(
        self,
        x: Array,
        actions: NDArray[np.int64],
        old: Array,
        advantages: Array,
        returns: Array,
        *,
        clip: float,
        value_coef: float,
        entropy_coef: float,
        max_norm: float,
        rate: float,
    ) -> None:
        """One step of Adam on the clipped surrogate, half the squared value error and the entropy bonus.

        Source: Schulman et al. 2017, eqs. 7 and 9 (arXiv:1707.06347); Kingma & Ba 2015, algorithm 1.
        """
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


def advantages_by_definition(
    rollout: Mapping[str, NDArray[Any]], *, gamma: float, lam: float, mask: NDArray[np.bool_]
) -> Array:
    """GAE as the sum over l of ``(gamma lam)^l delta_{t+l}``, each computed separately: O(T^2).

    ``rollout`` has ``rewards, values, next_values, terminated, ended``, ``[B, T]`` each; ``mask [B, T]`` is True on
    steps that count, and ``l`` counts these only. Source: Schulman et al. 2016, eq. 16 (arXiv:1506.02438).
    """
    r, v, after = rollout["rewards"], rollout["values"], rollout["next_values"]
    delta = r + gamma * after * (1 - rollout["terminated"]) - v
    advantages = np.zeros(r.shape)
    for b in range(r.shape[0]):
        for t in range(r.shape[1]):
            if not mask[b, t]:
                continue
            for later in np.flatnonzero(mask[b, t:]) + t:
                advantages[b, t] += (gamma * lam) ** mask[b, t:later].sum() * delta[b, later]
                if rollout["ended"][b, later]:
                    break
    return advantages


def update_difference(env_id: str, *, fast: bool) -> float:
    """Largest absolute difference of any parameter after SB3's ``PPO.train()`` and our ``update``."""
    peer = _peer(env_id)
    ours = _same_weights(peer)
    batch = _same_rollout(peer)
    orders = [torch.randperm(STEPS, generator=torch.Generator().manual_seed(i)) for i in range(EPOCHS)]
    with mock.patch.object(np.random, "permutation", side_effect=[order.numpy() for order in orders]):
        peer.train()
    coefs: dict[str, Any] = {"value_coef": 2 * VALUE_COEF, "entropy_coef": ENTROPY_COEF}  # SB3's value loss has no half
    config = UpdateConfig(epochs=EPOCHS, minibatch_size=MINIBATCH, normalize_advantages="minibatch", **coefs)
    learner: Any = FastMLP(ours) if fast else ours
    optimizer = torch.optim.Adam([learner.flat] if fast else ours.parameters(), lr=3e-4, eps=1e-5)
    with mock.patch.object(torch, "randperm", side_effect=orders):
        update(learner, optimizer, batch, config, clip=CLIP, generator=torch.Generator())
    theirs = [value for net in ("policy", "value") for layer in _layers(peer, net) for value in layer.parameters()]
    mine = [*ours.actor.parameters(), *ours.critic.parameters(), *ours.head.parameters()]
    theirs += [peer.policy.log_std] if hasattr(peer.policy, "log_std") else []
    return max(float((one - other).detach().abs().max()) for one, other in zip(mine, theirs, strict=True))


def advantage_difference() -> float:
    """Largest absolute difference of advantages and returns between SB3's RolloutBuffer and ours.

    SB3 knows one flag, so every end is a termination here; it computes in float32.
    """
    from stable_baselines3.common.buffers import RolloutBuffer

    rng, rows, steps = np.random.default_rng(5), 3, 12
    rewards, values = rng.normal(size=(2, rows, steps)).astype(np.float32)
    terminated = rng.random((rows, steps)) < 0.2
    last = rng.normal(size=rows).astype(np.float32)
    buffer = RolloutBuffer(
        steps, gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2), "cpu", gae_lambda=0.95, gamma=0.98, n_envs=rows
    )
    starts = np.concatenate([np.zeros((rows, 1)), terminated[:, :-1]], 1)
    for t in range(steps):
        start, value = starts[:, t], torch.from_numpy(values[:, t].copy())
        buffer.add(np.zeros((rows, 1)), np.zeros(rows), rewards[:, t], start, value, torch.zeros(rows))
    buffer.compute_returns_and_advantage(torch.from_numpy(last), terminated[:, -1])
    ended = terminated.copy()
    ended[:, -1] = True
    tensors = [torch.from_numpy(x) for x in (rewards, values, np.c_[values[:, 1:], last], terminated, ended)]
    advantages = generalized_advantages(*tensors, gamma=0.98, lam=0.95).numpy()
    return max(
        float(np.abs(advantages - buffer.advantages.T).max()),
        float(np.abs(advantages + values - buffer.returns.T).max()),
    )


def _peer(env_id: str) -> Any:
    from stable_baselines3 import PPO
    from stable_baselines3.common.logger import Logger

    sizes: dict[str, Any] = {"n_steps": STEPS, "batch_size": MINIBATCH, "n_epochs": EPOCHS}
    coefs: dict[str, Any] = {"ent_coef": ENTROPY_COEF, "vf_coef": VALUE_COEF, "clip_range": CLIP}
    peer: Any = PPO("MlpPolicy", gym.make(env_id), seed=1, device="cpu", **sizes, **coefs)
    peer.set_logger(Logger(None, []))
    _, callback = peer._setup_learn(STEPS)
    peer.collect_rollouts(peer.env, callback, peer.rollout_buffer, STEPS)
    return peer


def _layers(peer: Any, net: str) -> list[Any]:
    last = peer.policy.action_net if net == "policy" else peer.policy.value_net
    return [*getattr(peer.policy.mlp_extractor, f"{net}_net"), last]


def _same_weights(peer: Any) -> MLPPolicy:
    ours = MLPPolicy(peer.env.observation_space, peer.env.action_space)
    for net, mine in (("policy", ours.actor), ("value", ours.critic)):
        for one, other in zip(mine, _layers(peer, net), strict=True):
            one.load_state_dict(other.state_dict())
    if hasattr(peer.policy, "log_std"):
        ours.head.log_std.data.copy_(peer.policy.log_std.data)  # type: ignore[operator]
    return ours


def _same_rollout(peer: Any) -> Batch:
    names = ("observations", "actions", "log_probs", "values", "advantages", "returns")
    arrays = (getattr(peer.rollout_buffer, name) for name in names)
    observations, actions, *rest = (torch.tensor(np.swapaxes(array, 0, 1).copy()) for array in arrays)
    if isinstance(peer.env.action_space, gym.spaces.Discrete):
        actions = actions[..., 0].long()
    parts = [observations, actions, *rest, torch.ones(1, STEPS, dtype=torch.bool)]
    return Batch(*parts)
