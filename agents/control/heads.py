"""From a network's outputs to actions: one head for every discrete space, one for Box."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.functional import distributions, kl


class CategoricalHead(nn.Module):
    """Independent categorical choices: Discrete is one of them, MultiDiscrete several, MultiBinary several of two.

    Actions are stored counted from 0: ``[...]`` int64 for Discrete, ``[..., K]`` for the others.

    Args:
        space: Discrete, MultiDiscrete or MultiBinary; ``start`` is ``agents.control.spaces.ActionDecoder``'s concern.
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
        logprob = torch.stack(
            [distributions.categorical_logprob(part, actions[..., i]) for i, part in enumerate(parts)], -1
        )
        entropy = torch.stack([distributions.categorical_entropy(part) for part in parts], -1)
        return logprob.sum(-1), entropy.sum(-1)

    def distribution(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """The parameters of the distribution of the actions: each choice's log-probabilities ``[..., A_i]``, nats."""
        return tuple(distributions.categorical_logprobs(part) for part in outputs.split(self.sizes, -1))

    def kl(self, old: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> Tensor:
        """The exact KL(old || new) of two results of ``distribution``: ``[...]`` nats, summed over the choices."""
        return torch.stack([kl.full_kl(one, other) for one, other in zip(old, new, strict=True)]).sum(0)


class GaussianHead(nn.Module):
    """Independent normals around the network's outputs, with one learned log standard deviation per dimension.

    Actions are stored as sampled; the environment gets them clipped (``agents.control.spaces.ActionDecoder``).

    Args:
        space: Box of any shape.
        log_std: initial log of the standard deviation.

    Raises:
        ValueError: if the box is not of floats.
    """

    def __init__(self, space: spaces.Box, *, log_std: float = 0.0) -> None:
        super().__init__()
        if not np.issubdtype(space.dtype, np.floating):
            raise ValueError(f"a Box action must be of floats, received {space}")
        self.num_outputs = int(np.prod(space.shape))
        self.log_std = nn.Parameter(torch.full((self.num_outputs,), float(log_std)))

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Standard normal noise ``[*shape, num_outputs]``."""
        device = generator.device if generator is not None else torch.device("cpu")
        return torch.randn(*shape, self.num_outputs, generator=generator, device=device)

    def sample(self, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """Actions for ``outputs`` ``[..., D]``; without noise the means."""
        return outputs if noise is None else distributions.sample_gaussian(outputs, self.log_std, noise)

    def evaluate(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density and entropy (nats) of unclipped ``actions`` ``[..., D]``: ``[...]`` each."""
        return (
            distributions.gaussian_logprob(actions, outputs, self.log_std),
            distributions.gaussian_entropy(outputs, self.log_std),
        )

    def distribution(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """The parameters of the distribution of the actions: means ``[..., D]`` and log standard deviations ``[D]``."""
        return outputs, self.log_std

    def kl(self, old: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> Tensor:
        """The exact KL(old || new) of two results of ``distribution``: ``[...]`` nats."""
        return kl.gaussian_kl(*old, *new)


def head_for(space: spaces.Space, *, log_std: float = 0.0) -> CategoricalHead | GaussianHead:
    """The head for an action space.

    Raises:
        ValueError: for a space that is neither Discrete, MultiDiscrete, MultiBinary nor Box.
    """
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return CategoricalHead(space)
    if isinstance(space, spaces.Box):
        return GaussianHead(space, log_std=log_std)
    raise ValueError(f"actions of {space} are not supported; use Discrete, MultiDiscrete, MultiBinary or Box")
