"""From a network's outputs to actions: one head for every discrete space, two for Box."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.functional import distributions, kl

SMALLEST_VARIANCE = 1e-6
"""Added to a state-dependent variance, which would be 0 where all of phi is."""


class CategoricalHead(nn.Module):
    """Independent categorical choices: Discrete is one of them, MultiDiscrete several, MultiBinary several of two.

    Actions are stored counted from 0: ``[...]`` int64 for Discrete, ``[..., K]`` for the others; ``start`` is the
    concern of ``agents.control.spaces.ActionDecoder``.
    """

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary) -> None:
        super().__init__()
        self.alone = isinstance(space, spaces.Discrete)
        if isinstance(space, spaces.Discrete):
            self.sizes = [int(space.n)]
        elif isinstance(space, spaces.MultiDiscrete):
            self.sizes = [int(n) for n in space.nvec.reshape(-1)]
        else:
            self.sizes = [2] * int(np.prod(space.shape))
        self.num_outputs = sum(self.sizes)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Gumbel noise ``[*shape, num_outputs]``."""
        return distributions.gumbel_noise((*shape, self.num_outputs), generator)

    def sample(self, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """Actions for ``outputs`` ``[..., num_outputs]``; without noise the likeliest ones."""
        chosen = outputs if noise is None else outputs + noise
        if self.alone:
            return chosen.argmax(-1)
        return torch.stack([part.argmax(-1) for part in chosen.split(self.sizes, -1)], -1)

    def evaluate(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy (nats) of ``actions``, summed over the choices: ``[...]`` each."""
        if self.alone:
            logprobs = distributions.categorical_logprobs(outputs)
            return distributions.categorical_logprob(logprobs, actions), distributions.categorical_entropy(logprobs)
        parts = [distributions.categorical_logprobs(part) for part in outputs.split(self.sizes, -1)]
        chosen = [distributions.categorical_logprob(part, actions[..., i]) for i, part in enumerate(parts)]
        entropies = [distributions.categorical_entropy(part) for part in parts]
        logprob, entropy = torch.stack(chosen, -1), torch.stack(entropies, -1)
        return logprob.sum(-1), entropy.sum(-1)

    def distribution(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """The parameters of the distribution of the actions: each choice's log-probabilities ``[..., A_i]``, nats."""
        return tuple(distributions.categorical_logprobs(part) for part in outputs.split(self.sizes, -1))

    def kl(self, old: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> Tensor:
        """The exact KL(old || new) of two results of ``distribution``: ``[...]`` nats, summed over the choices."""
        return torch.stack([kl.full_kl(one, other) for one, other in zip(old, new, strict=True)]).sum(0)


class NormalHead(nn.Module):
    """Independent normals around the network's outputs; a subclass gives their ``distribution``.

    Actions are stored as sampled; the environment gets them clipped (``agents.control.spaces.ActionDecoder``).

    Raises:
        ValueError: if the box is not of floats.
    """

    def __init__(self, space: spaces.Box) -> None:
        super().__init__()
        if not np.issubdtype(space.dtype, np.floating):
            raise ValueError(f"a Box action must be of floats, received {space}")
        self.num_outputs = int(np.prod(space.shape))

    def evaluate(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density and entropy (nats) of unclipped ``actions`` ``[..., D]``: ``[...]`` each."""
        means, log_std = self.distribution(outputs)
        return distributions.gaussian_logprob(actions, means, log_std), distributions.gaussian_entropy(means, log_std)

    def distribution(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution of the actions: means ``[..., D]`` and log standard deviations, ``[D]`` or ``[..., D]``."""
        raise NotImplementedError

    def kl(self, old: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> Tensor:
        """The exact KL(old || new) of two results of ``distribution``: ``[...]`` nats."""
        return kl.gaussian_kl(*old, *new)


class GaussianHead(NormalHead):
    """Normals with one learned log standard deviation per dimension, ``log_std`` at first."""

    def __init__(self, space: spaces.Box, *, log_std: float = 0.0) -> None:
        super().__init__(space)
        self.log_std = nn.Parameter(torch.full((self.num_outputs,), float(log_std)))

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Standard normal noise ``[*shape, num_outputs]``."""
        return normals((*shape, self.num_outputs), generator)

    def sample(self, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """Actions for ``outputs`` ``[..., D]``; without noise the means."""
        return outputs if noise is None else distributions.sample_gaussian(outputs, self.log_std, noise)

    def distribution(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Means ``[..., D]`` and log standard deviations ``[D]``."""
        return outputs, self.log_std


def normals(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Standard normals, on the generator's device."""
    return torch.randn(shape, generator=generator, device=generator.device if generator is not None else "cpu")


class StateDependentHead(NormalHead):
    """Exploration that depends on the state (gSDE): smooth in time, unlike independent noise.

        a = mean(s) + phi(s) E,   E_ld ~ N(0, std_ld^2),   so that   a_d ~ N(mean_d(s), sum_l phi_l(s)^2 std_ld^2)

    ``phi(s)`` is the actor's last hidden layer; the policy hands over means and phi side by side, ``[..., D + L]``, and
    no gradient reaches phi through the spread. ``E`` is drawn anew every few steps only: between two draws the noise
    pushes the same way as long as the state is the same. Log-probabilities are those of the marginal above.

    Source: Raffin, Kober & Stulp 2021, "Smooth exploration for robotic reinforcement learning" (arXiv:2005.05719),
    sec. 3.

    Args:
        space: Box of any shape.
        num_features: L, width of the actor's last hidden layer.
        log_std: initial log of std_ld.
        sample_freq: steps between two draws of E; -1 draws once a rollout.

    Raises:
        ValueError: if the box is not of floats, or ``sample_freq`` is neither -1 nor at least 1.
    """

    def __init__(self, space: spaces.Box, num_features: int, *, log_std: float = 0.0, sample_freq: int = -1) -> None:
        super().__init__(space)
        if sample_freq != -1 and sample_freq < 1:
            raise ValueError(f"sde_sample_freq is steps, at least 1, or -1 for once a rollout; received {sample_freq}")
        self.num_features = num_features
        self.sample_freq = sample_freq
        self.log_std = nn.Parameter(torch.full((num_features, self.num_outputs), float(log_std)))

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Standard normals for E, ``[*shape, L * D]``; of a rollout ``shape = (T, B)`` each draw lasts for a while."""
        size = self.num_features * self.num_outputs
        if len(shape) < 2:
            return normals((*shape, size), generator)
        steps = shape[0]
        lasts = steps if self.sample_freq == -1 else min(self.sample_freq, steps)
        drawn = normals((-(-steps // lasts), *shape[1:], size), generator)
        return drawn.repeat_interleave(lasts, 0)[:steps]

    def sample(self, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """Actions ``[..., D]`` for ``outputs`` ``[..., D + L]``; without noise the means."""
        means, features = self._split(outputs)
        if noise is None:
            return means
        push = noise.view(*noise.shape[:-1], self.num_features, self.num_outputs) * self.log_std.exp()
        return means + (features.unsqueeze(-2) @ push).squeeze(-2)

    def distribution(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log standard deviations, ``[..., D]`` each."""
        means, features = self._split(outputs)
        variance = features.square() @ (2.0 * self.log_std).exp() + SMALLEST_VARIANCE
        return means, 0.5 * variance.log()

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        means, features = outputs.split([self.num_outputs, self.num_features], -1)
        return means, features.detach()


def head_for(space: spaces.Space[Any], *, log_std: float = 0.0) -> CategoricalHead | GaussianHead:
    """The head for an action space; ValueError for a space that is neither Discrete, MultiDiscrete, MultiBinary nor
    Box."""
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return CategoricalHead(space)
    if isinstance(space, spaces.Box):
        return GaussianHead(space, log_std=log_std)
    raise ValueError(f"actions of {space} are not supported; use Discrete, MultiDiscrete, MultiBinary or Box")
