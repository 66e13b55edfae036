"""The losses of PPO as pure functions, ``[B, T]`` in and one number out; lower is better in all of them.

Coefficients (``value_coef``, ``entropy_coef``) and the optimizer loop are not here: see ``agents.update``. How the
terms of the steps become one number is ``average``, one of ``agents.functional.masked``'s means.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.functional.masked import Reduction, fill_masked, masked_mean

LARGEST_LOG_RATIO = 80.0
"""Nats beyond which a ratio is not told apart any more: exp overflows float32 at 88.7, and infinity times a gradient of
0 is none."""


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor | None,
    *,
    clip: float,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    average: Reduction = masked_mean,
) -> Tensor:
    """PPO's clipped surrogate, negated so that lower is better.

        L = -E_t[ min(r_t A_t, clip(r_t, 1 - eps, 1 + eps) A_t) ],   r_t = pi(a_t|s_t) / pi_old(a_t|s_t)

    Source: Schulman et al. 2017, eq. 7 (arXiv:1707.06347).

    With ``dual_clip`` c the term of a step with A < 0 is at least ``c A``: a ratio that ran away upwards, which the
    minimum leaves unbounded, has no gradient any more. Source: Ye et al. 2020, eq. 5 (arXiv:1912.09729).

    Args:
        logprobs: ``[B, T]`` nats; carries gradient.
        old_logprobs: ``[B, T]`` nats, of the policy that acted.
        advantages: ``[B, T]`` reward units; constants.
        mask: ``[B, T]`` True on steps that count; None counts all.
        clip: eps, half-width of the trust interval, >= 0.
        clip_high: upper eps where it differs from the lower one (Yu et al. 2025, "clip-higher", arXiv:2503.14476).
        dual_clip: c, > 1 + clip_high; None: no second clip.
        average: over the steps that count.

    Raises:
        ValueError: if ``mask`` selects no step.
    """
    ratio = fill_masked(logprobs - old_logprobs, mask).clamp(max=LARGEST_LOG_RATIO).exp()
    clipped = ratio.clamp(1.0 - clip, 1.0 + (clip if clip_high is None else clip_high))
    advantages = fill_masked(advantages, mask)
    gain = torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip is not None:
        gain = torch.where(advantages < 0, torch.maximum(gain, dual_clip * advantages), gain)
    return -average(gain, mask)


def policy_gradient_loss(
    logprobs: Tensor, advantages: Tensor, mask: Tensor | None, *, average: Reduction = masked_mean
) -> Tensor:
    """The plain policy gradient, ``-E_t[ log pi(a_t|s_t) A_t ]``; its value means nothing, its gradient does.

    Source: Williams 1992 (REINFORCE). It holds for actions of the present policy only: one optimizer step a batch.

    Args:
        logprobs: ``[B, T]`` nats; carries gradient.
        advantages: ``[B, T]`` reward units; constants.
        mask: ``[B, T]`` True on steps that count; None counts all.
        average: over the steps that count.

    Raises:
        ValueError: if ``mask`` selects no step.
    """
    return -average(fill_masked(logprobs, mask) * fill_masked(advantages, mask), mask)


def surrogate_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor | None) -> Tensor:
    """The plain importance-weighted surrogate, negated so that lower is better; a trust region must keep it honest.

        L = -E_t[ r_t A_t ],   r_t = pi(a_t|s_t) / pi_old(a_t|s_t)

    Source: Schulman et al. 2015, eq. 14 (arXiv:1502.05477).

    Args:
        logprobs: ``[B, T]`` nats; carries gradient.
        old_logprobs: ``[B, T]`` nats, of the policy that acted.
        advantages: ``[B, T]`` reward units; constants.
        mask: ``[B, T]`` True on steps that count; None counts all.

    Raises:
        ValueError: if ``mask`` selects no step.
    """
    return -masked_mean(fill_masked(logprobs - old_logprobs, mask).exp() * fill_masked(advantages, mask), mask)


def value_loss(values: Tensor, returns: Tensor, mask: Tensor | None, *, average: Reduction = masked_mean) -> Tensor:
    """Half the mean squared error, ``E_t[(V_t - R_t)^2] / 2``.

    The half is part of the loss (as in OpenAI baselines and CleanRL); Stable-Baselines3 has none, so one of its
    ``vf_coef`` corresponds to twice that as ``value_coef`` here.

    Args:
        values: ``[B, T]`` reward units; carries gradient.
        returns: ``[B, T]`` reward units; constants.
        mask: ``[B, T]`` True on steps that count; None counts all.
        average: over the steps that count.

    Raises:
        ValueError: if ``mask`` selects no step.
    """
    return 0.5 * average(fill_masked(values - returns, mask).square(), mask)


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor | None,
    *,
    clip: float,
    average: Reduction = masked_mean,
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
        average: over the steps that count.

    Raises:
        ValueError: if ``mask`` selects no step.
    """
    change = fill_masked(values - old_values, mask)
    error = fill_masked(values - returns, mask)
    near_error = fill_masked(old_values - returns, mask) + change.clamp(-clip, clip)
    return 0.5 * average(torch.maximum(error.square(), near_error.square()), mask)


def entropy_loss(entropy: Tensor, mask: Tensor | None, *, average: Reduction = masked_mean) -> Tensor:
    """The negated mean entropy, nats per step: minimizing it keeps the policy exploring.

    Source: Williams & Peng 1991; Mnih et al. 2016 (arXiv:1602.01783).

    Args:
        entropy: ``[B, T]`` nats; carries gradient.
        mask: ``[B, T]`` True on steps that count; None counts all.
        average: over the steps that count.

    Raises:
        ValueError: if ``mask`` selects no step.
    """
    return -average(entropy, mask)
