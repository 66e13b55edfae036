"""The losses of PPO as pure functions, ``[B, T]`` in and one number out; lower is better in all of them.

Coefficients (``value_coef``, ``entropy_coef``) and the optimiser loop are not here: see ``agents.update``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.masked import keep, masked_mean


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor | None,
    *,
    clip: float,
    clip_high: float | None = None,
) -> Tensor:
    """PPO's clipped surrogate, negated so that lower is better.

        L = -E_t[ min(r_t A_t, clip(r_t, 1 - eps, 1 + eps) A_t) ],   r_t = pi(a_t|s_t) / pi_old(a_t|s_t)

    Source: Schulman et al. 2017, eq. 7 (arXiv:1707.06347).

    Args:
        logprobs: ``[B, T]`` nats; carries gradient.
        old_logprobs: ``[B, T]`` nats, of the policy that acted.
        advantages: ``[B, T]`` reward units; constants.
        mask: ``[B, T]`` True on steps that count; None counts all.
        clip: eps, half-width of the trust interval, >= 0.
        clip_high: upper eps where it differs from the lower one (Yu et al. 2025, "clip-higher", arXiv:2503.14476).

    Raises:
        ValueError: if ``mask`` selects no step.
    """
    ratio = keep(logprobs - old_logprobs, mask).exp()
    clipped = ratio.clamp(1.0 - clip, 1.0 + (clip if clip_high is None else clip_high))
    advantages = keep(advantages, mask)
    return -masked_mean(torch.minimum(ratio * advantages, clipped * advantages), mask)


def value_loss(values: Tensor, returns: Tensor, mask: Tensor | None) -> Tensor:
    """Half the mean squared error, ``E_t[(V_t - R_t)^2] / 2``.

    The half is part of the loss (as in OpenAI baselines and CleanRL); Stable-Baselines3 has none, so one of its
    ``vf_coef`` corresponds to twice that as ``value_coef`` here.

    Args:
        values: ``[B, T]`` reward units; carries gradient.
        returns: ``[B, T]`` reward units; constants.
        mask: ``[B, T]`` True on steps that count; None counts all.

    Raises:
        ValueError: if ``mask`` selects no step.
    """
    return 0.5 * masked_mean(keep(values - returns, mask).square(), mask)


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor | None, *, clip: float
) -> Tensor:
    """Half the mean of the larger of two squared errors: the plain one, and that of V kept near the old V.

        L = E_t[ max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2) ] / 2

    Source: OpenAI baselines, ppo2/model.py. With the maximum the clipped value can only slow the critic down, never
    excuse an error.

    Args:
        values: ``[B, T]`` reward units; carries gradient.
        old_values: ``[B, T]`` reward units, of the critic at the time of acting.
        returns: ``[B, T]`` reward units; constants.
        mask: ``[B, T]`` True on steps that count; None counts all.
        clip: eps, reward units, > 0.

    Raises:
        ValueError: if ``mask`` selects no step.
    """
    change = keep(values - old_values, mask)
    error = keep(values - returns, mask)
    near_error = keep(old_values - returns, mask) + change.clamp(-clip, clip)
    return 0.5 * masked_mean(torch.maximum(error.square(), near_error.square()), mask)


def entropy_loss(entropy: Tensor, mask: Tensor | None) -> Tensor:
    """The negated mean entropy, nats per step: minimising it keeps the policy exploring.

    Source: Williams & Peng 1991; Mnih et al. 2016 (arXiv:1602.01783).

    Args:
        entropy: ``[B, T]`` nats; carries gradient.
        mask: ``[B, T]`` True on steps that count; None counts all.

    Raises:
        ValueError: if ``mask`` selects no step.
    """
    return -masked_mean(entropy, mask)
