"""Exploration that depends on the state (gSDE): smooth in time, unlike independent noise.

    a = mean(s) + phi(s) E,   E_ld ~ N(0, std_ld^2),   so that   a_d ~ N(mean_d(s), sum_l phi_l(s)^2 std_ld^2)

``phi(s)`` is the actor's last hidden layer and ``E`` is drawn anew every few steps only: between two draws the noise is
a function of the state, so it pushes the same way as long as the state is the same. Log-probabilities are those of the
marginal above, as in the paper.

Source: Raffin, Kober & Stulp 2021, "Smooth exploration for robotic reinforcement learning" (arXiv:2005.05719), sec. 3.
"""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.functional import distributions, kl

SMALLEST_VARIANCE = 1e-6
"""Added to the variance, which would be 0 where all of phi is."""


class StateDependentHead(nn.Module):
    """Normals around the network's outputs, whose spread is learned per hidden unit and dimension.

    The policy hands over means and hidden layer side by side, ``[..., D + L]``; no gradient reaches the hidden layer
    through the spread.

    Args:
        space: Box of any shape.
        num_features: L, width of the actor's last hidden layer.
        log_std: initial log of std_ld.
        sample_freq: steps between two draws of E; -1 draws once a rollout.

    Raises:
        ValueError: if the box is not of floats, or ``sample_freq`` is neither -1 nor at least 1.
    """

    def __init__(self, space: spaces.Box, num_features: int, *, log_std: float = 0.0, sample_freq: int = -1) -> None:
        super().__init__()
        if not np.issubdtype(space.dtype, np.floating):
            raise ValueError(f"a Box action must be of floats, received {space}")
        if sample_freq != -1 and sample_freq < 1:
            raise ValueError(f"sde_sample_freq is steps, at least 1, or -1 for once a rollout; received {sample_freq}")
        self.num_outputs = int(np.prod(space.shape))
        self.num_features = num_features
        self.sample_freq = sample_freq
        self.log_std = nn.Parameter(torch.full((num_features, self.num_outputs), float(log_std)))

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Standard normals for E, ``[*shape, L * D]``; of a rollout ``shape = (T, B)`` each draw lasts for a while."""
        size = self.num_features * self.num_outputs
        device = generator.device if generator is not None else torch.device("cpu")
        if len(shape) < 2:
            return torch.randn(*shape, size, generator=generator, device=device)
        steps = shape[0]
        lasts = steps if self.sample_freq == -1 else min(self.sample_freq, steps)
        drawn = torch.randn(-(-steps // lasts), *shape[1:], size, generator=generator, device=device)
        return drawn.repeat_interleave(lasts, 0)[:steps]

    def sample(self, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """Actions ``[..., D]`` for ``outputs`` ``[..., D + L]``; without noise the means."""
        means, features = self._split(outputs)
        if noise is None:
            return means
        push = noise.view(*noise.shape[:-1], self.num_features, self.num_outputs) * self.log_std.exp()
        return means + (features.unsqueeze(-2) @ push).squeeze(-2)

    def evaluate(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density and entropy (nats) of unclipped ``actions`` ``[..., D]``: ``[...]`` each."""
        means, log_std = self.distribution(outputs)
        return (distributions.gaussian_logprob(actions, means, log_std), distributions.gaussian_entropy(means, log_std))

    def distribution(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters of the distribution of the actions: means and log standard deviations, ``[..., D]`` each."""
        means, features = self._split(outputs)
        variance = features.square() @ (2.0 * self.log_std).exp() + SMALLEST_VARIANCE
        return means, 0.5 * variance.log()

    def kl(self, old: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> Tensor:
        """The exact KL(old || new) of two results of ``distribution``: ``[...]`` nats."""
        return kl.gaussian_kl(*old, *new)

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        means, features = outputs.split([self.num_outputs, self.num_features], -1)
        return means, features.detach()
