"""An independent float64 numpy implementation of PPO's update and GAE, to compare ours with.

Nothing here is shared with ``agents``: no autograd, no torch optimizer, no recursion over time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from agents.control.mlp import MLPPolicy

Array = NDArray[np.float64]


class NumpyPPO:
    """PPO's update of a tanh actor and critic of two hidden layers, for a Discrete action, with Adam.

    Args:
        policy: an ``agents.control.mlp.MLPPolicy`` with the initial parameters, which are copied.
    """

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

    Source: Schulman et al. 2016, eq. 16 (arXiv:1506.02438).

    Args:
        rollout: ``rewards, values, next_values, terminated, ended``, ``[B, T]`` each.
        gamma: discount per step.
        lam: GAE's lambda.
        mask: ``[B, T]`` True on steps that count; ``l`` counts these only.
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
