"""Estimators of KL(pi || pi_ref) from samples of pi, in nats per step, and the exact KL of whole distributions.

Source: Schulman 2020, "Approximating KL divergence" (joschu.net/blog/kl-approx.html). With ``x = log pi - log pi_ref``
at the sampled action:

    k1 = x                    unbiased, of either sign
    k2 = x^2 / 2              biased, non-negative; its gradient is that of the full KL
    k3 = exp(-x) - 1 + x      unbiased, non-negative

These are pointwise: ``[B, T]`` in, ``[B, T]`` out; the caller masks and averages (``agents.functional.masked``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""k3 is continued as a straight line beyond this many nats (exp(20) = 4.9e8), so that no gradient overflows."""


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``log pi - log pi_ref`` at the sampled action, ``[B, T]`` nats."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Half the squared log-ratio, ``[B, T]`` nats."""
    return 0.5 * (logprobs - ref_logprobs).square()


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``exp(-x) - 1 + x`` with ``x = log pi - log pi_ref``, ``[B, T]`` nats, never negative.

    ``expm1`` is accurate near x = 0. Beyond ``MAX_LOG_RATIO`` nats of ``-x`` the curve continues along its tangent:
    still convex and increasing, but finite in float32 at any ratio. The tangent is a separate branch: as a summand that
    is 0 on the curve, its slope would enter the gradient twice with opposite signs and cancel the curve's in float32.
    """
    gap = ref_logprobs - logprobs
    inner = gap.clamp(max=MAX_LOG_RATIO)
    curve = torch.expm1(inner) - inner
    return torch.where(gap > MAX_LOG_RATIO, curve + math.expm1(MAX_LOG_RATIO) * (gap - MAX_LOG_RATIO), curve)


def full_kl(all_logprobs: Tensor, all_ref_logprobs: Tensor) -> Tensor:
    """The exact ``sum_a pi(a) (log pi(a) - log pi_ref(a))``, ``[...]`` nats, of normalized log-probs ``[..., A]``.

    ``-inf`` marks an impossible action; the KL is infinite where one is possible under pi but not under pi_ref.
    """
    possible = all_logprobs > -torch.inf
    safe = torch.where(possible, all_logprobs, 0.0)
    gap = safe - torch.where(possible, all_ref_logprobs, 0.0)
    return torch.where(possible, safe.exp() * gap, 0.0).sum(-1)


def gaussian_kl(mean: Tensor, log_std: Tensor, ref_mean: Tensor, ref_log_std: Tensor) -> Tensor:
    """The exact KL(pi || pi_ref) of independent normals, summed over the last dimension.

        KL = sum_d log(std_ref / std) + (std^2 + (mean - mean_ref)^2) / (2 std_ref^2) - 1/2

    Means are ``[..., D]``, logs of the standard deviations ``[D]`` or ``[..., D]``; the KL is ``[...]`` nats.
    """
    wider = ref_log_std - log_std
    distance = (mean - ref_mean) * torch.exp(-ref_log_std)
    return (wider + 0.5 * (torch.exp(-2.0 * wider) + distance.square() - 1.0)).sum(-1)
