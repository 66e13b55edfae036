"""Our update and advantages beside Stable-Baselines3's own, on the same weights, rollout and minibatch order."""

from __future__ import annotations

from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import torch

from agents.config import UpdateConfig
from agents.control.fast_mlp import FastMLP
from agents.control.mlp import MLPPolicy
from agents.functional.advantages import generalized_advantages
from agents.rollout import Batch
from agents.update import update

STEPS, MINIBATCH, EPOCHS, CLIP, ENTROPY_COEF, VALUE_COEF = 64, 16, 3, 0.1, 0.01, 0.4


def update_difference(env_id: str, *, fast: bool, seed: int = 1) -> float:
    """Largest absolute difference of any parameter after SB3's ``PPO.train()`` and after our ``update``.

    Args:
        env_id: with Box observations and Discrete or Box actions.
        fast: whether ours runs as ``FastMLP``.
        seed: of SB3's weights and rollout.
    """
    peer = _peer(env_id, seed)
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


def advantage_difference(*, seed: int = 5, rows: int = 3, steps: int = 12) -> float:
    """Largest absolute difference of advantages and returns between SB3's RolloutBuffer and ours.

    SB3 knows one flag, so every end is a termination here; it computes in float32.
    """
    from stable_baselines3.common.buffers import RolloutBuffer

    rng = np.random.default_rng(seed)
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


def _peer(env_id: str, seed: int) -> Any:
    from stable_baselines3 import PPO
    from stable_baselines3.common.logger import Logger

    sizes: dict[str, Any] = {"n_steps": STEPS, "batch_size": MINIBATCH, "n_epochs": EPOCHS}
    coefs: dict[str, Any] = {"ent_coef": ENTROPY_COEF, "vf_coef": VALUE_COEF, "clip_range": CLIP}
    peer: Any = PPO("MlpPolicy", gym.make(env_id), seed=seed, device="cpu", **sizes, **coefs)
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
        ours.head.log_std.data.copy_(peer.policy.log_std.data)  # type: ignore[union-attr, operator]
    return ours


def _same_rollout(peer: Any) -> Batch:
    names = ("observations", "actions", "log_probs", "values", "advantages", "returns")
    arrays = (getattr(peer.rollout_buffer, name) for name in names)
    observations, actions, *rest = (torch.tensor(np.swapaxes(array, 0, 1).copy()) for array in arrays)
    if isinstance(peer.env.action_space, gym.spaces.Discrete):
        actions = actions[..., 0].long()
    parts = [observations, actions, *rest, torch.ones(1, STEPS, dtype=torch.bool)]
    return Batch(*parts)
