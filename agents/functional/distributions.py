"""Action distributions as pure functions on tensors; the inner loop creates no objects.

Categorical actions are sampled by adding Gumbel noise to the logits and taking the largest (Gumbel 1954; Maddison et
al. 2014, arXiv:1411.0030), Gaussian ones by scaling normal noise: the noise of a whole rollout can be drawn at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def mask_logits(logits: Tensor, allowed: Tensor) -> Tensor:
    """``logits [..., A]`` with ``-inf`` where ``allowed [..., A]`` is False: the probability is then exactly 0.

    Raises:
        ValueError: if a row allows no action at all.
    """
    if not bool(allowed.any(-1).all()):
        raise ValueError(f"expected an allowed action in every row of the mask {tuple(allowed.shape)}, received none")
    return logits.masked_fill(~allowed, -torch.inf)


def categorical_logprobs(logits: Tensor) -> Tensor:
    """Normalized log-probabilities in float32 or wider, ``[..., A]`` nats; ``-inf`` stays ``-inf``."""
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def categorical_logprob(all_logprobs: Tensor, actions: Tensor) -> Tensor:
    """Log-probability ``[...]`` of ``actions [...]`` int64 in ``[0, A)``; ``all_logprobs [..., A]`` are normalized."""
    return all_logprobs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def categorical_entropy(all_logprobs: Tensor) -> Tensor:
    """``-sum_a p log p`` in nats, ``[...]``, of normalized ``all_logprobs [..., A]``; impossible actions contribute
    nothing, to value or gradient."""
    finite = torch.where(all_logprobs > -torch.inf, all_logprobs, 0.0)
    return -(all_logprobs.exp() * finite).sum(-1)


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel noise of ``shape``, float32, on the generator's device: the argmax of logits + it is a sample."""
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.empty(shape, device=device).exponential_(generator=generator).log_().neg_()


def gaussian_logprob(actions: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of independent normals, summed over the last dimension, ``[...]`` nats.

    ``actions [..., D]`` are unclipped, ``mean`` is ``[..., D]``, ``log_std`` ``[D]`` or ``[..., D]``.
    """
    standardized = (actions - mean) * torch.exp(-log_std)
    return (-0.5 * standardized.square() - log_std - HALF_LOG_2PI).sum(-1)


def gaussian_entropy(mean: Tensor, log_std: Tensor) -> Tensor:
    """Differential entropy, ``[...]`` nats, summed over the last dimension of ``mean``'s shape; may be negative."""
    return (log_std + HALF_LOG_2PI + 0.5).expand_as(mean).sum(-1)


def sample_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """``mean + std * noise`` for standard normal ``noise``, ``[..., D]``."""
    return torch.addcmul(mean, log_std.exp(), noise)
